"""An agent in the same process: exchanges go to the origin without a wire between."""

from __future__ import annotations

from edgetun_agent.serve import Origins
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead


class LocalSession:
    """Serves the tunnels of `Origins` as a session of the exit node beside it."""

    transport = "in process"

    def __init__(self, origins: Origins) -> None:
        self._origins = origins

    @property
    def in_flight(self) -> int:
        """Exchanges under way."""
        return self._origins.in_flight

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """See `Handler.open`."""
        return self._origins.open(head, peer, end, client)

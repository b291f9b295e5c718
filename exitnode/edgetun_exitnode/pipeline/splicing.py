"""What another exit node hands on goes straight into an agent's session: the last stage without an object of its own per request.

Hot path of a relay's far end. The session's exchange (wire/splices.py) passes on what comes; here is only what the last stage does of it:
it chooses the session, counts, and takes over where the session fails, since another may be asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.wire.exchanges import Incoming
from edgetun_core.wire.splices import Spliced

if TYPE_CHECKING:
    from edgetun_exitnode.pipeline.forward import ForwardStage, Session


class Splicing:
    """Requests with one head from one exit node, or a single one. A `Handler` and a `SpliceOwner`; kept with the head while that recurs."""

    __slots__ = ("_counters", "_peer", "_prepared", "_stage")

    def __init__(self, stage: ForwardStage, prepared: RequestHead, peer: Peer) -> None:
        """`prepared` is the head as it goes to the agent."""
        self._stage = stage
        self._counters = stage.counters
        self._prepared = prepared
        self._peer = peer

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Passes the exchange to a session that serves the tunnel; the stage itself does where that cannot be done so simply."""
        stage = self._stage
        limit = stage.max_concurrent
        if client.__class__ is Incoming and (not limit or stage.in_flight < limit):
            spliced = self.start(end, client)
            if spliced is not None:
                stage.in_flight += 1
                counters = self._counters
                counters.in_flight += 1
                counters.forwarded += 1
                return spliced
        return stage.open(head, peer, end, client)

    def start(self, end: bool, client: Incoming) -> Spliced | None:
        """None when there is no session that takes it now, or only standbys. Counts nothing."""
        stage = self._stage
        pool = stage.pool
        if pool.is_on_standby:
            return None  # another exit node may have better
        session = pool.pick(None)
        if session.__class__ is not SessionRunner:
            return None
        mux = session.mux
        if mux is None:
            return None
        return mux.splice(self._prepared, end, client, self, session, stage.clock())

    # From the session, see `SpliceOwner`.

    def on_spliced_head(self, started: float) -> None:
        stage = self._stage
        stage.latency.observe(stage.clock() - started)

    def on_spliced_end(self) -> None:
        self._stage.in_flight -= 1
        self._counters.in_flight -= 1

    def on_spliced_reset(self, spliced: Spliced, client: Incoming, error: EdgetunError, has_begun: bool) -> RequestSink:
        lost = cast("Session", spliced.session)
        return self._stage.go_on(
            self._prepared, self._peer, spliced.is_whole, client, spliced.started, lost, has_begun, error
        )

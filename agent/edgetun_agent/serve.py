"""Which origin a request is for: the `Handler` at the end of every session, and of the in-process tunnel of `edgetun http`.

Hot path: one dictionary lookup. `head.service` is `"namespace/tunnel"` (the tunnel's first origin) or
`"namespace/tunnel#origin"`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from edgetun_agent.observe import AgentListener, RecentRequests, SilentListener
from edgetun_agent.origin.health import HealthState, OriginProbe
from edgetun_agent.origin.kinds import LocalServer, build_local_server
from edgetun_agent.origin.record import OriginRecord
from edgetun_core.errors import NotFound
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.snapshot import OriginRule, TunnelRule

log = logging.getLogger(__name__)

RETIRED_FOR_S = 60.0
"""How long exchanges may go on with an origin whose rule is gone."""


class Origins:
    """All origins of an agent. Make it on the event loop."""

    def __init__(
        self,
        tunnels: Iterable[TunnelRule] = (),
        *,
        listener: AgentListener | None = None,
        recent: RecentRequests | None = None,
        probe: bool = True,
    ) -> None:
        """`probe`: look at idle and down origins; without it health is only what requests experience."""
        self._listener: AgentListener = listener or SilentListener()
        self._recent = recent
        self._probe = probe
        self._by_service: dict[str, LocalServer] = {}
        self._clients: dict[tuple[str, OriginRule], LocalServer] = {}
        self._probes: dict[LocalServer, OriginProbe] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.update(tunnels)

    @property
    def services(self) -> tuple[str, ...]:
        """The tunnels served, as a session's hello names them."""
        return tuple(service for service in self._by_service if "#" not in service)

    @property
    def clients(self) -> Sequence[LocalServer]:
        """Every origin's client, for metrics and the display."""
        return tuple(self._clients.values())

    @property
    def in_flight(self) -> int:
        """Exchanges under way at all origins."""
        return sum(client.in_flight for client in self._clients.values())

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Hands the exchange to its origin; an unknown service is reset with `NotFound`."""
        origin = self._by_service.get(head.service)
        if origin is None:
            client.on_reset(
                NotFound(f'this agent does not serve "{head.service}"', remedy="see the tunnels it was started with")
            )
            return CLOSED
        return origin.open(head, peer, end, client)

    def update(self, tunnels: Iterable[TunnelRule]) -> None:
        """Takes a new set of rules: an origin whose rule is unchanged keeps its connections, a gone one ends in good order."""
        by_service: dict[str, LocalServer] = {}
        clients: dict[tuple[str, OriginRule], LocalServer] = {}
        for tunnel in tunnels:
            for index, rule in enumerate(tunnel.origins):
                service = f"{tunnel.id}#{rule.name}"
                key = (service, rule)
                client = self._clients.get(key)
                if client is None:
                    client = build_local_server(tunnel, rule, service, self._recent, self._health_changed)
                    # A database or an SSH server takes a connection without a word for an attack, so these are not probed.
                    if self._probe and isinstance(client, OriginRecord):
                        probe = self._probes[client] = OriginProbe(client)
                        probe.start()
                clients[key] = client
                by_service[service] = client
                if index == 0:
                    by_service[tunnel.id] = client
        gone = [client for key, client in self._clients.items() if key not in clients]
        self._by_service, self._clients = by_service, clients
        for client in gone:
            task = asyncio.get_running_loop().create_task(self._end(client))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _end(self, client: LocalServer) -> None:
        probe = self._probes.pop(client, None)
        if probe is not None:
            await probe.stop()
        await client.close(RETIRED_FOR_S)

    async def close(self) -> None:
        """Ends everything at once; drain the sessions first."""
        for task in list(self._closing):
            task.cancel()
        if self._closing:
            await asyncio.wait(self._closing)
        for probe in self._probes.values():
            await probe.stop()
        self._probes.clear()
        for client in self._clients.values():
            await client.close()

    def _health_changed(self, client: LocalServer) -> None:
        is_up = client.health.state is HealthState.UP
        if is_up:
            log.info("origin %s answers", client.url)
        else:
            log.warning("%s", client.health.last_error)
        self._listener.on_origin_changed(client.service, client.url, is_up, client.health.last_error)

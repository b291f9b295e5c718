"""The fronts of TCP and UDP tunnels: listeners that come and go with the snapshot, and one sweep for all their connections.

A port that cannot be listened on (another program has it) is told once, tried again every few seconds, and keeps nobody else
from being served.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

from edgetun_core.errors import Cancelled, ConfigError, EdgetunError
from edgetun_core.proxy_protocol import TrustedNetworks
from edgetun_exitnode.front.clock import FrontClock
from edgetun_exitnode.front.context import FrontLimits
from edgetun_exitnode.front.listening import bind_sockets, bind_udp_sockets, explain
from edgetun_exitnode.front.tcp import StreamConnection
from edgetun_exitnode.front.udp import UdpFront
from edgetun_exitnode.pipeline.streams import StreamPlan, StreamPlans

log = logging.getLogger(__name__)

BACKLOG: Final = 1024
TRY_AGAIN_S: Final = 5.0
TELL_AGAIN_S: Final = 10.0
"""One log line of a kind and tunnel per so many seconds, with how many there were."""

PortKey = tuple[str, int]


class TcpFront:
    """The listener of one port; its tunnel may change while it listens."""

    def __init__(self, fronts: StreamFronts, plan: StreamPlan, sockets: list[socket.socket]) -> None:
        self._fronts = fronts
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self.plan = plan

    async def start(self) -> None:
        """Begins to accept."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            server = await loop.create_server(
                lambda: StreamConnection(self._fronts, self.plan), sock=sock, backlog=BACKLOG
            )
            self._servers.append(server)

    def close(self) -> None:
        """Stops accepting; what is connected stays."""
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()


class StreamFronts:
    """Every listener of TCP and UDP tunnels of a node, and every connection that came over them."""

    def __init__(self, plans: StreamPlans, limits: FrontLimits, clock: Callable[[], float]) -> None:
        self.plans = plans
        self.limits = limits
        self._clock = FrontClock(clock, limits.sweep_s)
        self.now = self._clock.now
        """The time of the last sweep, by the fronts' own clock."""
        self.trusted = TrustedNetworks()
        self.connections: set[StreamConnection] = set()
        self.problems: dict[PortKey, ConfigError] = {}
        """Ports that tunnels want and that cannot be listened on."""
        self.on_problems_changed: Callable[[], None] = lambda: None
        self.wrong_headers = 0
        """Connections from trusted proxies that did not begin with a PROXY protocol header."""
        self.clock = clock
        """The time itself."""
        self._loop = asyncio.get_running_loop()
        self._host: str | None = None
        self._fronts: dict[PortKey, TcpFront | UdpFront] = {}
        self._starting: dict[asyncio.Task[None], PortKey] = {}
        self._retry_at = 0.0
        self._sweep: asyncio.TimerHandle | None = None
        self._told: dict[tuple[str, str], tuple[float, int]] = {}
        self._emptied: asyncio.Future[None] | None = None

    @property
    def ports(self) -> list[PortKey]:
        """What is listened on."""
        return sorted(self._fronts)

    async def listen(self, host: str) -> dict[PortKey, ConfigError]:
        """Listens for the tunnels of the present snapshot and of those to come; returns the ports that cannot be had."""
        self._host = host
        self._tick()
        self.follow()
        if self._starting:
            await asyncio.wait(self._starting)
        return self.problems

    def follow(self) -> None:
        """Opens and closes listeners so that they are those of the present plans."""
        if self._host is None:
            return
        wanted = self.plans.by_port
        for key in [key for key in self._fronts if key not in wanted]:
            self._fronts.pop(key).close()
            log.info("%s port %d is no longer listened on", key[0].upper(), key[1])
        for key in [key for key in self.problems if key not in wanted]:
            del self.problems[key]
            self.on_problems_changed()
        for key, plan in wanted.items():
            front = self._fronts.get(key)
            if front is not None:
                front.plan = plan
            elif key not in self._starting.values():
                self._start(key, plan)

    def _start(self, key: PortKey, plan: StreamPlan) -> None:
        assert self._host is not None
        kind, port = key
        try:
            if kind == "udp":
                udp = bind_udp_sockets(self._host, port)
            else:
                sockets = bind_sockets(self._host, port, dead_after_s=self.limits.write_stall_s + 15.0)
        except OSError as error:
            problem = explain(error, self._host, port, f"spec.{kind}.port")
            if key not in self.problems:
                log.warning("tunnel %s is not served at %s port %d: %s", plan.rule.id, kind.upper(), port, problem)
            self._cannot(key, problem)
            return
        if kind == "udp":
            self._fronts[key] = UdpFront(self, plan, udp)
            self._is_free(key)
            return
        front = TcpFront(self, plan, sockets)
        task = self._loop.create_task(front.start(), name=f"listen on {key[0]} port {key[1]}")
        self._starting[task] = key
        self._fronts[key] = front
        task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        key = self._starting.pop(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._is_free(key)
            return
        front = self._fronts.pop(key, None)
        if front is not None:
            front.close()
        if not isinstance(error, OSError):
            raise error
        self._cannot(key, explain(error, self._host or "", key[1], "spec.tcp.port"))
        log.warning("TCP port %d: %s", key[1], self.problems[key])

    def _cannot(self, key: PortKey, problem: ConfigError) -> None:
        """The port is tried again later."""
        before = self.problems.get(key)
        self.problems[key] = problem
        self._retry_at = self.now + TRY_AGAIN_S
        if before is None or str(before) != str(problem):
            self.on_problems_changed()

    def unavailable(self) -> dict[str, str]:
        """Tunnels whose port cannot be listened on, by id, and why."""
        found = {}
        for key, problem in self.problems.items():
            plan = self.plans.by_port.get(key)
            if plan is not None:
                found[plan.rule.id] = f"{key[0].upper()} port {key[1]}: {problem.message}"
        return found

    def _is_free(self, key: PortKey) -> None:
        if self.problems.pop(key, None) is not None:
            self.on_problems_changed()
            log.info("%s port %d is free now and listened on", key[0].upper(), key[1])

    def drop(self, tunnel_ids: set[str]) -> None:
        """Ends the connections of tunnels that are gone."""
        if tunnel_ids:
            for connection in [one for one in self.connections if one.plan.rule.id in tunnel_ids]:
                connection.give_up(Cancelled("the tunnel is gone"))
            for front in self._fronts.values():
                if isinstance(front, UdpFront) and front.plan.rule.id in tunnel_ids:
                    front.drop_flows("the tunnel is gone")

    # From connections.

    def gone(self, connection: StreamConnection) -> None:
        """A connection is closed."""
        self.connections.discard(connection)
        if self._emptied is not None and not self.connections and not self._emptied.done():
            self._emptied.set_result(None)

    def tell_refused(self, plan: StreamPlan, error: EdgetunError) -> None:
        """Logs a refusal, rarely."""
        self._tell("refused", plan.rule.id, "tunnel %s refused a connection: %s", plan.rule.id, error)

    def tell_failed(self, plan: StreamPlan, error: EdgetunError) -> None:
        """Logs a connection that came to nothing, rarely."""
        self._tell("failed", plan.rule.id, "tunnel %s: a connection (or flow) was ended: %s", plan.rule.id, error)

    def tell_too_large(self, plan: StreamPlan, size: int, way: str) -> None:
        """Logs a datagram that the tunnel does not take, rarely."""
        most = plan.stream.max_datagram_bytes
        text = "tunnel %s dropped a datagram of %d bytes %s a visitor: it takes %d (spec.udp.maxDatagram)"
        self._tell("too large", plan.rule.id, text, plan.rule.id, size, way, most)

    def tell_wrong_header(self, address: str, error: EdgetunError) -> None:
        """A proxy that is trusted said nothing, or nonsense."""
        self.wrong_headers += 1
        self._tell("header", address, "the proxy %s: %s", address, error)

    def _tell(self, kind: str, about: str, text: str, *values: object) -> None:
        key = (kind, about)
        told_at, kept_back = self._told.get(key, (-TELL_AGAIN_S, 0))
        if self.now - told_at < TELL_AGAIN_S:
            self._told[key] = (told_at, kept_back + 1)
            return
        if len(self._told) > 1000:
            self._told.clear()
        self._told[key] = (self.now, 0)
        log.warning(
            text + (" (and %d times since the last line)" if kept_back else ""),
            *values,
            *([kept_back] if kept_back else ()),
        )

    # Time, and the end.

    def _tick(self) -> None:
        self._sweep = self._loop.call_later(self.limits.sweep_s, self._tick)
        self.now = now = self._clock.tick()
        for connection in tuple(self.connections):
            connection.check_deadline(now, self.limits.head_s)
        for front in self._fronts.values():
            if isinstance(front, UdpFront):
                front.sweep(now)
        if self.problems and now >= self._retry_at:
            self._retry_at = now + TRY_AGAIN_S
            self.follow()

    def stop_accepting(self) -> None:
        """Closes the listeners; what is connected stays."""
        self._host = None
        for front in self._fronts.values():
            front.close()
        self._fronts.clear()

    async def drain(self, deadline_s: float) -> None:
        """Stops accepting; connections may end by themselves until the deadline. UDP flows have no end; they go last."""
        for key in [key for key, front in self._fronts.items() if isinstance(front, TcpFront)]:
            self._fronts.pop(key).close()
        self._host = None
        if self.connections and deadline_s > 0:
            self._emptied = self._loop.create_future()
            try:
                await asyncio.wait_for(self._emptied, deadline_s)
            except TimeoutError:
                pass
            finally:
                self._emptied = None
        self.close()

    def close(self) -> None:
        """Ends everything at once."""
        self.stop_accepting()
        for task in self._starting:
            task.cancel()
        for connection in tuple(self.connections):
            connection.give_up(Cancelled("the edge went away"))
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

"""Opens one session: races the transports of an endpoint, shakes hands, hears how the session fares. Thin shell around `race`.

Every transport in the race gets a session of its own with the same hello; the first whose link is up is the only one that
says it, so an exit node never sees one session id twice from one race.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from edgetun_agent.race import (
    Begin,
    Dial,
    Failed,
    GaveUp,
    Opened,
    Race,
    RaceEffect,
    RaceEvent,
    Stop,
    Tick,
    Transport,
    WaitUntil,
    Won,
)
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import AuthError, EdgetunError, SessionLost, UpstreamUnreachable
from edgetun_core.http.exchange import Handler
from edgetun_core.pki import Trust
from edgetun_core.transport.engines import dial
from edgetun_core.transport.link import Link
from edgetun_core.transport.runner import SessionListener, SessionRunner
from edgetun_core.transport.way import Way
from edgetun_core.wire.hello import Hello
from edgetun_core.wire.keepalive import KeepAlive

LINK_TIMEOUT_S = 5.0


class AgentSession:
    """A session as the agent holds it, from its welcome to its end."""

    def __init__(
        self,
        endpoint: Endpoint,
        changed: Callable[[], None],
        tell_path: Callable[[AgentSession], None] = lambda _: None,
    ) -> None:
        self.endpoint = endpoint
        self._tell_path = tell_path
        self.runner: RacingRunner | None = None
        self.transport: Transport = "quic"
        self.opened_at = 0.0
        """Monotonic seconds; 0 before the welcome."""
        self.is_draining = False
        self.drains_within_s = 0.0
        """The deadline of the drain, from when it was heard of."""
        self.leaving_for = ""
        """Why the agent itself wants another session in its place."""
        self.is_lossy: bool | None = None
        """What the path does to packets; None when nothing is known."""
        self.is_over = False
        self.error: EdgetunError | None = None
        self.link_gone = asyncio.Event()
        self.news = asyncio.Event()
        """Set whenever something of the above changed."""
        self._changed = changed

    # The runners that lost the race have this listener too, and nothing to say.

    def on_session_open(self, runner: SessionRunner) -> None:
        if runner is self.runner:
            self.opened_at = monotonic()
            self._tell()

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        if runner is self.runner:
            self.is_draining = True
            self.drains_within_s = deadline_s
            self._tell()

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        if runner is self.runner:
            self.is_over = True
            self.error = error
            self._tell()

    def on_path(self, runner: SessionRunner, *, is_lossy: bool) -> None:
        """What the session's link measured."""
        if runner is self.runner and self.opened_at and is_lossy != self.is_lossy:
            self.is_lossy = is_lossy
            self._tell_path(self)

    def leave(self, reason: str) -> None:
        """The agent wants another session in this one's place."""
        self.leaving_for = reason
        self._tell()

    def on_link_gone(self, runner: SessionRunner) -> None:
        """Everything that was to be said to the exit node has been."""
        if runner is self.runner:
            self.link_gone.set()

    def _tell(self) -> None:
        self.news.set()
        self._changed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; looks after every change."""
        while not condition():
            self.news.clear()
            await self.news.wait()


class RacingRunner(SessionRunner):
    """A session that asks whether it may begin when its link is up."""

    __slots__ = ("_claim", "_gone", "_path")

    def __init__(
        self,
        hello: Hello,
        handler: Handler,
        listener: SessionListener,
        claim: Callable[[], bool],
        gone: Callable[[SessionRunner], None],
        path: Callable[..., None],
        keep_alive: KeepAlive | None = None,
    ) -> None:
        super().__init__(handler, listener, offer=hello, decide=None, keep_alive=keep_alive)
        self._claim = claim
        self._gone = gone
        self._path = path

    def on_path(self, *, is_lossy: bool) -> None:
        """See `PathUser`."""
        self._path(self, is_lossy=is_lossy)

    def on_open(self, link: Link) -> None:
        if self._claim():
            super().on_open(link)
        else:
            link.abort()

    def on_closed(self, error: EdgetunError | None) -> None:
        super().on_closed(error)
        self._gone(self)


class Attempt:
    """One race for one session. `run` returns the session, welcomed, or raises why there is none."""

    def __init__(
        self,
        endpoint: Endpoint,
        transports: tuple[Transport, ...],
        hello: Hello,
        handler: Handler,
        trust: Trust,
        quic_engine: str,
        changed: Callable[[], None],
        generation: int = 0,
        way: Way | None = None,
        websocket: Way | None = None,
        *,
        is_lossy: bool = False,
        tell_path: Callable[[AgentSession], None] = lambda _: None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        self.is_lossy = is_lossy
        """Whether QUIC is to bear random loss."""
        self.generation = generation
        """Which `Agent.reopen` the hello knows of."""
        self._endpoint = endpoint
        self._ways: dict[Transport, Way | None] = {"tls": way, "websocket": websocket}
        self._race = Race(transports)
        self._hello = hello
        self._handler = handler
        self._trust = trust
        self._quic_engine = quic_engine
        self._keep_alive = keep_alive
        self._dials: dict[Transport, asyncio.Task[None]] = {}
        self._moved = asyncio.Event()
        self._tick_at = float("inf")
        self._errors: tuple[EdgetunError, ...] = ()
        self.session = AgentSession(endpoint, changed, tell_path)
        self.won: Won | None = None

    async def run(self) -> AgentSession:
        """Raises the error of the transport that was liked best, or of the exit node that refused the hello."""
        try:
            self._tell(Begin())
            while self.won is None and not self._errors:
                self._moved.clear()
                try:
                    async with asyncio.timeout_at(self._loop_time_of(self._tick_at)):
                        await self._moved.wait()
                except TimeoutError:
                    self._tell(Tick())
            if self.won is None:
                raise _joined(self._errors)
            await self.session.until(lambda: self.session.opened_at > 0 or self.session.is_over)
        except asyncio.CancelledError:
            if self.session.runner is not None:
                self.session.runner.close(None)
            raise
        finally:
            for transport, task in self._dials.items():
                if self.won is None or transport != self.won.transport:
                    task.cancel()
        if self.session.is_over:
            raise self.session.error or SessionLost(
                f"{self._endpoint.host} closed the session before it was open", remedy="see the exit node's log"
            )
        return self.session

    @property
    def nobody_listens(self) -> bool:
        """Whether the host turned every transport of the race away, as it does where the exit node's process is gone."""
        return bool(self._errors) and all(isinstance(error.__cause__, ConnectionRefusedError) for error in self._errors)

    @staticmethod
    def _loop_time_of(at: float) -> float | None:
        # A loop's clock may be coarser than ours, and have another zero.
        return None if at == float("inf") else asyncio.get_running_loop().time() + max(0.0, at - monotonic())

    def _tell(self, event: RaceEvent) -> None:
        for effect in self._race.handle(event, monotonic()):
            self._do(effect)
        self._moved.set()

    def _do(self, effect: RaceEffect) -> None:
        match effect:
            case Dial(transport):
                self._dials[transport] = asyncio.get_running_loop().create_task(self._dial(transport))
            case Stop(transport):
                task = self._dials.get(transport)
                if task is not None:
                    task.cancel()
            case WaitUntil(at):
                self._tick_at = at
            case Won():
                self.won = effect
                self._tick_at = float("inf")
            case GaveUp(errors):
                self._errors = errors

    async def _dial(self, transport: Transport) -> None:
        endpoint = self._endpoint
        runner: RacingRunner

        def claim() -> bool:
            # Synchronous with the link's coming up: of two links in one tick only the first gets here with nobody's win.
            if self.won is not None:
                return False
            self.session.runner = runner
            self.session.transport = transport
            self._tell(Opened(transport))
            return True

        runner = RacingRunner(
            self._hello,
            self._handler,
            self.session,
            claim,
            self.session.on_link_gone,
            self.session.on_path,
            self._keep_alive,
        )
        engine, port = (self._quic_engine, endpoint.quic_port) if transport == "quic" else ("tls", endpoint.tls_port)
        try:
            await dial(
                engine,
                endpoint.host,
                port,
                trust=self._trust,
                user=runner,
                timeout_s=LINK_TIMEOUT_S,
                server_name=endpoint.server_name or None,
                way=self._ways.get(transport),
                is_lossy=self.is_lossy,
            )
        except EdgetunError as error:
            self._tell(Failed(transport, error))


def _joined(errors: tuple[EdgetunError, ...]) -> EdgetunError:
    """One error that tells all: a person needs to know that UDP was tried too."""
    if len(errors) == 1:
        return errors[0]
    kind = AuthError if any(isinstance(error, AuthError) for error in errors) else UpstreamUnreachable
    return kind(", and ".join(error.message for error in errors), remedy=errors[-1].remedy)

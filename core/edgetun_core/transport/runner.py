"""Runs a session on a link: bytes between the two, one write per lane and loop tick, timers. The only asyncio in the protocol.

Hot path: `on_data` and `_flush`; no task, no future, no log line per exchange. What handlers and sinks raise is caught in the
mux (the exchange is reset) or here (the session is closed), logged with its traceback and counted; the loop goes on.

    listener side:   engines.listen(..., accept=lambda: SessionRunner.accepting(decide, handler, listener))
    dialling side:   runner = SessionRunner.dialling(hello, handler, listener); link = await engines.dial(..., user=runner)
"""
# ruff: noqa: BLE001 - this file is the edge at which bugs of handlers and listeners are caught, logged and counted

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, cast

from edgetun_core.errors import EdgetunError, NoSession
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.transport.link import DatagramLink, Link
from edgetun_core.transport.quic_connection import IDLE_TIMEOUT_S
from edgetun_core.wire.datagrams import DatagramCounters, Datagrams
from edgetun_core.wire.hello import CONNECT_TIMEOUT_S, Hello, Refusal, Welcome, Windows
from edgetun_core.wire.keepalive import KeepAlive
from edgetun_core.wire.mux import Mux
from edgetun_core.wire.session import Session
from edgetun_core.wire.states import State

log = logging.getLogger(__name__)

Decide = Callable[[Hello, Link], Welcome | Refusal]


class SessionListener(Protocol):
    """Hears of a session's fate. The calls come in this order, and nothing after `on_session_closed`."""

    def on_session_open(self, runner: SessionRunner) -> None:
        """Hello and welcome are exchanged (`runner.hello`, `runner.welcome`); `runner.open` works from now on."""

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        """One of the ends drains: `runner.open` refuses from now on, exchanges in flight go on. Connect elsewhere."""

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        """It is over, perhaps before it was open; None when in good order. Called before its exchanges are reset."""


class SessionCounters:
    """What a session has carried; plain ints, read by whoever renders metrics."""

    __slots__ = ("bugs", "bytes_in", "bytes_out", "reads", "writes")

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.reads = 0
        self.writes = 0
        self.bugs = 0


class SessionRunner:
    """A session on a link: the link's user, and a `Handler` for exchanges to the peer."""

    __slots__ = (
        "_answered",
        "_closed",
        "_connect_timeout_s",
        "_decide",
        "_handler",
        "_keep_alive",
        "_lanes_known",
        "_link",
        "_listener",
        "_loop",
        "_now",
        "_offer",
        "_session",
        "_timer",
        "_wake_pending",
        "_windows",
        "counters",
        "mux",
    )

    def __init__(
        self,
        handler: Handler,
        listener: SessionListener,
        *,
        offer: Hello | None,
        decide: Decide | None,
        windows: Windows | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        clock: Callable[[], float] | None = None,
        keep_alive: KeepAlive | None = None,
    ) -> None:
        """`keep_alive` is used on links over UDP: what TCP goes through keeps its bindings for longer than any of our intervals."""
        self._loop = asyncio.get_running_loop()
        self._now = clock or self._loop.time
        self._handler = handler
        self._listener = listener
        self._offer = offer
        self._decide = decide
        self._windows = windows
        self._connect_timeout_s = connect_timeout_s
        self._keep_alive = keep_alive
        self._link: Link | None = None
        self._session: Session | None = None
        self.mux: Mux | None = None
        """Carries the exchanges; None before there is a link."""
        self._timer: asyncio.TimerHandle | None = None
        self._wake_pending = False
        self._closed = False
        self._lanes_known = 0
        self._answered: Callable[[], None] | None = None
        self.counters = SessionCounters()

    @classmethod
    def accepting(
        cls,
        decide: Decide,
        handler: Handler,
        listener: SessionListener,
        *,
        windows: Windows | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        clock: Callable[[], float] | None = None,
    ) -> SessionRunner:
        """The exit node's end, one per accepted link. `decide` answers the hello; `handler` takes what the agent opens."""
        return cls(
            handler,
            listener,
            offer=None,
            decide=decide,
            windows=windows,
            connect_timeout_s=connect_timeout_s,
            clock=clock,
        )

    @classmethod
    def dialling(
        cls,
        hello: Hello,
        handler: Handler,
        listener: SessionListener,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        clock: Callable[[], float] | None = None,
    ) -> SessionRunner:
        """The agent's end, to be handed to `engines.dial` as the link's user. `handler` takes the visitors' requests."""
        return cls(handler, listener, offer=hello, decide=None, connect_timeout_s=connect_timeout_s, clock=clock)

    # --- for its owner

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Starts an exchange with the peer (`Handler.open`); when that cannot be, `client` is reset at once."""
        if self._session is None:
            client.on_reset(NoSession("the session is not open"))
            return CLOSED
        return self._session.mux.open(head, peer, end, client)

    def drain(self, deadline_s: float, reason: str) -> None:
        """Opens no more, lets what is in flight finish, then closes; after the deadline closes anyway."""
        if self._session is None:
            self.close(None)
            return
        try:
            self._session.drain(deadline_s, reason, self._now())
        except Exception as bug:
            self._on_bug_at_the_edge(bug)
        self._set_timer()

    def check(self, within_s: float, answered: Callable[[], None]) -> None:
        """Asks the peer for a sign of life: `answered` is called when it comes, and without one the session is over in `within_s`."""
        if self._session is None:
            return
        self._answered = answered
        try:
            self._session.check(within_s, self._now())
        except Exception as bug:
            self._on_bug_at_the_edge(bug)
        self._set_timer()

    def close(self, error: EdgetunError | None) -> None:
        """Closes now and tells the peer why; open exchanges are reset. Idempotent."""
        if self._session is not None:
            try:
                self._session.close(error)
            except Exception as bug:
                self._on_bug_at_the_edge(bug)
        elif not self._closed:
            self._closed = True
            if self._link is not None:
                self._link.abort()
            self._tell_closed(error)

    @property
    def state(self) -> State:
        if self._closed:
            return State.CLOSED
        return State.CONNECTING if self._session is None else self._session.state

    @property
    def rtt_s(self) -> float | None:
        """Smoothed round trip in seconds: the transport's own estimate where it has one, else by PING."""
        if self._link is not None:
            measured = self._link.rtt_s
            if measured is not None:
                return measured
        return None if self._session is None else self._session.rtt_s

    @property
    def ping_rtt_s(self) -> float | None:
        """Smoothed round trip of PING and PONG, event loops of both ends included."""
        return None if self._session is None else self._session.rtt_s

    @property
    def ping_interval_s(self) -> float:
        """How often this end pings: on a path over UDP what has been found out, elsewhere what the exit node asks for."""
        return 0.0 if self._session is None else self._session.ping_interval_s

    @property
    def transport(self) -> str:
        return "" if self._link is None else self._link.transport

    @property
    def engine(self) -> str:
        return "" if self._link is None else self._link.engine

    @property
    def link(self) -> Link | None:
        return self._link

    @property
    def peer_address(self) -> tuple[str, int]:
        return ("", 0) if self._link is None else self._link.peer_address

    @property
    def in_flight(self) -> int:
        """Exchanges under way, of both ends' opening."""
        return 0 if self._session is None else self._session.mux.in_flight

    @property
    def exchanges_opened(self) -> int:
        """Exchanges opened from this end since the session began."""
        return 0 if self._session is None else self._session.mux.opened_total

    @property
    def exchanges_served(self) -> int:
        """Exchanges the peer opened since the session began."""
        return 0 if self._session is None else self._session.mux.served_total

    @property
    def datagrams(self) -> DatagramCounters | None:
        """By which ways datagrams of UDP flows went."""
        return None if self._session is None else self._session.mux.datagrams.counters

    @property
    def hello(self) -> Hello | None:
        return self._offer if self._session is None else self._session.hello

    @property
    def welcome(self) -> Welcome | None:
        return None if self._session is None else self._session.welcome

    @property
    def refusal(self) -> Refusal | None:
        """The exit node's refusal, with what it says about trying again."""
        return None if self._session is None else self._session.refusal

    # --- LinkUser

    def on_open(self, link: Link) -> None:
        self._link = link
        if self._closed:
            link.abort()
            return
        address, port = link.peer_address
        self._session = Session(
            self,
            self._handler,
            Peer(address, port, b"https"),
            self._now(),
            hello=self._offer,
            windows=self._windows,
            connect_timeout_s=self._connect_timeout_s,
            keep_alive=self._keep_alive if link.transport == "quic" else None,
            idle_timeout_s=IDLE_TIMEOUT_S,
        )
        self.mux = self._session.mux
        self._session.mux.datagrams.path_bytes = getattr(link, "max_datagram_bytes", 0)
        self._learn_lanes()
        self._set_timer()

    def on_datagram(self, data: bytes) -> None:
        """A datagram of a link that has any (`DatagramUser`)."""
        session = self._session
        if session is None:
            return
        self.counters.bytes_in += len(data)
        try:
            session.receive_datagram(data)
        except Exception as bug:
            self._count(bug, "taking a datagram")

    def on_data(self, lane: int, data: bytes) -> None:
        session = self._session
        if session is None:
            return
        counters = self.counters
        counters.bytes_in += len(data)
        counters.reads += 1
        try:
            session.receive(lane, data, self._now())
        except Exception as bug:
            self._on_bug_at_the_edge(bug)

    def on_lane_paused(self, lane: int) -> None:
        if self._session is not None:
            self._session.mux.pause_lane(lane)

    def on_lane_resumed(self, lane: int) -> None:
        if self._session is not None:
            try:
                self._session.mux.resume_lane(lane)
            except Exception as bug:
                self._on_bug_at_the_edge(bug)

    def on_closed(self, error: EdgetunError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._session is None:
            if not self._closed:
                self._closed = True
                self._tell_closed(error)
            return
        try:
            self._session.lost(error)
        except Exception as bug:
            self._on_bug_at_the_edge(bug)

    # --- writing

    def _flush(self) -> None:
        self._wake_pending = False
        session = self._session
        link = self._link
        if session is None or link is None:
            return
        if link.lanes != self._lanes_known:
            self._learn_lanes()
        counters = self.counters
        try:
            for lane, data in session.data_to_send():
                counters.bytes_out += len(data)
                counters.writes += 1
                link.write(lane, data)
            session.flushed()
            datagrams = session.mux.datagrams
            if datagrams.out:
                self._write_datagrams(datagrams)
        except Exception as bug:
            self._on_bug_at_the_edge(bug)
        closed_with = session.closed_with
        if closed_with is not None:
            link.close(closed_with.code, closed_with.reason)

    def _write_datagrams(self, datagrams: Datagrams) -> None:
        link = cast("DatagramLink", self._link)  # only such a link has a path for them
        out = datagrams.take()
        self.counters.bytes_out += sum(map(len, out))
        datagrams.counters.dropped += link.write_datagrams(out)

    # --- timers

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = None if self._session is None else self._session.next_timer()
        if due is not None:
            # By the loop's own clock, whatever clock was handed in.
            self._timer = self._loop.call_later(max(0.0, due - self._now()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        session = self._session
        if session is None:
            return
        try:
            self._learn_lanes()
            session.handle_timer(self._now())
        except Exception as bug:
            self._on_bug_at_the_edge(bug)
        self._set_timer()

    def _learn_lanes(self) -> None:
        """Links may open lanes later; a lane once open stays."""
        if self._session is not None and self._link is not None:
            self._lanes_known = self._link.lanes
            self._session.set_lanes(self._lanes_known, self._link.bulk_from, self._now())

    # --- SessionUser

    def wake(self) -> None:
        if not self._wake_pending:
            self._wake_pending = True
            self._loop.call_soon(self._flush)

    def on_hello(self, hello: Hello) -> Welcome | Refusal:
        assert self._decide is not None
        assert self._link is not None
        try:
            return self._decide(hello, self._link)
        except Exception as bug:
            self._count(bug, "deciding on a hello")
            return Refusal(code=EdgetunError.presentation.close_code, reason="the exit node failed; see its log")

    def on_session_open(self) -> None:
        """Hello and welcome are exchanged."""
        self._learn_lanes()
        self._set_timer()
        try:
            self._listener.on_session_open(self)
        except Exception as bug:
            self._on_bug_at_the_edge(bug)

    def on_session_draining(self, deadline_s: float) -> None:
        """One of the ends drains."""
        self._set_timer()
        try:
            self._listener.on_session_draining(self, deadline_s)
        except Exception as bug:
            self._on_bug_at_the_edge(bug)

    def observed_address(self) -> bytes:
        """Where the peer's packets come from."""
        address, port = self.peer_address
        return f"{address}:{port}".encode()

    def on_session_answered(self) -> None:
        """The peer answered what `check` asked."""
        answered, self._answered = self._answered, None
        if answered is not None:
            answered()

    def on_session_closed(self, error: EdgetunError | None) -> None:
        """The session is over; the link follows with the next flush."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell_closed(error)

    def on_bug(self, error: Exception) -> None:
        self._count(error, "handling an exchange")

    # --- the edge

    def _tell_closed(self, error: EdgetunError | None) -> None:
        try:
            self._listener.on_session_closed(self, error)
        except Exception as bug:
            self._count(bug, "hearing that a session closed")

    def _on_bug_at_the_edge(self, bug: Exception) -> None:
        """Something of ours raised outside any one exchange: the session cannot be trusted any more."""
        self._count(bug, "running a session")
        if self._session is not None and self._session.state is not State.CLOSED:
            try:
                self._session.close(EdgetunError("an internal error; see the log of the other end"))
            except Exception as another:
                self._count(another, "closing a session")
                if self._link is not None:
                    self._link.abort()

    def _count(self, bug: Exception, doing: str) -> None:
        self.counters.bugs += 1
        log.error("a bug while %s with %s", doing, self.peer_address[0] or "nobody", exc_info=bug)

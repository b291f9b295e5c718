"""The session: hello, versions, ping, drain and close around a `Mux`; sans-I/O, with the clock handed in.

States and what moves them stand in `states.py`; docs/protocol.md tells the same in words. What the peer sends comes in
by `receive`, what is to be sent comes out by `data_to_send`, and the shell (`transport/runner.py`) calls `handle_timer` when
`next_timer` says so. Exchanges go between the mux and the handlers directly; what concerns the session as a whole goes to
the `SessionUser`.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from edgetun_core.errors import Draining, EdgetunError, ProtocolError, SessionLost, error_from_code
from edgetun_core.http.exchange import Handler
from edgetun_core.http.message import Peer
from edgetun_core.wire import frames
from edgetun_core.wire.frames import SessionBroken, name_of
from edgetun_core.wire.hello import (
    CONNECT_TIMEOUT_S,
    VERSIONS,
    Close,
    Drain,
    Hello,
    Refusal,
    Welcome,
    Windows,
    decode_control,
    encode_control,
)
from edgetun_core.wire.keepalive import FEATURE, SHARE_OF_DEAD_AFTER, KeepAlive
from edgetun_core.wire.lanes import Lane
from edgetun_core.wire.mux import Mux
from edgetun_core.wire.states import TRANSITIONS, Event, State

MAX_EARLY_BYTES: Final = 12 * 1024 * 1024
"""Bytes of other lanes that an agent keeps while its WELCOME is still on the way: a session window and heads."""

MAX_DRAIN_S: Final = 3600.0
MAX_RETRY_AFTER_S: Final = 86_400.0
NONCE_BYTES: Final = 8
CLOSE_GRACE_S: Final = 5.0
"""How much longer than its own deadline the other end of a drain waits."""


class SessionUser(Protocol):
    """What a session tells its shell. `on_session_closed` comes once, before the open exchanges are reset, and nothing after it."""

    def on_hello(self, hello: Hello) -> Welcome | Refusal:
        """Only at the exit node's end: decides on a hello."""

    def on_session_open(self) -> None:
        """Exchanges can be opened."""

    def on_session_draining(self, deadline_s: float) -> None:
        """Either end drains; no more exchanges can be opened here."""

    def observed_address(self) -> bytes:
        """Where the peer's packets come from, as text."""

    def on_session_answered(self) -> None:
        """The peer is there: it answered what `check` asked."""

    def on_session_closed(self, error: EdgetunError | None) -> None:
        """The session is over; None after a drain or a close in good order."""

    def on_bug(self, error: Exception) -> None:
        """A handler or a sink raised; its exchange was reset."""

    def wake(self) -> None:
        """There is something to send; called once until `data_to_send` is."""


class Session:
    """One end of a session. `hello` makes it the agent's end; without, it is the exit node's."""

    __slots__ = (
        "_answer_by",
        "_close_heard",
        "_close_said",
        "_closed_with",
        "_connect_by",
        "_drain_by",
        "_drain_heard",
        "_drain_said",
        "_due",
        "_early",
        "_early_bytes",
        "_grace_until",
        "_idle_timeout_s",
        "_is_asked",
        "_keep_alive",
        "_ping_at",
        "_ping_id",
        "_pings",
        "_silence_s",
        "_user",
        "_windows",
        "hello",
        "mux",
        "refusal",
        "rtt_s",
        "state",
        "welcome",
    )

    def __init__(
        self,
        user: SessionUser,
        handler: Handler,
        peer: Peer,
        now: float,
        *,
        hello: Hello | None = None,
        windows: Windows | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        keep_alive: KeepAlive | None = None,
        idle_timeout_s: float = float("inf"),
    ) -> None:
        """`windows` is what this end takes, at the exit node's end; the agent's stand in its hello.

        `keep_alive` is the agent's search for how long the path may be silent; without it pings go by the WELCOME's interval.
        `idle_timeout_s` is the silence that the link itself bears.
        """
        self._user = user
        self.hello = hello
        self.welcome: Welcome | None = None
        self.refusal: Refusal | None = None
        self.state = State.CONNECTING
        self.rtt_s: float | None = None
        self._windows: Windows = hello if hello is not None else windows or Windows()
        self.mux = Mux(self, handler, peer, self._windows, is_agent=hello is not None)
        self._connect_by = now + connect_timeout_s
        self._early: list[tuple[int, bytes]] = []
        self._early_bytes = 0
        self._drain_by = float("inf")
        self._drain_said: Drain | None = None
        self._drain_heard: Drain | None = None
        self._close_said = False
        self._close_heard = False
        self._closed_with: Close | None = None
        self._ping_at = float("inf")
        self._ping_id = 0
        self._pings: dict[bytes, float] = {}
        self._grace_until = 0.0
        self._answer_by = float("inf")
        self._is_asked = False
        self._keep_alive = keep_alive
        self._idle_timeout_s = idle_timeout_s
        self._silence_s: float | None = None
        self._due = self._connect_by
        if hello is not None:
            self.mux.send_control(0, frames.HELLO, encode_control(hello))

    # --- bytes in and out

    def receive(self, lane: int, data: bytes, now: float) -> None:
        """Takes what arrived on a lane; hot path. Never raises for the peer's sake."""
        if self.state is not State.OPEN:
            if self.state is State.CLOSED:
                return
            if self.state is State.CONNECTING and lane:
                self._hold(lane, data)
                return
        try:
            self.mux.receive(lane, data, now)
            if self._early and self.state is State.OPEN:
                self._release(now)
        except SessionBroken as error:
            self._break(error)
        if self.state is State.DRAINING:
            self._settle()

    def receive_datagram(self, data: bytes) -> None:
        """Takes a datagram that came beside the lanes; those that come before the session is open are lost."""
        if self.state in (State.OPEN, State.DRAINING):
            self.mux.datagrams.receive(data)

    def data_to_send(self) -> list[tuple[int, bytes]]:
        """What to write on which lane, in order; after it, `closed_with` says whether the link is to be closed."""
        if self.state is State.DRAINING:
            self._settle()
        return self.mux.data_to_send()

    def flushed(self) -> None:
        """What `data_to_send` gave is with the link, which has paused the lanes of which it has too much."""
        self.mux.flushed()

    @property
    def closed_with(self) -> Close | None:
        """Set when the session is over: the code and the reason to close the link with."""
        return self._closed_with

    # --- what the shell does

    def set_lanes(self, lanes: int, bulk_from: int, now: float) -> None:
        """What the link has now. A lane that comes later is pinged at once, so that the peer watches it from then on."""
        mux = self.mux
        known = len(mux.all_lanes())
        mux.set_lanes(lanes, bulk_from)
        if self.state in (State.OPEN, State.DRAINING):
            for lane in mux.all_lanes()[known:]:
                self._ping_lane(lane, now)

    def drain(self, deadline_s: float, reason: str, now: float) -> None:
        """No more exchanges are opened at either end; when all are over, or after the deadline, the session closes.

        Before the session is open, and after it is closed, there is nothing to drain: it closes at once.
        """
        if self.state is State.CONNECTING:
            self.close(Draining(reason or "going away"))
        elif self.state is State.CLOSED or self._drain_said is not None:
            return
        else:
            self._say_drain(deadline_s, reason)
            self._drain_by = min(self._drain_by, now + deadline_s)
            self._user.on_session_draining(deadline_s)

    def check(self, within_s: float, now: float) -> None:
        """Asks the peer for a sign of life at once; without one `within_s` from now the session is over.

        While every lane is full of what the peer has not taken nothing can be asked: then the next round of pings has to do.
        """
        if self.state not in (State.OPEN, State.DRAINING) or self._is_asked:
            return
        self._is_asked = True
        self._ping(now)
        if self._pings:
            self._answer_by = now + within_s

    def close(self, error: EdgetunError | None) -> None:
        """Closes now: the peer is told why, every open exchange is reset."""
        if self.state is State.CLOSED:
            return
        code, reason = (error.presentation.close_code, str(error)) if error is not None else (0, "")
        self._end(Event.CLOSE_SAID, error, Close(code=code, reason=reason[:1024]), tell=True)

    def lost(self, error: EdgetunError | None) -> None:
        """The link is gone."""
        if self.state is State.CLOSED:
            return
        if error is None and not self._close_heard:
            error = SessionLost("the peer closed the connection without a word")
        self._end(Event.LOST, error, Close(), tell=False)

    # --- time

    def next_timer(self) -> float | None:
        """When `handle_timer` is due, or None when the session is over."""
        if self.state is State.CLOSED:
            return None
        if self.state is State.CONNECTING:
            self._due = self._connect_by
        else:
            answer_by = max(self._answer_by, self._grace_until)
            self._due = min(self._ping_at, self._dead_at(), self._drain_by, answer_by)
        return self._due

    def handle_timer(self, now: float) -> None:
        """Pings, and gives up what took too long."""
        if self.state is State.CLOSED:
            return
        if self.state is State.CONNECTING:
            if now >= self._connect_by:
                waited_for = "WELCOME" if self.hello is not None and self._is_agent else "HELLO"
                self._silent(SessionLost(f"no {waited_for} came in time"))
            return
        assert self.welcome is not None
        interval = self.welcome.ping_interval_s
        if now - self._due > interval:
            # This process itself stood still (a laptop that slept): what the peer sent meanwhile is still to be read.
            self._grace_until = now + interval
        if now >= self._dead_at():
            self._silent(self._why_dead(now))
        elif now >= max(self._answer_by, self._grace_until):
            self._silent(SessionLost("the peer did not answer when it was asked whether it is there"))
        elif now >= self._drain_by:
            self.close(Draining("the deadline of the drain passed"))
        elif now >= self._ping_at:
            self._ping(now)

    @property
    def _is_agent(self) -> bool:
        return self.mux.is_agent

    def _dead_at(self) -> float:
        assert self.welcome is not None
        last = min((lane.received_at for lane in self._watched()), default=float("inf"))
        return max(last + self.welcome.dead_after_s, self._grace_until)

    def _watched(self) -> list[Lane]:
        """Lanes on which the peer's silence means something: regular ones that have carried something, and whatever it pings.

        Peers of before did not ping their bulk lanes.
        """
        regular = self.mux.regular_lanes()
        return [lane for lane in self.mux.all_lanes() if lane.is_watched or (lane.received_at and lane in regular)]

    def _why_dead(self, now: float) -> SessionLost:
        assert self.welcome is not None
        limit = self.welcome.dead_after_s
        watched = self._watched()
        silent = [lane.number for lane in watched if now - lane.received_at >= limit]
        if len(silent) == len(watched):
            return SessionLost(f"the peer sent nothing for {limit:g} s")
        return SessionLost(f"lane {silent[0] if silent else 0} carried nothing for {limit:g} s")

    def _ping(self, now: float) -> None:
        """One round: a ping over every lane, so that a lane which no longer carries is noticed by both ends."""
        assert self.welcome is not None
        self._ping_at = now + self.ping_interval_s
        if self._is_left_to_agent(now):
            return
        self._pings.clear()
        if self._keep_alive is not None:
            self._silence_s = now - self._last_received() + (self.rtt_s or 0.0)
        for lane in self.mux.all_lanes():
            self._ping_lane(lane, now)

    def _ping_lane(self, lane: Lane, now: float) -> None:
        if lane.is_paused:
            return  # bytes wait on it already
        self._ping_id += 1
        nonce = self._ping_id.to_bytes(NONCE_BYTES, "big")
        if lane in self.mux.regular_lanes():
            self._pings[nonce] = now  # on a bulk lane it waits behind bodies, and would tell of their size
        self.mux.send_control(lane.number, frames.PING, nonce)

    @property
    def ping_interval_s(self) -> float:
        """How often this end pings now; 0 before the session is open."""
        if self.welcome is None:
            return 0.0
        return self.welcome.ping_interval_s if self._keep_alive is None else self._keep_alive.interval_s

    def _last_received(self) -> float:
        return max((lane.received_at for lane in self.mux.all_lanes()), default=0.0)

    def _is_left_to_agent(self, now: float) -> bool:
        """At the exit node: nothing is under way and the agent keeps the path open, as seldom as the path bears."""
        if self._is_agent or self._is_asked or self.mux.in_flight or not self._tells_address or self.rtt_s is None:
            return False
        assert self.welcome is not None
        # Before the agent would be dead there has to be time for an answer.
        ask_at = self._dead_at() - (1 - SHARE_OF_DEAD_AFTER) * self.welcome.dead_after_s * 0.8
        if now >= ask_at:
            return False
        self._ping_at = min(self._ping_at, ask_at)
        return True

    @property
    def _tells_address(self) -> bool:
        """At the exit node: the agent asked to be told where its packets come from."""
        return not self._is_agent and self.hello is not None and FEATURE in self.hello.features

    # --- what the mux hands up

    def on_control(self, lane: int, kind: int, payload: bytes, now: float) -> None:
        """A control frame; raises `SessionBroken` when it does not belong here."""
        if kind == frames.PING and self.state is not State.CONNECTING:
            self.mux.lanes[lane].is_watched = True
            if self._tells_address:
                payload = (payload + self._user.observed_address())[: frames.MAX_PING_BYTES]
            self.mux.send_pong(lane, payload)
        elif kind == frames.PONG and self.state is not State.CONNECTING:
            self._pong(payload, now)
        elif lane:
            raise SessionBroken(f"{name_of(kind)} on lane {lane}; it belongs on lane 0")
        elif kind == frames.HELLO and self.state is State.CONNECTING and not self._is_agent:
            self._on_hello(decode_control(kind, payload, Hello), now)
        elif kind == frames.WELCOME and self.state is State.CONNECTING and self._is_agent:
            self._on_welcome(decode_control(kind, payload, Welcome), now)
        elif kind == frames.REFUSE and self.state is State.CONNECTING and self._is_agent:
            self._on_refuse(decode_control(kind, payload, Refusal))
        elif kind == frames.DRAIN and self.state in (State.OPEN, State.DRAINING) and self._drain_heard is None:
            self._on_drain(decode_control(kind, payload, Drain), now)
        elif kind == frames.CLOSE:
            self._on_close(decode_control(kind, payload, Close))
        else:
            raise SessionBroken(f"{name_of(kind)} while {self.state.value}")

    def on_first_frame_before_hello(self, kind: int) -> None:
        """An exchange's frame before the session is open."""
        raise SessionBroken(f"{name_of(kind)} while {self.state.value}; the first frame is HELLO or its answer")

    def on_ids_exhausted(self) -> None:
        """All exchange ids are used up: this session drains, and the agent opens another."""
        if self.state is State.OPEN:
            self._say_drain(30.0, "all exchange ids are used")
            self._drain_by = self.mux.now + 30.0
            self._user.on_session_draining(30.0)

    def on_bug(self, error: Exception) -> None:
        self._user.on_bug(error)

    def wake(self) -> None:
        self._user.wake()

    # --- hello

    def _on_hello(self, hello: Hello, now: float) -> None:
        self.hello = hello
        common = set(hello.versions) & set(VERSIONS)
        if not common:
            spoken = ", ".join(map(str, hello.versions[:8])) or "none"
            self._refuse(
                Refusal(
                    code=ProtocolError.presentation.close_code,
                    reason=f"the agent speaks protocol versions {spoken}, this exit node {', '.join(map(str, VERSIONS))}; "
                    "bring the older of the two up to date",
                    retry_after_s=-1.0,
                )
            )
            return
        problem = _check_windows(hello)
        if problem:
            raise SessionBroken(f"HELLO: {problem}")
        answer = self._user.on_hello(hello)
        if isinstance(answer, Refusal):
            self._refuse(answer)
            return
        windows = self._windows
        self.welcome = msgspec.structs.replace(
            answer,
            version=max(common),
            exchange_window=windows.exchange_window,
            session_window=windows.session_window,
            max_exchanges=windows.max_exchanges,
        )
        self.mux.send_control(0, frames.WELCOME, encode_control(self.welcome))
        self._open(hello, now)

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.mux.send_control(0, frames.REFUSE, encode_control(refusal))
        error = error_from_code(refusal.code, refusal.reason)
        self._end(Event.REFUSED, error, Close(code=refusal.code, reason=refusal.reason[:1024]), tell=False)

    def _on_welcome(self, welcome: Welcome, now: float) -> None:
        if welcome.version not in VERSIONS:
            raise SessionBroken(f"WELCOME to protocol version {welcome.version}, which was not offered")
        if not 0.01 <= welcome.ping_interval_s <= 3600 or not 0.01 <= welcome.dead_after_s <= 86400:
            raise SessionBroken("WELCOME: ping_interval_s or dead_after_s is out of bounds")
        problem = _check_windows(welcome)
        if problem:
            raise SessionBroken(f"WELCOME: {problem}")
        self.welcome = welcome
        self._open(welcome, now)

    def _on_refuse(self, refusal: Refusal) -> None:
        if not -1 <= refusal.retry_after_s <= MAX_RETRY_AFTER_S:
            refusal = msgspec.structs.replace(refusal, retry_after_s=0.0)
        self.refusal = refusal
        self._end(Event.REFUSED, error_from_code(refusal.code, refusal.reason), Close(), tell=False)

    def _open(self, theirs: Windows, now: float) -> None:
        self._move(Event.ACCEPTED)
        self.mux.start(theirs)
        assert self.welcome is not None
        if self._keep_alive is not None:
            if FEATURE in self.welcome.features:
                self._keep_alive.begin(self.welcome.ping_interval_s, self.welcome.dead_after_s, self._idle_timeout_s)
            else:
                self._keep_alive = None  # an exit node that tells no address: a lost binding would not be noticed
        self._ping(now)
        self._user.on_session_open()

    def _hold(self, lane: int, data: bytes) -> None:
        """Lanes are independent: an exchange's first frames may overtake WELCOME. They wait, within a bound."""
        self._early_bytes += len(data) + 64
        if not self._is_agent:
            self._break(SessionBroken(f"bytes on lane {lane} before HELLO was answered"))
        elif self._early_bytes > MAX_EARLY_BYTES:
            self._break(SessionBroken(f"more than {MAX_EARLY_BYTES} bytes came before WELCOME"))
        else:
            self._early.append((lane, data))

    def _release(self, now: float) -> None:
        early, self._early = self._early, []
        for lane, data in early:
            if self.state is not State.CLOSED:
                self.mux.receive(lane, data, now)

    # --- ping

    def _pong(self, payload: bytes, now: float) -> None:
        sent_at = self._pings.pop(payload[:NONCE_BYTES], None)
        if sent_at is None:
            return  # of an earlier round
        if self._is_asked:
            self._is_asked = False
            self._answer_by = float("inf")
            self._user.on_session_answered()
        sample = max(now - sent_at, 1e-6)
        self.rtt_s = sample if self.rtt_s is None else self.rtt_s + (sample - self.rtt_s) / 8
        self.mux.rtt_s = self.rtt_s
        silence_s, self._silence_s = self._silence_s, None
        if self._keep_alive is not None and silence_s is not None:
            self._keep_alive.answered(payload[NONCE_BYTES:], silence_s, now)

    # --- drain and close

    def _say_drain(self, deadline_s: float, reason: str) -> None:
        self._move(Event.DRAIN_SAID)
        self.mux.stop_opening(Draining(f"the session is draining: {reason or 'going away'}"))
        self.mux.end_flows()
        self._drain_said = Drain(deadline_s=deadline_s, reason=reason[:1024], last_opened=self.mux.last_opened)
        self.mux.send_control(0, frames.DRAIN, encode_control(self._drain_said))

    def _on_drain(self, drain: Drain, now: float) -> None:
        if not 0 <= drain.deadline_s <= MAX_DRAIN_S:
            raise SessionBroken("DRAIN: deadline_s is out of bounds")
        self._drain_heard = drain
        self._move(Event.DRAIN_HEARD)
        self.mux.expect_no_more_than(drain.last_opened)
        self._drain_by = min(self._drain_by, now + drain.deadline_s + CLOSE_GRACE_S)
        if self._drain_said is None:
            self._say_drain(drain.deadline_s, drain.reason)
            self._user.on_session_draining(drain.deadline_s)

    def _settle(self) -> None:
        """While draining: says CLOSE when nothing is left here, and ends when both have."""
        if not self._close_said and self._drain_heard is not None and self.mux.is_idle:
            self._close_said = True
            self.mux.send_control(0, frames.CLOSE, encode_control(Close()))
        if self._close_said and self._close_heard:
            self._end(Event.FINISHED, None, Close(), tell=False)

    def _on_close(self, close: Close) -> None:
        if self.state is State.DRAINING and close.code == 0:
            self._close_heard = True  # `_settle` follows: ours may still be on other lanes
            return
        self._close_heard = True
        error = error_from_code(close.code, close.reason) if close.code else None
        self._end(Event.CLOSE_HEARD, error, Close(), tell=False)

    def _break(self, error: SessionBroken) -> None:
        if self.state is State.CLOSED:
            return
        code = error.presentation.close_code
        self._end(Event.BROKEN, error, Close(code=code, reason=str(error)[:1024]), tell=True)

    def _silent(self, error: EdgetunError) -> None:
        if self._keep_alive is not None and self.state is not State.CONNECTING and not self.mux.in_flight:
            self._keep_alive.died(self._due)
        code = error.presentation.close_code
        self._end(Event.SILENT, error, Close(code=code, reason=str(error)[:1024]), tell=True)

    def _end(self, event: Event, error: EdgetunError | None, close: Close, *, tell: bool) -> None:
        if self.state is State.CLOSED:
            return
        self._move(event)
        if tell:
            self.mux.send_control(0, frames.CLOSE, encode_control(close))
        self._closed_with = close
        self._early = []
        why = SessionLost(f"the session ended: {error}" if error is not None else "the session ended")
        self.mux.stop_opening(why)
        self._user.on_session_closed(error)
        self.mux.reset_all(why)
        self._user.wake()

    def _move(self, event: Event) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise SessionBroken(f"{event.value} while {self.state.value}") from None


def _check_windows(windows: Windows) -> str | None:
    """What is wrong with the windows a peer announces, or None."""
    for name in ("exchange_window", "session_window"):
        value = getattr(windows, name)
        if not 0 <= value <= frames.MAX_CREDIT:
            return f"{name} {value} is out of bounds"
    if windows.max_exchanges < 0:
        return "max_exchanges is negative"
    return None

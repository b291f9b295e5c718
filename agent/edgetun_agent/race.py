"""Which transport a session gets: QUIC first, TLS when QUIC fails or is slow. Pure; udp_memory.py remembers dead UDP.

A lost packet is no reason to fall back: QUIC repeats its first flight after a second, so the head start is two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, assert_never

from edgetun_agent.udp_memory import UdpMemory
from edgetun_core.errors import EdgetunError

Transport = Literal["quic", "tls", "websocket"]
Wanted = Literal["auto", "quic", "tls", "websocket"]

HEAD_START_S: Final = 2.0


# What happens to a race.


@dataclass(frozen=True, slots=True)
class Begin:
    """Go."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A transport's handshake is done."""

    transport: Transport


@dataclass(frozen=True, slots=True)
class Failed:
    """A transport could not be opened."""

    transport: Transport
    error: EdgetunError


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


RaceEvent = Begin | Opened | Failed | Tick


# What is to be done.


@dataclass(frozen=True, slots=True)
class Dial:
    """Start opening a transport."""

    transport: Transport


@dataclass(frozen=True, slots=True)
class Stop:
    """Give a transport up, whether it is opening or open: another has won."""

    transport: Transport


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Say `Tick` at this time if nothing else happens."""

    at: float


@dataclass(frozen=True, slots=True)
class Won:
    """The race is over; `beat_quic` when QUIC was tried and did not make it in time."""

    transport: Transport
    beat_quic: bool


@dataclass(frozen=True, slots=True)
class GaveUp:
    """No transport could be opened; the errors in the order of preference."""

    errors: tuple[EdgetunError, ...]


RaceEffect = Dial | Stop | WaitUntil | Won | GaveUp


class Race:
    """Happy eyeballs over transports, in order of preference (RFC 8305's idea, for QUIC and TLS)."""

    def __init__(self, transports: tuple[Transport, ...], head_start_s: float = HEAD_START_S) -> None:
        self._order = transports
        self._head_start_s = head_start_s
        self._waiting = list(transports)
        self._running: list[Transport] = []
        self._errors: dict[Transport, EdgetunError] = {}
        self._next_at = float("inf")
        self._winner: Transport | None = None

    def handle(self, event: RaceEvent, now: float) -> list[RaceEffect]:
        """Takes what happened, says what to do."""
        match event:
            case Begin():
                return self._start_next(now)
            case Tick():
                return self._start_next(now) if now >= self._next_at and self._winner is None else []
            case Opened(transport):
                return self._opened(transport)
            case Failed(transport, error):
                return self._failed(transport, error, now)
            case _:
                assert_never(event)

    def _start_next(self, now: float) -> list[RaceEffect]:
        if not self._waiting:
            return []
        transport = self._waiting.pop(0)
        self._running.append(transport)
        effects: list[RaceEffect] = [Dial(transport)]
        self._next_at = float("inf")
        if self._waiting:
            self._next_at = now + self._head_start_s
            effects.append(WaitUntil(self._next_at))
        return effects

    def _opened(self, transport: Transport) -> list[RaceEffect]:
        if self._winner is not None:
            return [Stop(transport)]
        self._winner = transport
        losers = [other for other in self._running if other != transport]
        beat_quic = transport != "quic" and ("quic" in losers or "quic" in self._errors)
        return [Won(transport, beat_quic), *(Stop(other) for other in losers)]

    def _failed(self, transport: Transport, error: EdgetunError, now: float) -> list[RaceEffect]:
        if transport in self._running:
            self._running.remove(transport)
        self._errors[transport] = error
        if self._winner is not None:
            return []
        if self._waiting:
            return self._start_next(now)
        if not self._running:
            return [GaveUp(tuple(self._errors[other] for other in self._order))]
        return []


def decide_transports(
    wanted: Wanted, has_quic: bool, has_tls: bool, udp: UdpMemory, now: float, has_websocket: bool = False
) -> tuple[Transport, ...]:
    """The transports to race for an endpoint, in order; empty when it offers none of those wanted.

    A WebSocket costs two encryptions and comes last: when the others failed, or each had its head start.
    """
    quic: tuple[Transport, ...] = ("quic",) if has_quic and wanted in ("auto", "quic") else ()
    tls: tuple[Transport, ...] = ("tls",) if has_tls and wanted in ("auto", "tls") else ()
    websocket: tuple[Transport, ...] = ("websocket",) if has_websocket and wanted in ("auto", "websocket") else ()
    return (*tls, *quic, *websocket) if udp.is_dead(now) else (*quic, *tls, *websocket)


def decide_better(present: Transport, has_quic: bool, has_tls: bool) -> tuple[Transport, ...]:
    """The transports that a session on `present` would be better on, the best first."""
    if present == "quic":
        return ()
    quic: tuple[Transport, ...] = ("quic",) if has_quic else ()
    return (*quic, "tls") if present == "websocket" and has_tls else quic

"""One QUIC connection's life, whichever library does the packets and whatever its streams carry: datagrams in, datagrams out,
its timer and its end.

Hot path: receives of one burst are handed to the library at once, their events delivered, and one transmit per connection and
loop tick follows in `call_soon` after the writes they cause. The timer stays where it is when the library's moves back (every
packet moves it); that is made good when it fires.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from edgetun_core.errors import EdgetunError, ProtocolError, SessionLost, error_from_code
from edgetun_core.transport.quic_connection import IDLE_TIMEOUT_S, STATELESS_RESET, BareConnection, Ended
from edgetun_core.transport.udp import Address, plain_address

log = logging.getLogger("edgetun.transport")

# Both libraries log every close of a peer as a warning; what matters of it reaches the connection's user.
logging.getLogger("quic").setLevel(logging.ERROR)

CLOSE_TIMEOUT_S: Final = 1.0


class Socket(Protocol):
    """The socket side of a connection: the dialler's own socket, or a listener's shared one."""

    @property
    def is_blocked(self) -> bool: ...
    def send(self, datagrams: list[bytes], address: Address) -> None: ...
    def when_writable(self, callback: Callable[[], None]) -> None: ...


S = TypeVar("S", bound=Socket)
Q = TypeVar("Q", bound=BareConnection)


class QuicPeer(Generic[S, Q]):
    """A connection without a meaning for its streams; a subclass gives it one."""

    __slots__ = (
        "_closing",
        "_deadline",
        "_ended",
        "_endpoint",
        "_loop",
        "_quic",
        "_scheduled",
        "_timer",
        "_timer_at",
        "ended_by",
        "engine",
        "farewell",
        "is_established",
    )

    def __init__(self, engine: str, quic: Q, endpoint: S) -> None:
        self.engine = engine
        self.is_established = False
        """The handshake is through."""
        self.ended_by: Ended | None = None
        self.farewell: list[bytes] = []
        """The last datagrams, to be repeated for a peer that did not hear them."""
        self._quic = quic
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closing: tuple[int, str] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._ended = False

    @property
    def peer_address(self) -> tuple[str, int]:
        return plain_address(self._quic.peer)

    @property
    def rtt_s(self) -> float | None:
        return self._quic.rtt_s

    def close(self, code: int, reason: str) -> None:
        """Closes when what was written is sent and acknowledged, within `CLOSE_TIMEOUT_S`."""
        if self._closing is not None or self._ended:
            return
        self._closing = (code, reason)
        self._deadline = self._loop.call_later(CLOSE_TIMEOUT_S, self._finish_close)
        self._schedule()

    def abort(self) -> None:
        """Ends the connection at once."""
        self.fail(SessionLost("the link was dropped on this side"))

    def fail(self, error: EdgetunError | None) -> None:
        """Ends the connection at once, telling the peer as far as one packet can."""
        if self._ended:
            return
        code, reason = (
            (self._closing or (self._code_of(None), "")) if error is None else (self._code_of(error), error.message)
        )
        try:
            self._quic.end(code, reason[:200])
            self._quic.transmit(time.monotonic(), self._send_farewell)
        except Exception:
            log.exception("quic: %s could not say goodbye to %s", self.engine, self.peer_address)
        self._finish(error)

    def _send_farewell(self, datagrams: list[bytes], address: Address) -> None:
        self.farewell.extend(datagrams)
        self._endpoint.send(datagrams, address)

    # --- called by the endpoint

    def take(self, data: bytes, segment: int, address: Address, now: float) -> None:
        """Datagrams came in; `pump` follows at the end of the burst."""
        if self._ended:
            return
        try:
            self._quic.take(data, segment, address, now)
        except Exception as error:  # noqa: BLE001 - the edge to a peer: whatever trips the library ends one link, not the process
            self._tripped(error)

    def pump(self) -> None:
        """Delivers what the library made of the datagrams."""
        if self._ended:
            return
        try:
            self._deliver()
        except Exception as error:  # noqa: BLE001 - as above
            self._tripped(error)
            return
        if self._is_over():
            return
        ended = self._quic.ended
        if ended is not None:
            self._peer_ended(ended)
        else:
            self._schedule()

    def _is_over(self) -> bool:
        return self._ended  # asked after calls that may have ended the connection

    def _tripped(self, error: Exception) -> None:
        log.error("quic: %s tripped over datagrams of %s", self.engine, self.peer_address, exc_info=error)
        self.fail(ProtocolError("the QUIC library could not go on with what came in"))

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.transmit)

    def transmit(self) -> None:
        """Sends what may be sent now, closes when it is time, and sets the timer."""
        self._scheduled = False
        if self._ended:
            return
        if self._endpoint.is_blocked:
            self._endpoint.when_writable(self.transmit)
            return
        quic = self._quic
        try:
            self._send_all()
        except SessionLost as error:
            self.fail(error)
            return
        except Exception as error:  # noqa: BLE001 - as above
            self._tripped(error)
            return
        if self._is_over():  # the socket reported that the peer is gone
            return
        self._after_send()
        if self._closing is not None and not self._has_more() and quic.has_settled():
            self._finish_close()
            return
        at = quic.get_timer()
        if at is not None and (self._timer is None or at < self._timer_at - 0.001):
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(at)

    def _set_timer(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        at = self._quic.get_timer()
        if at is None:
            return
        now = time.monotonic()
        if at > now + 0.0005:
            self._set_timer(at)
            return
        try:
            self._quic.handle_timer(max(now, at))
        except Exception as error:  # noqa: BLE001 - as above
            self._tripped(error)
            return
        self.pump()

    # --- what a subclass gives

    def _deliver(self) -> None:
        """Has the library tell its events."""
        raise NotImplementedError

    def _send_all(self) -> None:
        """Sends what the library has; a subclass feeds it on the way."""
        self._quic.transmit(time.monotonic(), self._endpoint.send)

    def _after_send(self) -> None:
        """Writing may go on where it was held back."""

    def _has_more(self) -> bool:
        """Whether something is written that the library does not have yet."""
        return False

    def _code_of(self, error: EdgetunError | None) -> int:
        """The application's code for the connection's end (RFC 9000 §20.2)."""
        return 0 if error is None else error.presentation.close_code

    def _ended_with(self, error: EdgetunError | None) -> None:
        """The connection is over; called once."""
        raise NotImplementedError

    # --- the end

    def _finish_close(self) -> None:
        self.fail(None)

    def _peer_ended(self, ended: Ended) -> None:
        error: EdgetunError | None
        if self._closing is not None or (ended.is_application and ended.code == self._code_of(None)):
            error = None
        elif ended.is_application:
            error = error_from_code(ended.code, ended.reason)
        elif "idle" in ended.reason.lower():
            error = SessionLost(f"nothing was heard of {self.peer_address[0]} for {IDLE_TIMEOUT_S:g} s")
        elif ended.reason == STATELESS_RESET:
            error = SessionLost(f"{self.peer_address[0]} was started anew and knows nothing of it")
        else:
            error = SessionLost(f"QUIC error {ended.code:#x} ({ended.reason or 'no reason given'})")
        self.ended_by = ended
        # A library that found the error itself still has to tell the peer.
        try:
            self._quic.transmit(time.monotonic(), self._send_farewell)
        except Exception:
            log.exception("quic: %s could not answer the end of %s", self.engine, self.peer_address)
        self._finish(error)

    def _finish(self, error: EdgetunError | None) -> None:
        if self._ended:
            return
        self._ended = True
        for handle in (self._timer, self._deadline):
            if handle is not None:
                handle.cancel()
        self._ended_with(error)
        self._loop.call_soon(self._quic.let_go)  # not under the library's own call

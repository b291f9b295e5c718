"""The sending half of an exchange: a body on its way out, within the credit of the exchange and of the session.

Hot path: `_send`. A sender that has used up the credit, or whose lane is paused, pauses its producer and keeps what is still
pushed, up to `MAX_PENDING_BYTES`; beyond that the exchange is reset (docs/protocol.md, "Credit").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.errors import EdgetunError, LimitExceeded
from edgetun_core.http.message import Fields, RequestHead, ResponseHead
from edgetun_core.wire.flow import BODY, ENDED, Flow
from edgetun_core.wire.frames import (
    BULK_BODY_BYTES,
    HEADER,
    MAX_CREDIT,
    MAX_DATA_BYTES,
    WORD_DATA,
    WORD_DATA_END,
    WORD_MOVE,
    WORD_TRAILERS,
    SessionBroken,
)
from edgetun_core.wire.heads import body_length, encode_trailers
from edgetun_core.wire.hello import MAX_EXCHANGE_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgetun_core.wire.lanes import Lane
    from edgetun_core.wire.mux import Mux

MAX_PENDING_BYTES: Final = MAX_EXCHANGE_WINDOW_BYTES + MAX_DATA_BYTES
"""What a paused producer may still push: a read, or the credit it had given itself when it is a session too."""

MAX_FRESH_BYTES: Final = 512 * 1024
"""What bodies put on a lane within one tick of the loop: a socket may be read many times in one, before the link can say that it has enough."""

_pack = HEADER.pack


class Sending:
    """The state of an exchange, and what it sends. `Exchange` (receiving.py) adds what it receives."""

    __slots__ = (
        "flow",
        "head",
        "id",
        "is_upgrade",
        "lane",
        "mux",
        "receiving",
        "recv_lane",
        "recv_left",
        "recv_low",
        "send_left",
        "sending",
        "take",
    )

    mux: Mux
    id: int
    lane: Lane
    """Where we send."""
    recv_lane: Lane
    """Where the peer sends."""
    sending: int
    receiving: int
    send_left: int
    recv_left: int
    recv_low: int
    """Below this it is time to give credit back."""
    flow: Flow | None
    is_upgrade: bool
    take: Callable[[bytes, bool], None]
    """Takes the peer's body."""
    head: RequestHead | ResponseHead
    """The head of what we send; set when a body follows it."""

    # --- what the two sides of an exchange do differently

    def _pause_producer(self) -> None:
        raise NotImplementedError

    def _resume_producer(self) -> None:
        raise NotImplementedError

    def _sent_end(self) -> None:
        """Our direction has ended."""
        raise NotImplementedError

    def fail(self, error: EdgetunError) -> None:
        """Ends the exchange for both sides."""
        raise NotImplementedError

    # --- sending

    def _send(self, data: bytes, end: bool) -> None:
        """Sends a piece of the body; the caller has made sure that `sending` is BODY."""
        mux = self.mux
        size = len(data)
        flow = self.flow
        if (
            size > self.send_left
            or size > mux.send_left
            or size > MAX_DATA_BYTES
            or (flow is not None and flow.is_stopped)
        ):
            self._send_slowly(data, end)
            return
        mux.send_left -= size
        if end:
            lane = self.lane
            out = lane.out
            if not out:
                mux.mark(lane)
            out.append(_pack(WORD_DATA_END | size, self.id))
            if size:
                out.append(data)
            self.sending = ENDED
            self._sent_end()
            return
        if not size:
            return
        if flow is None:
            flow = self._make_flow()
        if mux.has_bulk and not flow.has_moved:
            self._consider_bulk(flow, size)
        lane = self.lane
        out = lane.out
        if not out:
            mux.mark(lane)
        out.append(_pack(WORD_DATA | size, self.id))
        out.append(data)
        flow.sent += size
        self.send_left -= size
        lane.fresh += size
        if lane.fresh > MAX_FRESH_BYTES and not lane.is_paused:
            mux.fill_lane(lane)
        if not self.send_left or not mux.send_left or lane.is_paused:
            self._stop(flow)

    def _send_slowly(self, data: bytes, end: bool) -> None:
        """Queues behind what waits, sends what credit allows, and stops the producer if something is left."""
        flow = self._make_flow()
        size = len(data)
        # A producer may push one piece of any size (it has the bytes already); what it pushes after the pause is bounded.
        if flow.is_stopped and flow.pending_bytes + size > MAX_PENDING_BYTES:
            self.fail(LimitExceeded(f"{flow.pending_bytes + size} bytes were pushed at a paused exchange"))
            return
        if size:
            flow.pending.append(data)
            flow.pending_bytes += size
        flow.pending_end = end
        self.pump()

    def _send_trailers(self, fields: Fields) -> None:
        """Ends our direction with trailers, behind what waits; the caller has made sure that `sending` is BODY."""
        try:
            block = encode_trailers(fields)
        except EdgetunError as error:
            self.fail(error)
            return
        flow = self.flow
        if flow is not None and flow.is_stopped:
            flow.trailers = block
            flow.pending_end = True
            self.pump()
        else:
            self._write_trailers(block)

    def _write_trailers(self, block: bytes) -> None:
        lane = self.lane
        if not lane.out:
            self.mux.mark(lane)
        lane.out.append(_pack(WORD_TRAILERS | len(block), self.id))
        lane.out.append(block)
        self.sending = ENDED
        self._sent_end()

    def pump(self) -> None:
        """Sends what waits as far as credit and lane allow; then resumes the producer, or waits for what is missing."""
        flow = self.flow
        if flow is None or self.sending != BODY:
            return
        mux = self.mux
        pending = flow.pending
        while pending and self.send_left > 0 and mux.send_left > 0 and not self.lane.is_paused:
            if mux.has_bulk and not flow.has_moved:
                self._consider_bulk(flow, flow.pending_bytes)
            lane = self.lane
            piece = self._next_piece(flow, min(self.send_left, mux.send_left, MAX_DATA_BYTES))
            size = len(piece)
            is_last = not pending and flow.pending_end and flow.trailers is None
            self.send_left -= size
            mux.send_left -= size
            flow.sent += size
            if not lane.out:
                mux.mark(lane)
            lane.fresh += size
            if lane.fresh > MAX_FRESH_BYTES:
                mux.fill_lane(lane)
            lane.out.append(_pack((WORD_DATA_END if is_last else WORD_DATA) | size, self.id))
            lane.out.append(piece)
            if is_last:
                self.sending = ENDED
                self._sent_end()
                return
        if not pending and flow.pending_end:
            if flow.trailers is not None:
                self._write_trailers(flow.trailers)
            else:
                self._write_empty_end()
        elif pending or self.send_left <= 0 or mux.send_left <= 0 or self.lane.is_paused:
            self._stop(flow)
        elif flow.is_stopped:
            flow.is_stopped = False
            self._resume_producer()

    def _write_empty_end(self) -> None:
        lane = self.lane
        if not lane.out:
            self.mux.mark(lane)
        lane.out.append(_pack(WORD_DATA_END, self.id))
        self.sending = ENDED
        self._sent_end()

    @staticmethod
    def _next_piece(flow: Flow, room: int) -> bytes | memoryview:
        """Takes up to `room` bytes from what waits, without a copy; the flush makes one."""
        first = flow.pending[0]
        left = len(first) - flow.offset
        if left <= room:
            flow.pending.popleft()
            piece = memoryview(first)[flow.offset :] if flow.offset else first
            flow.offset = 0
            flow.pending_bytes -= left
            return piece
        piece = memoryview(first)[flow.offset : flow.offset + room]
        flow.offset += room
        flow.pending_bytes -= room
        return piece

    def _stop(self, flow: Flow) -> None:
        """Pauses the producer, and sees to it that somebody calls `pump` when what is missing comes."""
        if self.send_left <= 0:
            pass  # CREDIT for this exchange pumps it
        elif self.mux.send_left <= 0:
            if not flow.in_blocked:
                flow.in_blocked = True
                self.mux.blocked.append(self)
        elif self.lane.is_paused and not flow.in_waiting:
            flow.in_waiting = True
            waiting = self.lane.waiting
            if isinstance(waiting, list):
                waiting.append(self)
            else:
                self.lane.waiting = [self]
        if not flow.is_stopped:
            flow.is_stopped = True
            if not flow.pending_end:
                self._pause_producer()

    def receive_credit(self, amount: int) -> None:
        """The peer takes `amount` bytes more."""
        if self.sending == ENDED:
            return
        self.send_left += amount
        if self.send_left > MAX_CREDIT:
            raise SessionBroken(f"exchange {self.id}: CREDIT adds up to more than {MAX_CREDIT}")
        if self.flow is not None and self.flow.is_stopped:
            self.pump()

    def _consider_bulk(self, flow: Flow, size: int) -> None:
        """Moves to a bulk lane when the body is announced to be large, or turns out so."""
        if not flow.sent:
            announced = body_length(self.head.fields)
            if announced is None or announced <= BULK_BODY_BYTES:
                return
        elif flow.sent + size <= BULK_BODY_BYTES:
            return
        flow.has_moved = True
        target = self.mux.choose_bulk_lane()
        old = self.lane
        if target is None or target is old:
            return
        if not old.out:
            self.mux.mark(old)
        old.out.append(_pack(WORD_MOVE | 4, self.id))
        old.out.append(target.number.to_bytes(4, "big"))
        target.load += 1
        self.lane = target

    def _make_flow(self) -> Flow:
        flow = self.flow
        if flow is None:
            flow = self.flow = Flow(self.mux.exchange_window, self.lane)
        return flow

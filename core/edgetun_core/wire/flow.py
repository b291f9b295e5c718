"""One exchange's share of a session: the state both of its ends have, its credit, and what waits for credit.

Hot path: `_send`, `receive_data`. What a short exchange does not need lives in `Flow`, which is made on first use.

Credit (docs/protocol.md, "Credit"): a sender that has used up the exchange's or the session's credit, or whose lane is
paused, pauses its producer and keeps what is still pushed, up to `MAX_PENDING_BYTES`; beyond that the exchange is reset. A
receiver gives credit back for what an unpaused sink took.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import EdgetunError, LimitExceeded, error_from_code
from edgetun_core.http.message import Fields, RequestHead, ResponseHead
from edgetun_core.wire.early import Early
from edgetun_core.wire.frames import (
    BULK_BODY_BYTES,
    BULK_PAYLOAD_BYTES,
    HEADER,
    MAX_CREDIT,
    MAX_DATA_BYTES,
    WORD_DATA,
    WORD_DATA_END,
    WORD_MOVE,
    WORD_TRAILERS,
    SessionBroken,
    encode_reset,
)
from edgetun_core.wire.heads import body_length, decode_trailers, encode_trailers
from edgetun_core.wire.hello import MAX_EXCHANGE_WINDOW_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgetun_core.wire.lanes import Lane
    from edgetun_core.wire.mux import Mux

# How far a direction is; `sending` and `receiving` of an exchange.
NO_HEAD: Final = 0
BODY: Final = 1
ENDED: Final = 2

MAX_PENDING_BYTES: Final = MAX_EXCHANGE_WINDOW_BYTES + MAX_DATA_BYTES
"""What a paused producer may still push: a read, or the credit it had given itself when it is a session too."""

_pack = HEADER.pack


def drop(data: bytes, end: bool) -> None:
    """Where data of an exchange that is over goes."""


class Flow:
    """What only longer exchanges need."""

    __slots__ = (
        "early",
        "granted_at",
        "has_moved",
        "held",
        "home",
        "in_blocked",
        "in_waiting",
        "interims",
        "is_paused",
        "is_stopped",
        "offset",
        "peer_moved",
        "pending",
        "pending_bytes",
        "pending_end",
        "sent",
        "trailers",
        "window",
    )

    def __init__(self, window: int, home: Lane) -> None:
        self.home = home
        # Receiving.
        self.window = window
        self.granted_at = 0.0
        self.is_paused = False
        """The sink asked for no more: credit is withheld."""
        self.held = 0
        """Bytes given to a paused sink."""
        self.interims = 0
        self.peer_moved = False
        self.early: Early | None = None
        # Sending.
        self.sent = 0
        self.has_moved = False
        self.is_stopped = False
        """The producer was asked for no more."""
        self.pending: deque[bytes] = deque()
        self.offset = 0
        """How much of the first pending piece is sent."""
        self.pending_bytes = 0
        self.pending_end = False
        self.trailers: bytes | None = None
        self.in_blocked = False
        self.in_waiting = False


class Exchange:
    """What the opening and the answering side of an exchange have in common."""

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

    # --- what the two sides do differently

    def _pause_producer(self) -> None:
        raise NotImplementedError

    def _resume_producer(self) -> None:
        raise NotImplementedError

    def _sent_end(self) -> None:
        """Our direction has ended."""
        raise NotImplementedError

    def _received_end(self) -> None:
        """The peer's direction is about to end."""
        raise NotImplementedError

    def receive_head(self, lane: Lane, block: bytes, end: bool) -> None:
        """A HEAD frame."""
        raise NotImplementedError

    def receive_interim(self, lane: Lane, block: bytes) -> None:
        """An INTERIM frame."""
        raise NotImplementedError

    def _trailers_taker(self) -> Callable[[Fields], None]:
        """Where the peer's trailers go."""
        raise NotImplementedError

    def deliver_reset(self, error: EdgetunError) -> None:
        """Tells our side that the exchange is over; the peer knows or is told."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Forgets the exchange."""
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
                if size >= BULK_PAYLOAD_BYTES:
                    lane.has_big = True
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
        if size >= BULK_PAYLOAD_BYTES:
            lane.has_big = True
        flow.sent += size
        self.send_left -= size
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
            lane.out.append(_pack((WORD_DATA_END if is_last else WORD_DATA) | size, self.id))
            lane.out.append(piece)
            if size >= BULK_PAYLOAD_BYTES:
                lane.has_big = True
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
    def _next_piece(flow: Flow, room: int) -> bytes:
        """Takes up to `room` bytes from what waits; a piece that fits is not copied."""
        first = flow.pending[0]
        left = len(first) - flow.offset
        if left <= room:
            flow.pending.popleft()
            piece = first[flow.offset :] if flow.offset else first
            flow.offset = 0
            flow.pending_bytes -= left
            return piece
        piece = first[flow.offset : flow.offset + room]
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
            self.lane.waiting.append(self)
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

    # --- receiving

    def receive_data(self, lane: Lane, data: bytes, end: bool) -> None:
        """A whole DATA frame."""
        size = len(data)
        if self.receiving != BODY or self.recv_lane is not lane:
            self.charge(lane, size)
            self.receive_piece(lane, data, end)
            return
        # `charge`, written out.
        self.recv_left -= size
        mux = self.mux
        mux.recv_left -= size
        if self.recv_left < 0 or mux.recv_left < 0:
            self._exceeded()
        if mux.recv_left < mux.recv_low:
            mux.grant_session()
        if end:
            take = self.take
            self._received_end()
            take(data, True)
            return
        if not size:
            raise SessionBroken(f"exchange {self.id}: empty DATA that does not end anything")
        flow = self.flow
        if flow is not None and flow.is_paused:
            flow.held += size
            mux.held += size
            self.take(data, False)
            return
        self.take(data, False)
        if self.recv_left < self.recv_low:
            self._grant()

    def charge(self, lane: Lane, size: int) -> None:
        """Takes a frame's payload off the credit; raises `SessionBroken` when there is none, or when no DATA can come now."""
        if self.receiving == NO_HEAD and self.recv_lane is lane:
            raise SessionBroken(f"exchange {self.id}: DATA before HEAD")
        if self.receiving == ENDED:
            raise SessionBroken(f"exchange {self.id}: DATA after the end")
        mux = self.mux
        self.recv_left -= size
        mux.recv_left -= size
        if self.recv_left < 0 or mux.recv_left < 0:
            self._exceeded()
        if self.recv_lane is not lane:
            early = self._early(lane)
            if early.is_complete:
                raise SessionBroken(f"exchange {self.id}: DATA after the end")
            early.taken += size
            mux.early_bytes += size
        if mux.recv_left < mux.recv_low:
            mux.grant_session()

    def receive_piece(self, lane: Lane, data: bytes, end: bool) -> None:
        """A frame's payload or a piece of it, which `charge` has seen. Nothing when the exchange ended meanwhile."""
        if self.receiving == ENDED:
            return
        if self.recv_lane is not lane:
            early = self._early(lane)
            early.data += data
            early.ends = end
            return
        if end:
            take = self.take
            self._received_end()
            take(data, True)
            return
        if not data:
            raise SessionBroken(f"exchange {self.id}: empty DATA that does not end anything")
        flow = self.flow
        if flow is not None and flow.is_paused:
            flow.held += len(data)
            self.mux.held += len(data)
        self.take(data, False)
        if self.recv_left < self.recv_low:
            self._grant()

    def receive_trailers(self, lane: Lane, block: bytes) -> None:
        """A TRAILERS frame, which ends the peer's direction."""
        if self.receiving == ENDED:
            raise SessionBroken(f"exchange {self.id}: TRAILERS after the end")
        if self.receiving == NO_HEAD and self.recv_lane is lane:
            raise SessionBroken(f"exchange {self.id}: TRAILERS before HEAD")
        if self.recv_lane is not lane:
            early = self._early(lane)
            if early.is_complete:
                raise SessionBroken(f"exchange {self.id}: TRAILERS after the end")
            early.trailers = block
            self.mux.count_early_trailers(block)
            return
        try:
            fields = decode_trailers(block)
        except EdgetunError as error:
            self.fail(error)
            return
        take = self._trailers_taker()
        self._received_end()
        take(fields)

    def receive_move(self, lane: Lane, target: Lane) -> None:
        """From here on the peer's direction comes on `target`; what came there already is next."""
        flow = self._make_flow()
        if self.receiving != BODY or self.recv_lane is not lane or flow.peer_moved or target is lane:
            raise SessionBroken(f"exchange {self.id}: MOVE to lane {target.number} out of place")
        flow.peer_moved = True
        early, flow.early = flow.early, None
        if early is not None and early.lane is not target:
            raise SessionBroken(
                f"exchange {self.id}: MOVE to lane {target.number}, but it came on lane {early.lane.number}"
            )
        self.recv_lane = target
        if early is None:
            return
        self.mux.release_early(early)
        data = early.data
        size = len(data)
        for start in range(0, size, MAX_DATA_BYTES):
            stop = start + MAX_DATA_BYTES
            self.receive_piece(target, bytes(data[start:stop]), early.ends and stop >= size)
        if early.ends and not size:
            self.receive_piece(target, b"", True)
        if early.trailers is not None and self.receiving == BODY:
            self.receive_trailers(target, early.trailers)

    def adopt(self, early: Early) -> None:
        """Takes over what came before the HEAD."""
        self.recv_left -= early.taken
        self.send_left += early.credit
        early.exchange = self
        if early.taken or early.is_complete:
            self._make_flow().early = early

    def receive_reset(self, code: int, message: str) -> None:
        """The peer gives the exchange up. It counts at once, on whatever lane it comes."""
        self.deliver_reset(error_from_code(code, message))

    def _early(self, lane: Lane) -> Early:
        """Where frames go that came on another lane than the present one."""
        flow = self._make_flow()
        early = flow.early
        if early is None:
            if flow.peer_moved:
                raise SessionBroken(f"exchange {self.id}: a frame on lane {lane.number} after MOVE to another")
            early = flow.early = Early(lane)
            early.exchange = self
        elif early.lane is not lane:
            raise SessionBroken(f"exchange {self.id}: frames on three lanes")
        return early

    def _exceeded(self) -> None:
        whose = f"exchange {self.id}" if self.recv_left < 0 else "the session"
        raise SessionBroken(f"more DATA than the credit of {whose} allows")

    def _grant(self) -> None:
        """Gives credit back when half of the window is used; widens a window that drains within two round trips."""
        if self.receiving != BODY:
            return
        flow = self._make_flow()
        if flow.is_paused or self.recv_left >= self.recv_low:
            return
        mux = self.mux
        rtt_s = mux.rtt_s
        if (
            rtt_s is not None
            and flow.granted_at
            and mux.now - flow.granted_at < 2 * rtt_s
            and flow.window < mux.max_exchange_window
        ):
            flow.window = min(2 * flow.window, mux.max_exchange_window)
            self.recv_low = flow.window // 2
        flow.granted_at = mux.now
        amount = flow.window - self.recv_left
        self.recv_left = flow.window
        mux.write_credit(self.lane, self.id, amount)

    def _pause_peer(self) -> None:
        """Our sink asks for no more."""
        if self.receiving != ENDED:
            self._make_flow().is_paused = True

    def _resume_peer(self) -> None:
        flow = self.flow
        if flow is None or not flow.is_paused:
            return
        flow.is_paused = False
        mux = self.mux
        mux.held -= flow.held
        flow.held = 0
        flow.granted_at = 0.0  # the pause says nothing of the path's speed
        if self.recv_left < self.recv_low:
            self._grant()
        if mux.recv_left < mux.recv_low:
            mux.grant_session()

    # --- ending

    def fail(self, error: EdgetunError) -> None:
        """Ends the exchange for both sides."""
        if self.sending == ENDED and self.receiving == ENDED:
            return
        self.mux.write_reset(self.lane, encode_reset(self.id, error))
        self.deliver_reset(error)

    def _forget(self) -> None:
        """What finishing has in common; `sending` and `receiving` are ENDED afterwards, so every later call is ignored."""
        self.sending = ENDED
        self.receiving = ENDED
        self.take = drop
        flow = self.flow
        if flow is not None:
            mux = self.mux
            mux.held -= flow.held
            flow.held = 0
            flow.is_paused = False
            if flow.early is not None:
                mux.release_early(flow.early)
                flow.early = None
            if flow.has_moved and self.lane is not flow.home:
                self.lane.load -= 1
            flow.pending.clear()
            flow.pending_bytes = 0

    def _make_flow(self) -> Flow:
        flow = self.flow
        if flow is None:
            flow = self.flow = Flow(self.mux.exchange_window, self.lane)
        return flow

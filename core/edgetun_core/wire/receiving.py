"""The receiving half of an exchange: the peer's body on its way to a sink, and the credit given back for it.

Hot path: `receive_data`. Credit goes back for what an unpaused sink took; what came on another lane than the present one waits
for MOVE (docs/protocol.md, "Credit" and "Lanes and MOVE").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.errors import EdgetunError, error_from_code
from edgetun_core.http.message import Fields
from edgetun_core.wire.early import Early
from edgetun_core.wire.flow import BODY, ENDED, NO_HEAD
from edgetun_core.wire.frames import MAX_DATA_BYTES, SessionBroken, encode_reset
from edgetun_core.wire.heads import decode_trailers
from edgetun_core.wire.hello import SHORT_PATH_WINDOW_BYTES
from edgetun_core.wire.sending import Sending

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgetun_core.wire.flow import Flow
    from edgetun_core.wire.lanes import Lane

WIDEN_WITHIN_S: Final = 0.01
"""A window of which half is gone sooner than this is widened on the shortest of paths too: every CREDIT is a write and a read."""
FAST_PATH_BYTES_S: Final = 25_000_000
"""What a path may carry that is no reason to wait: a sender in its slow start must not stand still for credit on the way there."""
LONG_AGO: Final = float("-inf")


def drop(data: bytes, end: bool) -> None:
    """Where data of an exchange that is over goes."""


class Exchange(Sending):
    """What the opening and the answering side of an exchange have in common."""

    __slots__ = ()

    # --- what the two sides do differently

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

    def receive_datagram(self, data: bytes) -> None:
        """A datagram; only exchanges that carry datagrams take any."""

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
        if self.recv_left < self.recv_low and not (lane.stream_ends and lane.stream is self):
            self._grant()  # not for a piece of the last frame: nothing comes that would use it

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
        if rtt_s is not None and flow.window < mux.max_exchange_window:
            self._consider_widening(flow, rtt_s)
        flow.granted_at = mux.now
        amount = flow.window - self.recv_left
        self.recv_left = flow.window
        mux.write_credit(self.lane, self.id, amount)

    def _consider_widening(self, flow: Flow, rtt_s: float) -> None:
        most = self.mux.max_exchange_window
        if rtt_s > WIDEN_WITHIN_S:
            # Every step costs a round trip, so they are large, and the first need not show that it is wanted.
            is_fast = not flow.granted_at or self.mux.now - flow.granted_at < 2 * rtt_s
            wider = min(max(4 * flow.window, int(FAST_PATH_BYTES_S * rtt_s)), most)
        else:
            is_fast = bool(flow.granted_at) and self.mux.now - flow.granted_at < WIDEN_WITHIN_S
            wider = min(2 * flow.window, most, max(SHORT_PATH_WINDOW_BYTES, flow.window))
        if is_fast:
            flow.window = wider
            self.recv_low = wider // 2

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
        flow.granted_at = LONG_AGO  # the pause says nothing of the path's speed
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

"""An exchange of one session whose answer goes straight into another session: what a relay does, frame by frame.

Hot path of an exit node that holds the agent's session for another exit node. A `Spliced` is an `Outgoing` whose client is an `Incoming`,
with nobody between them: a head goes on as the bytes that it came in, after the check that every head gets, and what ends a short
body is written for both sessions in one step. All else (longer bodies, credit, pauses, lanes, trailers, resets) is what the two do
anyway, so each session keeps its own bounds. Whoever began it hears of the head, of the end and of a failure (`SpliceOwner`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgetun_core.errors import EdgetunError, ProtocolError
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink
from edgetun_core.http.message import RequestHead
from edgetun_core.wire.exchanges import NOBODY, Incoming, Outgoing
from edgetun_core.wire.flow import BODY, ENDED, NO_HEAD
from edgetun_core.wire.frames import HEADER, WORD_DATA_END, WORD_HEAD
from edgetun_core.wire.heads import decode_response
from edgetun_core.wire.receiving import drop

if TYPE_CHECKING:
    from edgetun_core.wire.lanes import Lane
    from edgetun_core.wire.mux import Mux

_pack = HEADER.pack


class SpliceOwner(Protocol):
    """Who began splices and goes on where one fails; one object for many."""

    def on_spliced_head(self, started: float) -> None:
        """The answer begins."""

    def on_spliced_end(self) -> None:
        """It is over, whole or not; once for each."""

    def on_spliced_reset(self, spliced: Spliced, client: Incoming, error: EdgetunError, has_begun: bool) -> RequestSink:
        """After `on_spliced_end`: the answer does not come, or not whole, which `client` is to be told unless another session is asked.

        Returns what takes the request's place then, or `CLOSED`.
        """


class Spliced(Outgoing):
    """An exchange we opened for one that a peer opened with us. No upgrade."""

    __slots__ = ("_heir", "_owner", "is_whole", "session", "started")

    client: Incoming

    def __init__(
        self,
        mux: Mux,
        number: int,
        lane: Lane,
        head: RequestHead,
        end: bool,
        client: Incoming,
        owner: SpliceOwner,
        session: Handler,
        started: float,
    ) -> None:
        super().__init__(mux, number, lane, client, end, False)
        if not end:
            self.head = head
        self.is_whole = end
        """The request came without a body."""
        self.session = session
        self.started = started
        self._owner = owner
        self._heir: RequestSink = CLOSED
        """What asks elsewhere, after this one was in vain."""

    # --- RequestSink

    def reset(self, error: EdgetunError) -> None:
        if self.receiving == ENDED:
            self._heir.reset(error)
        else:
            super().reset(error)

    def pause_response(self) -> None:
        if self.receiving == ENDED:
            self._heir.pause_response()
        else:
            self._pause_peer()

    def resume_response(self) -> None:
        if self.receiving == ENDED:
            self._heir.resume_response()
        else:
            self._resume_peer()

    # --- from the wire

    def receive_head(self, lane: Lane, block: bytes, end: bool) -> None:
        """A final head: goes on as it came."""
        if self.receiving != NO_HEAD or self.recv_lane is not lane:
            super().receive_head(lane, block, end)  # which says what is wrong
            return
        try:
            head = decode_response(block)
        except ProtocolError as error:
            self.fail(error)
            return
        if head.status < 200:
            self.fail(ProtocolError(f"status {head.status} in a final head"))
            return
        self._owner.on_spliced_head(self.started)
        client = self.client
        if end:
            self._received_end()
            client.on_head(head, True)
            return
        self.receiving = BODY
        # `Incoming.on_head`, written out: it has sent no head, or this exchange would be over.
        client.sending = BODY
        client.head = head
        lane = client.lane
        out = lane.out
        if not out:
            client.mux.mark(lane)
        out += (_pack(WORD_HEAD | len(block), client.id), block)

    def receive_data(self, lane: Lane, data: bytes, end: bool) -> None:
        """A whole DATA frame. The one that is all of a body ends both exchanges here, if it is within both credits."""
        client = self.client
        size = len(data)
        mux, back = self.mux, client.mux
        if (
            not end
            or self.receiving != BODY
            or self.recv_lane is not lane
            or self.flow is not None
            or client.flow is not None
            or size > self.recv_left
            or size > mux.recv_left
            or size > client.send_left
            or size > back.send_left
        ):
            super().receive_data(lane, data, end)
            return
        mux.recv_left -= size
        if mux.recv_left < mux.recv_low:
            mux.grant_session()
        # `_finish` of this one, where it never was longer.
        self.sending = self.receiving = ENDED
        self.take = drop
        self.client = NOBODY  # type: ignore[assignment]
        self.lane.load -= 1
        mux.opened_now -= 1
        del mux.exchanges[self.id]
        self._owner.on_spliced_end()
        # `Incoming.on_data` and its `_finish`, the same.
        back.send_left -= size
        lane = client.lane
        out = lane.out
        if not out:
            back.mark(lane)
        if size:
            out += (_pack(WORD_DATA_END | size, client.id), data)
        else:
            out.append(_pack(WORD_DATA_END, client.id))
        client.sending = client.receiving = ENDED
        client.take = drop
        client.sink = CLOSED
        back.served_now -= 1
        del back.exchanges[client.id]

    # --- Exchange

    def deliver_reset(self, error: EdgetunError) -> None:
        client = self.client
        is_told = self.receiving != ENDED
        has_begun = self.receiving != NO_HEAD
        self._finish()
        if is_told:
            self._heir = self._owner.on_spliced_reset(self, client, error, has_begun)

    def _finish(self) -> None:
        super()._finish()
        self._owner.on_spliced_end()

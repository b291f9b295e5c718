"""The two ends of an exchange: `Outgoing` where it was opened, `Incoming` where it is answered.

Hot path. An `Outgoing` is the `RequestSink` of whoever opened it and pushes the response at their `ResponseSink`; an
`Incoming` is the `ResponseSink` of whoever answers and pushes the request at their `RequestSink`. An exchange is over when
its response has ended, or, after an accepted upgrade, when both directions have; then both ends forget it, and whatever is
still on the way is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Cancelled, EdgetunError, ProtocolError
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, ResponseHead
from edgetun_core.wire.datagrams import MAX_EARLY
from edgetun_core.wire.flow import BODY, ENDED, NO_HEAD
from edgetun_core.wire.frames import HEADER, WORD_HEAD, WORD_HEAD_END, WORD_INTERIM, SessionBroken, encode_reset
from edgetun_core.wire.heads import decode_response, encode_response
from edgetun_core.wire.receiving import Exchange, drop

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgetun_core.wire.lanes import Lane
    from edgetun_core.wire.mux import Mux

MAX_INTERIMS: Final = 64
"""Interim heads per exchange; credit does not cover them."""

_pack = HEADER.pack


class _Nobody:
    """The sink of an exchange that is over; holding it lets go of the visitor's."""

    __slots__ = ()

    def on_interim(self, head: ResponseHead) -> None:
        pass

    def on_head(self, head: ResponseHead, end: bool) -> None:
        pass

    def on_data(self, data: bytes, end: bool) -> None:
        pass

    def on_trailers(self, fields: Fields) -> None:
        pass

    def on_reset(self, error: EdgetunError) -> None:
        pass

    def pause_request(self) -> None:
        pass

    def resume_request(self) -> None:
        pass


NOBODY: Final[ResponseSink] = _Nobody()


def _is_switch(status: int) -> bool:
    """Whether a status accepts an upgrade (exchange.py, rule 7)."""
    return status == 101 or 200 <= status <= 299


class Outgoing(Exchange):
    """An exchange we opened."""

    __slots__ = ("client",)

    def __init__(self, mux: Mux, number: int, lane: Lane, client: ResponseSink, end: bool, is_upgrade: bool) -> None:
        self.mux = mux
        self.id = number
        self.lane = lane
        self.recv_lane = lane
        self.sending = ENDED if end else BODY
        self.receiving = NO_HEAD
        self.send_left = mux.send_window
        self.recv_left = mux.exchange_window
        self.recv_low = mux.exchange_low
        self.flow = None
        self.is_upgrade = is_upgrade
        self.client = client
        self.take = client.on_data

    # --- RequestSink

    def send_data(self, data: bytes, end: bool) -> None:
        if self.sending == BODY:
            self._send(data, end)

    def send_trailers(self, fields: Fields) -> None:
        if self.sending == BODY:
            self._send_trailers(fields)

    def reset(self, error: EdgetunError) -> None:
        if self.sending == ENDED and self.receiving == ENDED:
            return
        self.mux.write_reset(self.lane, encode_reset(self.id, error))
        self._finish()

    def pause_response(self) -> None:
        self._pause_peer()

    def resume_response(self) -> None:
        self._resume_peer()

    # --- from the wire

    def receive_head(self, lane: Lane, block: bytes, end: bool) -> None:
        """A final head."""
        if self.receiving != NO_HEAD:
            raise SessionBroken(f"exchange {self.id}: a second HEAD")
        if self.recv_lane is not lane:
            raise SessionBroken(
                f"exchange {self.id}: HEAD on lane {lane.number}, opened on lane {self.recv_lane.number}"
            )
        try:
            head = decode_response(block)
        except ProtocolError as error:
            self.fail(error)
            return
        status = head.status
        if status < 200 and not (status == 101 and self.is_upgrade):
            self.fail(ProtocolError(f"status {status} in a final head"))
            return
        if self.is_upgrade and not _is_switch(status):
            self.is_upgrade = False
        client = self.client
        if end:
            self._received_end()
        else:
            self.receiving = BODY
        client.on_head(head, end)

    def receive_interim(self, lane: Lane, block: bytes) -> None:
        """An interim head."""
        if self.receiving != NO_HEAD or self.recv_lane is not lane:
            raise SessionBroken(f"exchange {self.id}: INTERIM out of place")
        flow = self._make_flow()
        flow.interims += 1
        if flow.interims > MAX_INTERIMS:
            self.fail(ProtocolError(f"more than {MAX_INTERIMS} interim heads"))
            return
        try:
            head = decode_response(block)
        except ProtocolError as error:
            self.fail(error)
            return
        if head.status >= 200 or head.status == 101:
            self.fail(ProtocolError(f"status {head.status} in an interim head"))
            return
        self.client.on_interim(head)

    # --- Exchange

    def _pause_producer(self) -> None:
        self.client.pause_request()

    def _resume_producer(self) -> None:
        self.client.resume_request()

    def _sent_end(self) -> None:
        if self.receiving == ENDED:
            self._finish()

    def _received_end(self) -> None:
        self.receiving = ENDED
        if not self.is_upgrade or self.sending == ENDED:
            self._finish()

    def _trailers_taker(self) -> Callable[[Fields], None]:
        return self.client.on_trailers

    def deliver_reset(self, error: EdgetunError) -> None:
        client = self.client
        is_told = self.receiving != ENDED or (self.is_upgrade and self.sending != ENDED)
        self._finish()
        if is_told:
            client.on_reset(error)

    def _finish(self) -> None:
        flow = self.flow
        home = self.lane if flow is None else flow.home
        home.load -= 1
        if flow is None:
            self.sending = ENDED
            self.receiving = ENDED
            self.take = drop
        else:
            self._forget()
        self.client = NOBODY
        mux = self.mux
        mux.opened_now -= 1
        del mux.exchanges[self.id]


class OutgoingFlow(Outgoing):
    """A UDP flow we opened: every `send_data` and `on_data` is one datagram, and no credit bounds them (datagrams.py)."""

    __slots__ = ("early",)

    def __init__(self, mux: Mux, number: int, lane: Lane, client: ResponseSink, end: bool, is_upgrade: bool) -> None:
        super().__init__(mux, number, lane, client, end, is_upgrade)
        self.early: list[bytes] = []

    def send_data(self, data: bytes, end: bool) -> None:
        if self.sending != BODY:
            return
        if end:
            self._send(b"", True)
        else:
            self.mux.datagrams.send(self, data, is_known=self.receiving == BODY)

    def receive_head(self, lane: Lane, block: bytes, end: bool) -> None:
        super().receive_head(lane, block, end)
        early, self.early = self.early, []
        for data in early:
            self.receive_datagram(data)

    def receive_datagram(self, data: bytes) -> None:
        if self.receiving == BODY:
            self.take(data, False)
        elif self.receiving == NO_HEAD and len(self.early) < MAX_EARLY:
            self.early.append(data)  # what goes beside the lanes overtakes what goes on them
        else:
            self.mux.datagrams.counters.late += 1


class Incoming(Exchange):
    """An exchange the peer opened."""

    __slots__ = ("sink",)

    def __init__(self, mux: Mux, number: int, lane: Lane, end: bool, is_upgrade: bool) -> None:
        self.mux = mux
        self.id = number
        self.lane = lane
        self.recv_lane = lane
        self.sending = NO_HEAD
        self.receiving = ENDED if end else BODY
        self.send_left = mux.send_window
        self.recv_left = mux.exchange_window
        self.recv_low = mux.exchange_low
        self.flow = None
        self.is_upgrade = is_upgrade
        self.sink: RequestSink = CLOSED
        self.take = drop

    def attach(self, sink: RequestSink) -> None:
        """`Handler.open` has returned its sink; the exchange may be over already, or stopped."""
        if self.sending == ENDED and self.receiving == ENDED:
            return
        self.sink = sink
        if self.receiving == BODY:
            self.take = sink.send_data
        if self.flow is not None and self.flow.is_stopped:
            sink.pause_response()

    # --- ResponseSink

    def on_interim(self, head: ResponseHead) -> None:
        if self.sending != NO_HEAD:
            return
        try:
            block = encode_response(head)
        except EdgetunError:
            return  # what is merely interim may be lost
        lane = self.lane
        if not lane.out:
            self.mux.mark(lane)
        lane.out.append(_pack(WORD_INTERIM | len(block), self.id))
        lane.out.append(block)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if self.sending != NO_HEAD:
            if self.sending == BODY:
                self.fail(EdgetunError("a response with two heads"))
            return
        block = head.wire
        if block is None:
            try:
                block = encode_response(head)
            except EdgetunError as error:
                self.fail(error)
                return
        if self.is_upgrade and not _is_switch(head.status):
            self.is_upgrade = False
        lane = self.lane
        out = lane.out
        if not out:
            self.mux.mark(lane)
        if end:
            out.append(_pack(WORD_HEAD_END | len(block), self.id))
            out.append(block)
            self.sending = ENDED
            self._sent_end()
        else:
            out.append(_pack(WORD_HEAD | len(block), self.id))
            out.append(block)
            self.sending = BODY
            self.head = head

    def on_data(self, data: bytes, end: bool) -> None:
        if self.sending == BODY:
            self._send(data, end)
        elif self.sending == NO_HEAD:
            self.fail(EdgetunError("a response with a body before its head"))

    def on_trailers(self, fields: Fields) -> None:
        if self.sending == BODY:
            self._send_trailers(fields)
        elif self.sending == NO_HEAD:
            self.fail(EdgetunError("a response with trailers before its head"))

    def on_reset(self, error: EdgetunError) -> None:
        if self.sending == ENDED and self.receiving == ENDED:
            return
        self.mux.write_reset(self.lane, encode_reset(self.id, error))
        self._finish()

    def pause_request(self) -> None:
        self._pause_peer()

    def resume_request(self) -> None:
        self._resume_peer()

    # --- from the wire

    def receive_head(self, lane: Lane, block: bytes, end: bool) -> None:
        raise SessionBroken(f"exchange {self.id}: opened twice")

    def receive_interim(self, lane: Lane, block: bytes) -> None:
        raise SessionBroken(f"exchange {self.id}: INTERIM in a request")

    # --- Exchange

    def _pause_producer(self) -> None:
        self.sink.pause_response()

    def _resume_producer(self) -> None:
        self.sink.resume_response()

    def _sent_end(self) -> None:
        if not self.is_upgrade or self.receiving == ENDED:
            self._finish()

    def _received_end(self) -> None:
        self.receiving = ENDED
        if self.sending == ENDED:
            self._finish()

    def _trailers_taker(self) -> Callable[[Fields], None]:
        return self.sink.send_trailers

    def deliver_reset(self, error: EdgetunError) -> None:
        sink = self.sink
        self._finish()
        sink.reset(error)

    def lose(self) -> None:
        """The session is gone: whoever answers is told that nobody waits any more."""
        self.deliver_reset(Cancelled("the session ended"))

    def _finish(self) -> None:
        if self.flow is None:
            self.sending = ENDED
            self.receiving = ENDED
            self.take = drop
        else:
            self._forget()
        self.sink = CLOSED
        mux = self.mux
        mux.served_now -= 1
        del mux.exchanges[self.id]


class IncomingFlow(Incoming):
    """A UDP flow the peer opened, see `OutgoingFlow`."""

    __slots__ = ()

    def on_data(self, data: bytes, end: bool) -> None:
        if end or self.sending != BODY:
            super().on_data(b"", True)
        else:
            self.mux.datagrams.send(self, data, is_known=True)

    def receive_datagram(self, data: bytes) -> None:
        if self.receiving == BODY:
            self.take(data, False)

"""Hostile bytes for the tunnel protocol: raw, and as frames that are right enough to get deep into it.

Whatever comes, nothing is raised, handlers are called by the rules of `exchange.py`, buffers stay within their bounds, and
a session that closes says why and leaves nothing open.
"""

from __future__ import annotations

from edgetun_core.errors import EdgetunError, ProtocolError
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.wire import frames
from edgetun_core.wire.frames import HEADER_BYTES, MAX_DATA_BYTES, encode_frame
from edgetun_core.wire.heads import (
    decode_request,
    decode_response,
    decode_trailers,
    encode_request,
    encode_response,
    encode_trailers,
)
from edgetun_core.wire.hello import Close, Drain, Hello, Refusal, Welcome, Windows, encode_control
from edgetun_core.wire.session import Session
from edgetun_core.wire.states import State

_PEER = Peer("192.0.2.1", 1, b"https")
_WINDOWS = Windows(exchange_window=100_000, session_window=200_000, max_exchanges=8)
_REQUEST = RequestHead(b"POST", b"https", b"h", b"/", ((b"content-length", b"5"),), b"websocket", "a/b")
_RESPONSE = ResponseHead(200, ((b"a", b"b"),))

_KINDS = (*frames.NAMES, 0x40, 0x00, 0x7F)
_PAYLOADS = (
    b"",
    b"x",
    bytes(8),
    bytes(20_000),
    bytes(65_536),
    b"\x00\x00\x00\x01",
    b"\x00\x00\x00\x02",
    encode_request(_REQUEST),
    encode_request(RequestHead(b"GET", b"http", b"", b"*", ())),
    encode_response(_RESPONSE),
    encode_response(ResponseHead(101, ())),
    encode_response(ResponseHead(103, ())),
    encode_trailers(((b"a", b"b"),)),
    encode_control(Hello(versions=(1,), agent_id="a", exchange_window=50_000)),
    encode_control(Welcome(node="n")),
    encode_control(Refusal(reason="no")),
    encode_control(Drain(deadline_s=1.0, last_opened=4)),
    encode_control(Close(code=3, reason="x")),
    encode_control(Close()),
)

# Bytes that `_instructed` turns into whole conversations: (op, lane and kind, exchange, payload) and so on.
SEEDS = (
    bytes([0, 0, 7, 2, 7, 1, 0, 9, 2, 3, 2, 0, 9, 2, 0]),
    bytes([1, 0, 7, 1, 7, 0, 9, 1, 3, 1, 13, 1, 6, 1, 9, 1, 2, 0, 10, 1, 12]),
    bytes([2, 0, 0, 0, 13, 0, 7, 1, 7, 0, 9, 1, 4]),
    encode_frame(frames.HELLO, 0, encode_control(Hello(agent_id="a"))),
    b"\xff" * 16,
)


class _Checked:
    """Both kinds of sink, which hold the caller to the rules (exchange.py, 1 and 6)."""

    def __init__(self) -> None:
        self.has_head = False
        self.is_over = False

    def _goes_on(self, end: bool) -> None:
        assert not self.is_over, "called after the end"
        self.is_over = end

    def on_interim(self, head: ResponseHead) -> None:
        self._goes_on(False)
        assert not self.has_head
        assert 100 <= head.status <= 199

    def on_head(self, head: ResponseHead, end: bool) -> None:
        self._goes_on(end)
        assert not self.has_head
        assert head.status >= 200 or head.status == 101
        self.has_head = True

    def on_data(self, data: bytes, end: bool) -> None:
        self._goes_on(end)
        assert self.has_head
        assert type(data) is bytes
        assert data or end

    def on_trailers(self, fields: Fields) -> None:
        self._goes_on(True)
        assert self.has_head

    def on_reset(self, error: EdgetunError) -> None:
        self._goes_on(True)

    def pause_request(self) -> None:
        assert not self.is_over

    def resume_request(self) -> None:
        assert not self.is_over

    def send_data(self, data: bytes, end: bool) -> None:
        self._goes_on(end)
        assert data or end

    def send_trailers(self, fields: Fields) -> None:
        self._goes_on(True)

    def reset(self, error: EdgetunError) -> None:
        self.is_over = True

    def pause_response(self) -> None:
        pass

    def resume_response(self) -> None:
        pass


class _End:
    """A session's user and its handler."""

    def __init__(self) -> None:
        self.answering: list[ResponseSink] = []
        self.closed: list[EdgetunError | None] = []

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        self.answering.append(client)
        sink = _Checked()
        sink.is_over = end
        return sink

    def on_hello(self, hello: Hello) -> Welcome | Refusal:
        return Welcome(node="n") if hello.agent_id else Refusal(reason="nobody")

    def on_session_open(self) -> None:
        pass

    def on_session_draining(self, deadline_s: float) -> None:
        pass

    def observed_address(self) -> bytes:
        return b"192.0.2.1:4711"

    def on_session_answered(self) -> None:
        pass

    def on_session_closed(self, error: EdgetunError | None) -> None:
        self.closed.append(error)

    def on_bug(self, error: Exception) -> None:
        raise AssertionError("a handler was called against the rules") from error

    def wake(self) -> None:
        pass


def fuzz(data: bytes) -> None:
    """Reads the bytes as heads, as the raw bytes of a session, and as instructions for making frames."""
    for decode in (decode_request, decode_response, decode_trailers):
        try:
            decode(data)
        except ProtocolError:
            pass
    if len(data) < 2:
        return
    for is_agent in (False, True):
        end, session = _fresh(is_agent, is_open=data[0] & 1 == 1)
        for start in range(1, len(data), 1 + data[1] % 50):
            session.receive(data[0] >> 1 & 3, data[start : start + 1 + data[1] % 50], 1.0)
        _check(end, session)
    _instructed(data)


def _fresh(is_agent: bool, is_open: bool) -> tuple[_End, Session]:
    end = _End()
    hello = Hello(agent_id="a", exchange_window=100_000, session_window=200_000, max_exchanges=8)
    session = Session(end, end, _PEER, 0.0, hello=hello if is_agent else None, windows=_WINDOWS)
    session.mux.set_lanes(3, 2)
    if is_open:
        first = Welcome(node="n") if is_agent else Hello(agent_id="a")
        session.receive(0, encode_frame(frames.WELCOME if is_agent else frames.HELLO, 0, encode_control(first)), 1.0)
        for body_follows in (True, True, False, False):
            visitor = _Checked()
            sink = session.mux.open(_REQUEST, _PEER, not body_follows, visitor)
            if body_follows:
                sink.send_data(bytes(1000), False)
    session.data_to_send()
    return end, session


def _instructed(data: bytes) -> None:
    """Takes the bytes three at a time after the first: lane and split, kind, exchange and payload."""
    end, session = _fresh(is_agent=data[0] & 1 == 1, is_open=data[0] & 2 == 0)
    now = 1.0
    for at in range(1, len(data) - 3, 4):
        how, kind, number, payload = data[at : at + 4]
        now += (how >> 6) * 0.01
        frame = encode_frame(_KINDS[kind % len(_KINDS)], number % 12, _PAYLOADS[payload % len(_PAYLOADS)])
        lane = how & 3
        match how >> 2 & 7:
            case 0 | 1 | 2:
                session.receive(lane, frame, now)
            case 3:
                middle = 1 + payload * 7 % len(frame)
                session.receive(lane, frame[:middle], now)
                session.receive(lane, frame[middle:], now)
            case 4:
                for client in end.answering[-3:]:
                    client.on_head(_RESPONSE, False)
                    client.on_data(bytes(30_000), payload & 1 == 1)
            case 5:
                for client in end.answering[number % 3 :: 3]:
                    (client.pause_request if payload & 1 else client.resume_request)()
            case 6:
                session.mux.pause_lane(lane) if payload & 1 else session.mux.resume_lane(lane)
            case _:
                session.next_timer()
                session.handle_timer(now)
                session.data_to_send()
        _check(end, session)


def _check(end: _End, session: Session) -> None:
    mux = session.mux
    if session.state is State.CLOSED:
        assert len(end.closed) == 1
        assert not mux.exchanges
        assert session.closed_with is not None
        return
    assert not end.closed
    assert len(mux.exchanges) <= 8 + 4
    assert 0 <= mux.early_bytes <= 200_000
    assert mux.held >= 0
    for lane in mux.lanes:
        assert len(lane.rest) < MAX_DATA_BYTES + HEADER_BYTES
        assert lane.load >= 0


if __name__ == "__main__":
    import sys

    import atheris  # type: ignore[import-not-found, unused-ignore]

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()

"""Hostile bytes for HTTP/2, both roles: raw, and as frames that are right enough to get deep into it.

Whatever comes, nothing is raised, streams are called by the rules, windows and queues add up, buffers stay within their
bounds, and what goes out is whole frames.
"""

from __future__ import annotations

from typing import Any

from edgetun_core.http.h1 import H1Limits
from edgetun_core.http.h2 import PREFACE, Connection, H2Limits, State, Stream, render_block
from edgetun_core.http.h2.frames import HEADER, MAX_WINDOW_BYTES, build_settings, frame
from edgetun_core.http.h2.hpack import BlockBroken, BlockDecoder
from edgetun_core.http.multiplexed import RequestRefused, read_request, read_response

_LIMITS = H2Limits(
    stream_window_bytes=65_535, connection_window_bytes=100_000, max_concurrent_streams=6, stream_queue_bytes=50_000
)
_OK = render_block([(b":status", b"200"), (b"content-length", b"70000")])
_TARGET = [(b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
_GET = render_block([(b":method", b"GET"), *_TARGET])
_INDEXED = b"\x82\x86\x84\x41\x01a\x40\x01x\x01y"

_PAYLOADS = (
    b"", b"\0", b"\0" * 4, b"\0\0\0\x01", b"\x7f\xff\xff\xff", b"\0" * 5, b"\0" * 8, b"x" * 1000, b"x" * 16_384,
    _GET, _INDEXED, b"\x82\x86\x84\xbf\xbe", render_block([(b":method", b"POST"), *_TARGET, (b"content-length", b"5")]),
    render_block([(b":method", b"CONNECT"), (b":protocol", b"websocket"), *_TARGET]), render_block([(b":status", b"200")]),
    render_block([(b":status", b"103")]), render_block([(b"x", b"y")]), render_block([(b":method", b"GET"), *_TARGET, (b"priority", b"u=1, i")]),
    b"\x20" + _GET, build_settings({4: 0})[9:], build_settings({4: 0x7FFFFFFF})[9:], build_settings({1: 0, 5: 16_384})[9:],
    b"\0\0\0\x05u=0, i", b"\x03hello\0\0\0", b"hello",
)  # fmt: skip

SEEDS = (
    PREFACE + build_settings({}) + frame(1, 5, 1, _GET),
    bytes([0, 0, 1, 5, 1, 9, 0, 1, 5, 3, 10, 0, 1, 5, 5, 11, 0, 0, 1, 1, 24]),
    bytes([1, 0, 1, 4, 1, 14, 0, 0, 0, 1, 8, 0, 8, 0, 1, 3, 4, 0, 0, 0, 0]),
    bytes([2, 0, 1, 4, 1, 12, 0, 0, 1, 1, 24, 3, 0, 0, 0, 0, 4, 0, 0, 0, 0, 5, 0, 0, 0, 0]),
    bytes([0, 0, 1, 0, 1, 9, 0, 9, 4, 1, 16, 0, 3, 0, 1, 2, 0, 4, 0, 0, 20]),
)


class _Checked(Stream):
    """Holds the engine to its rules."""

    __slots__ = ("is_closed", "left", "saw_end", "saw_head")

    def begin(self, stream_id: int) -> None:
        super().begin(stream_id)
        self.saw_head = self.saw_end = self.is_closed = False

    def got_head(self, received: Any, end: bool) -> None:
        assert not self.saw_end
        assert not self.is_closed
        if self.connection.is_server:  # type: ignore[attr-defined]
            assert not self.saw_head
        self.saw_head = True
        self.saw_end = end

    def got_body(self, data: bytes, end: bool) -> None:
        assert self.saw_head
        assert not self.saw_end
        assert not self.is_closed
        assert data or end
        self.saw_end = end

    def got_trailers(self, fields: Any) -> None:
        assert self.saw_head
        assert not self.saw_end
        self.saw_end = True

    def got_broken(self, error: Any, code: int) -> None:
        assert not self.is_closed
        assert self.state is State.CLOSED
        self.is_closed = True


class _End(Connection[_Checked]):
    failures = 0

    def read_head(self, fields: Any) -> Any:
        return read_request(fields, b"http", H1Limits()) if self.is_server else read_response(fields)

    def make_stream(self) -> _Checked:
        return _Checked(self)

    def refuse_request(self, stream: _Checked, error: RequestRefused, end: bool) -> None:
        stream.put_whole(render_block([(b":status", b"400")]), b"refused")

    def on_failure(self, error: Any) -> None:
        self.failures += 1


def fuzz(data: bytes) -> None:
    """Reads the bytes as a header block, as the raw bytes of a connection, and as instructions for making frames."""
    decoder = BlockDecoder(65_536)
    try:
        decoder.decode(data)
        decoder.decode(data)
    except BlockBroken:
        pass
    if len(data) < 2:
        return
    for is_server in (True, False):
        end = _fresh(is_server, greeted=data[0] & 1 == 1)
        for start in range(0, len(data), 1 + data[1] % 50):
            end.receive_data(data[start : start + 1 + data[1] % 50])
        _check(end)
    _instructed(data)


def _fresh(is_server: bool, *, greeted: bool) -> _End:
    end = _End(_LIMITS, is_server=is_server)
    end.start()
    if greeted:
        end.receive_data((PREFACE if is_server else b"") + build_settings({}))
    if not is_server:
        for is_whole in (True, False, True):
            end.open_stream(_Checked(end), _GET, is_whole)
    _whole_frames(end.data_to_send().removeprefix(PREFACE))
    return end


def _instructed(data: bytes) -> None:
    """Takes the bytes five at a time after the first: what to do, type, flags, stream, payload."""
    end = _fresh(data[0] & 1 == 0, greeted=True)
    for at in range(1, len(data) - 4, 5):
        how, kind, flags, number, payload = data[at : at + 5]
        streams = list(end.streams.values())
        match how % 8:
            case 0 | 1 | 2:
                sent = frame(kind % 19, flags, number % 14, _PAYLOADS[payload % len(_PAYLOADS)])
                middle = payload * 7 % len(sent) if how & 8 else 0
                end.receive_data(sent[:middle])
                end.receive_data(sent[middle:])
            case 3:
                for stream in streams:
                    if end.is_server and stream.may_send and stream.held_head is None and not stream.queued_bytes:
                        stream.put_whole(_OK, bytes(70_000))
            case 4:
                for stream in streams:
                    (stream.pause_receiving if payload & 1 else stream.resume_receiving)()
            case 5:
                end.is_blocked = payload & 1 == 1
            case 6:
                for stream in streams[:1]:
                    stream.break_off(8)  # type: ignore[arg-type]
            case _:
                end.tick()
                if payload & 1:
                    end.shut_down()
        _check(end)


def _check(end: _End) -> None:
    _whole_frames(end.data_to_send())
    assert len(end.rest) < 16_384 + 9
    if end.failure is not None:
        assert end.failures == 1
        assert not end.streams
        return
    assert len(end.streams) <= _LIMITS.max_concurrent_streams
    assert end.queued_bytes == sum(stream.queued_bytes for stream in end.streams.values())
    assert end.send_window <= MAX_WINDOW_BYTES
    assert end.receive_window + end.unreturned + sum(s.withheld for s in end.streams.values()) <= 100_000
    for stream in end.streams.values():
        assert stream.state in (State.OPEN, State.HALF_CLOSED_LOCAL, State.HALF_CLOSED_REMOTE)
        assert stream.queued_bytes == sum(len(piece) for piece in stream.queue)
        assert not stream.is_scheduled or stream.queue


def _whole_frames(data: bytes) -> None:
    at = 0
    while at < len(data):
        high, low, _, _, _ = HEADER.unpack_from(data, at)
        at += 9 + (high << 16 | low)
    assert at == len(data)


if __name__ == "__main__":
    import sys

    import atheris  # type: ignore[import-not-found, unused-ignore]

    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()

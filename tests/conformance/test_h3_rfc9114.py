"""What RFC 9114, 9204, 9218 and 9220 demand of a server that a visitor can put to the test; docs/http3.md lists it.

Each row is a section, what the visitor does, and what must become of it: the connection ends with a code, the stream is reset
with a code, or the request is answered with a status.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from edgetun_core.http import h3_frames as h3
from edgetun_core.http.h3_frames import encode_frame, encode_settings, encode_varint
from edgetun_core.pki import DevelopmentCA
from edgetun_core.transport.udp import bind_udp
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontContext, FrontLimits
from edgetun_exitnode.front.h3_front import H3Front
from support.h3_client import H3Visitor, h3_visitor, request_headers
from support.handlers import ScriptedHandler, echo, wait

GET = request_headers()
SLOW = request_headers("POST", "/wait")


@dataclass(frozen=True)
class Closes:
    """The connection ends with this code."""

    code: int


@dataclass(frozen=True)
class Resets:
    """The request's stream is reset with this code."""

    code: int


@dataclass(frozen=True)
class Answers:
    """The request is answered."""

    status: int


Outcome = Closes | Resets | Answers
Act = Callable[[H3Visitor], int]


def on_control(*frames: bytes, settings: bytes | None = b"\x04\x00") -> Act:
    """Sends frames on the control stream."""
    return lambda visitor: visitor.control(*frames, settings=settings)


def request(*pieces: bytes | list[tuple[bytes, bytes]], end: bool = True) -> Act:
    """Opens a control stream, then a request stream with these bytes; a list of fields stands for a HEADERS frame."""

    def act(visitor: H3Visitor) -> int:
        visitor.control()
        data = b"".join(visitor.headers_frame(piece) if isinstance(piece, list) else piece for piece in pieces)
        return visitor.raw(0, data, end)

    return act


def uni(kind: int, data: bytes = b"", end: bool = False, *, control: bool = True) -> Act:
    def act(visitor: H3Visitor) -> int:
        if control:
            visitor.control()
        return visitor.uni(kind, data, end)

    return act


def with_field(name: str, value: bytes | str) -> list[tuple[bytes, bytes]]:
    return [*GET, (name.encode("latin-1"), value if isinstance(value, bytes) else value.encode("latin-1"))]


def without(name: str) -> list[tuple[bytes, bytes]]:
    return [field for field in GET if field[0] != name.encode()]


def instead(name: str, value: str) -> list[tuple[bytes, bytes]]:
    return [(key, value.encode() if key == name.encode() else old) for key, old in GET]


def twice(visitor: H3Visitor) -> int:
    visitor.control()
    return visitor.control()


def closed_control(visitor: H3Visitor) -> int:
    return visitor.raw(visitor.control(), b"", True)


def reset_control(visitor: H3Visitor) -> int:
    sid = visitor.control()
    visitor._quic.reset_stream(sid, 0x100)
    visitor.transmit()
    return sid


def nameless(visitor: H3Visitor) -> int:
    """A literal field line with an empty name (RFC 9204 §4.5.6), which no encoder makes."""
    visitor.control()
    return visitor.raw(0, encode_frame(h3.HEADERS, visitor.block(GET) + b"\x20\x011"), True)


def connect(*fields: tuple[str, str], drop: tuple[str, ...] = ()) -> list[tuple[bytes, bytes]]:
    headers = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *without(":method")]
    return [field for field in headers if field[0].decode() not in drop] + [
        (name.encode(), value.encode()) for name, value in fields
    ]


HEADERS_1 = encode_frame(h3.HEADERS, b"")
MALFORMED = Resets(h3.H3_MESSAGE_ERROR)

ROWS: list[tuple[str, str, Act, Outcome]] = [
    # 4.1 the order of frames
    ("4.1", "DATA before HEADERS", request(b"\x00\x03abc", GET), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("4.1", "HEADERS after trailers", request(GET, [(b"a", b"b")], [(b"c", b"d")]), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("4.1", "DATA after trailers", request(GET, [(b"a", b"b")], b"\x00\x01x"), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("4.1", "unknown frames before, between and after", request(b"\x21\x03abc", GET, b"\x40\x40\x00", b"\x00\x01x", b"\x21\x00"), Answers(200)),
    ("4.1", "an empty stream", request(b""), Resets(h3.H3_REQUEST_INCOMPLETE)),
    ("4.1", "a stream with unknown frames only", request(b"\x21\x01x"), Resets(h3.H3_REQUEST_INCOMPLETE)),
    ("4.1", "trailers end a request", request([*SLOW[:3], (b":path", b"/echo")], b"\x00\x02hi", [(b"x-sum", b"2")]), Answers(200)),
    ("4.1", "PUSH_PROMISE from a client", request(GET, encode_frame(h3.PUSH_PROMISE, b"\x00"), end=False), Closes(h3.H3_FRAME_UNEXPECTED)),
    # 4.1.2 malformed requests
    ("4.1.2", "a body shorter than its content-length", request([*SLOW, (b"content-length", b"5")], b"\x00\x02ab"), MALFORMED),
    ("4.1.2", "a body longer than its content-length", request([*SLOW, (b"content-length", b"1")], b"\x00\x02ab", end=False), MALFORMED),
    ("4.1.2", "no body for a content-length", request(with_field("content-length", "5")), MALFORMED),
    ("4.1.2", "two content-length fields", request([*with_field("content-length", "1"), (b"content-length", b"1")], b"\x00\x01a"), MALFORMED),
    # 4.2 fields
    ("4.2", "a field name in upper case", request(with_field("X-Upper", "1")), MALFORMED),
    ("4.2", "a field name that is no token", request(with_field("a b", "1")), MALFORMED),
    ("4.2", "an empty field name", nameless, Closes(h3.QPACK_DECOMPRESSION_FAILED)),
    ("4.2", "a line end in a value", request(with_field("x", b"a\r\nb: c")), MALFORMED),
    ("4.2", "a NUL in a value", request(with_field("x", b"a\x00b")), MALFORMED),
    ("4.2", "connection", request(with_field("connection", "close")), MALFORMED),
    ("4.2", "keep-alive", request(with_field("keep-alive", "1")), MALFORMED),
    ("4.2", "proxy-connection", request(with_field("proxy-connection", "1")), MALFORMED),
    ("4.2", "transfer-encoding", request(with_field("transfer-encoding", "chunked")), MALFORMED),
    ("4.2", "upgrade", request(with_field("upgrade", "websocket")), MALFORMED),
    ("4.2", "te other than trailers", request(with_field("te", "gzip")), MALFORMED),
    ("4.2", "te: trailers", request(with_field("te", "trailers")), Answers(200)),
    ("4.2.1", "cookies in pieces", request([*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2")]), Answers(200)),
    ("4.2.2", "a field section beyond the limit", request([*GET, *((b"x-%d" % n, b"v" * 60) for n in range(600))]), Answers(431)),
    ("4.2.2", "a HEADERS frame beyond any bound", request(b"\x01\x80\x10\x00\x00", end=False), Answers(431)),
    # 4.3 pseudo-header fields
    ("4.3", "an unknown pseudo-header field", request([(b":unknown", b"1"), *GET]), MALFORMED),
    ("4.3", "a response's pseudo-header field", request([(b":status", b"200"), *GET]), MALFORMED),
    ("4.3", "a pseudo-header field after others", request([(b"a", b"b"), *GET]), MALFORMED),
    ("4.3", "pseudo-header fields in trailers", request(GET, [(b":path", b"/")]), MALFORMED),
    ("4.3.1", "no :method", request(without(":method")), MALFORMED),
    ("4.3.1", "no :scheme", request(without(":scheme")), MALFORMED),
    ("4.3.1", "no :path", request(without(":path")), MALFORMED),
    ("4.3.1", "an empty :path", request(instead(":path", "")), MALFORMED),
    ("4.3.1", ":method twice", request([(b":method", b"GET"), *GET]), MALFORMED),
    ("4.3.1", ":path twice", request([(b":path", b"/"), *GET]), MALFORMED),
    ("4.3.1", "neither :authority nor host", request(without(":authority")), MALFORMED),
    ("4.3.1", "host in place of :authority", request([*without(":authority"), (b"host", b"shop.example")]), Answers(200)),
    ("4.3.1", ":authority and host differ", request(with_field("host", "other.example")), MALFORMED),
    ("4.3.1", "userinfo in :authority", request(instead(":authority", "me@shop.example")), MALFORMED),
    ("4.3.1", "OPTIONS *", request([(b":method", b"OPTIONS"), (b":scheme", b"https"), (b":authority", b"shop.example"), (b":path", b"*")]), Answers(200)),
    ("4.3.1", "another host than the certificate's", request(instead(":authority", "unknown.example")), Answers(421)),
    # 4.4 CONNECT, RFC 9220
    ("4.4", "CONNECT", request([(b":method", b"CONNECT"), (b":authority", b"shop.example:443")]), Answers(501)),
    ("4.4", "CONNECT with :path", request([(b":method", b"CONNECT"), (b":authority", b"shop.example:443"), (b":path", b"/")]), MALFORMED),
    ("9220 3", "an extended CONNECT of an unknown protocol", request([*connect(drop=(":protocol",)), ], end=False), MALFORMED),
    ("9220 3", ":protocol without CONNECT", request([(b":protocol", b"websocket"), *GET]), MALFORMED),
    ("9220 3", "HEADERS within an extended CONNECT", request(connect(), [(b"a", b"b")], end=False), Closes(h3.H3_FRAME_UNEXPECTED)),
    # 5.2, 7.2.6 GOAWAY
    ("5.2", "GOAWAY with a larger id than before", on_control(encode_frame(h3.GOAWAY, b"\x04"), encode_frame(h3.GOAWAY, b"\x08")), Closes(h3.H3_ID_ERROR)),
    # 6.2 unidirectional streams
    ("6.2", "a stream of an unknown type", lambda visitor: (uni(0x21, b"whatever")(visitor), request_after(visitor))[1], Answers(200)),
    ("6.2", "a stream that ends before its type", lambda visitor: (visitor.control(), visitor.raw(visitor._quic.get_next_available_stream_id(is_unidirectional=True), b"", True), request_after(visitor))[2], Answers(200)),
    ("6.2.1", "two control streams", twice, Closes(h3.H3_STREAM_CREATION_ERROR)),
    ("6.2.1", "a control stream without SETTINGS first", on_control(encode_frame(h3.GOAWAY, b"\x00"), settings=None), Closes(h3.H3_MISSING_SETTINGS)),
    ("6.2.1", "a control stream that ends", closed_control, Closes(h3.H3_CLOSED_CRITICAL_STREAM)),
    ("6.2.1", "a control stream that is reset", reset_control, Closes(h3.H3_CLOSED_CRITICAL_STREAM)),
    ("6.2.2", "a push stream", uni(h3.PUSH_STREAM, b"\x00"), Closes(h3.H3_STREAM_CREATION_ERROR)),
    # 7.1 frames
    ("7.1", "a stream that ends within a frame", request(GET, b"\x00\x05ab"), Closes(h3.H3_FRAME_ERROR)),
    ("7.1", "a stream that ends within HEADERS", request(b"\x01\x40"), Closes(h3.H3_FRAME_ERROR)),
    ("7.1", "GOAWAY with bytes behind its id", on_control(encode_frame(h3.GOAWAY, b"\x00\x00")), Closes(h3.H3_FRAME_ERROR)),
    ("7.1", "GOAWAY without an id", on_control(encode_frame(h3.GOAWAY, b"")), Closes(h3.H3_FRAME_ERROR)),
    ("7.1", "MAX_PUSH_ID cut off", on_control(encode_frame(h3.MAX_PUSH_ID, b"\x40")), Closes(h3.H3_FRAME_ERROR)),
    # 7.2 each frame in its place
    ("7.2.1", "DATA on the control stream", on_control(encode_frame(h3.DATA, b"x")), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("7.2.2", "HEADERS on the control stream", on_control(encode_frame(h3.HEADERS, b"\x00\x00")), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("7.2.3", "CANCEL_PUSH on a request stream", request(GET, encode_frame(h3.CANCEL_PUSH, b"\x00"), end=False), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("7.2.3", "CANCEL_PUSH of what was never promised", on_control(encode_frame(h3.CANCEL_PUSH, b"\x00")), Closes(h3.H3_ID_ERROR)),
    ("7.2.4", "SETTINGS on a request stream", request(b"\x04\x00", GET, end=False), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("7.2.4", "SETTINGS twice", on_control(encode_settings({})), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("7.2.4", "a setting twice", on_control(settings=encode_frame(h3.SETTINGS, b"\x06\x01\x06\x01")), Closes(h3.H3_SETTINGS_ERROR)),
    ("7.2.4", "SETTINGS cut off", on_control(settings=encode_frame(h3.SETTINGS, b"\x06")), Closes(h3.H3_FRAME_ERROR)),
    ("7.2.4", "unknown settings", lambda visitor: (visitor.control(settings=encode_settings({0x21: 5, 0x1F * 9 + 0x21: 1})), request_after(visitor))[1], Answers(200)),
    *(
        ("7.2.4.1", f"HTTP/2's setting {key:#x}", on_control(settings=encode_settings({key: 1})), Closes(h3.H3_SETTINGS_ERROR))
        for key in sorted(h3.SETTINGS_OF_HTTP2)
    ),
    ("7.2.5", "PUSH_PROMISE on the control stream", on_control(encode_frame(h3.PUSH_PROMISE, b"\x00")), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("7.2.6", "GOAWAY on a request stream", request(GET, encode_frame(h3.GOAWAY, b"\x00"), end=False), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("7.2.7", "MAX_PUSH_ID on a request stream", request(GET, encode_frame(h3.MAX_PUSH_ID, b"\x00"), end=False), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("7.2.7", "MAX_PUSH_ID goes back", on_control(encode_frame(h3.MAX_PUSH_ID, b"\x05"), encode_frame(h3.MAX_PUSH_ID, b"\x04")), Closes(h3.H3_ID_ERROR)),
    *(
        ("7.2.8", f"HTTP/2's frame {kind:#x} on {where}", act(encode_frame(kind, b"")), Closes(h3.H3_FRAME_UNEXPECTED))
        for kind in sorted(h3.OF_HTTP2)
        for where, act in (("a request stream", lambda frame: request(GET, frame, end=False)), ("the control stream", on_control))
    ),
    ("7.2.8", "reserved frames on the control stream", lambda visitor: (visitor.control(encode_frame(0x21, b"x" * 9)), request_after(visitor))[1], Answers(200)),
    # RFC 9204
    ("9204 2.2", "a block that refers to a dynamic table", request(encode_frame(h3.HEADERS, b"\x02\x00\x80")), Closes(h3.QPACK_DECOMPRESSION_FAILED)),
    ("9204 2.2", "a block that is no block", request(encode_frame(h3.HEADERS, b"\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")), Closes(h3.QPACK_DECOMPRESSION_FAILED)),
    ("9204 2.2", "an empty block", request(HEADERS_1), Closes(h3.QPACK_DECOMPRESSION_FAILED)),
    ("9204 3.2.3", "a table capacity beyond our limit", uni(h3.ENCODER_STREAM, b"\x3f\xe1\x1f"), Closes(h3.QPACK_ENCODER_STREAM_ERROR)),
    ("9204 3.2.2", "an insertion into no table", uni(h3.ENCODER_STREAM, b"\x41a\x01b"), Closes(h3.QPACK_ENCODER_STREAM_ERROR)),
    ("9204 3.2.3", "a table capacity of 0", lambda visitor: (uni(h3.ENCODER_STREAM, b"\x20")(visitor), request_after(visitor))[1], Answers(200)),
    ("9204 4.2", "two encoder streams", lambda visitor: (uni(h3.ENCODER_STREAM)(visitor), visitor.uni(h3.ENCODER_STREAM))[1], Closes(h3.H3_STREAM_CREATION_ERROR)),
    ("9204 4.2", "two decoder streams", lambda visitor: (uni(h3.DECODER_STREAM)(visitor), visitor.uni(h3.DECODER_STREAM))[1], Closes(h3.H3_STREAM_CREATION_ERROR)),
    ("9204 4.2", "an encoder stream that ends", uni(h3.ENCODER_STREAM, b"", True), Closes(h3.H3_CLOSED_CRITICAL_STREAM)),
    ("9204 4.2", "a decoder stream that ends", uni(h3.DECODER_STREAM, b"", True), Closes(h3.H3_CLOSED_CRITICAL_STREAM)),
    ("9204 4.4.1", "an acknowledgment of no section", uni(h3.DECODER_STREAM, b"\x80"), Closes(h3.QPACK_DECODER_STREAM_ERROR)),
    ("9204 4.4.3", "an increment of nothing", uni(h3.DECODER_STREAM, b"\x01"), Closes(h3.QPACK_DECODER_STREAM_ERROR)),
    ("9204 4.4.2", "a stream cancellation", lambda visitor: (uni(h3.DECODER_STREAM, b"\x7f\x81\x01\x41")(visitor), request_after(visitor))[1], Answers(200)),
    # RFC 9218
    ("9218 7.2", "PRIORITY_UPDATE on a request stream", request(GET, encode_frame(h3.PRIORITY_UPDATE_REQUEST, b"\x00u=1"), end=False), Closes(h3.H3_FRAME_UNEXPECTED)),
    ("9218 7.2", "PRIORITY_UPDATE of a stream that is no request", on_control(encode_frame(h3.PRIORITY_UPDATE_REQUEST, b"\x02u=1")), Closes(h3.H3_ID_ERROR)),
    ("9218 7.2", "PRIORITY_UPDATE of a stream beyond the limit", on_control(encode_frame(h3.PRIORITY_UPDATE_REQUEST, encode_varint(40_000) + b"u=1")), Closes(h3.H3_ID_ERROR)),
    ("9218 7.2", "PRIORITY_UPDATE of a push", on_control(encode_frame(h3.PRIORITY_UPDATE_PUSH, b"\x00u=1")), Closes(h3.H3_ID_ERROR)),
    ("9218 7.2", "PRIORITY_UPDATE before its request", lambda visitor: (visitor.control(encode_frame(h3.PRIORITY_UPDATE_REQUEST, b"\x00u=1, i")), request_after(visitor))[1], Answers(200)),
    ("9218 4", "a priority that does not parse", request(with_field("priority", "u=9;;=,")), Answers(200)),
    # RFC 9297
    ("9297 2.1.1", "H3_DATAGRAM other than 0 and 1", on_control(settings=encode_settings({h3.H3_DATAGRAM: 2})), Closes(h3.H3_SETTINGS_ERROR)),
    ("8441 3", "ENABLE_CONNECT_PROTOCOL other than 0 and 1", on_control(settings=encode_settings({h3.ENABLE_CONNECT_PROTOCOL: 2})), Closes(h3.H3_SETTINGS_ERROR)),
]  # fmt: skip


def request_after(visitor: H3Visitor) -> int:
    """A good request, to see that the connection stands."""
    return visitor.raw(0, visitor.headers_frame(GET), True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CertificateStore:
    ca = DevelopmentCA(tmp_path_factory.mktemp("ca"))
    cert, key = ca.issue(["shop.example"])
    folder: Path = tmp_path_factory.mktemp("certificate")
    (folder / "a.pem").write_bytes(cert)
    (folder / "a.key").write_bytes(key)
    return CertificateStore([(folder / "a.pem", folder / "a.key")])


@pytest.fixture
async def front(store: CertificateStore) -> AsyncIterator[H3Front]:
    context = FrontContext(ScriptedHandler(echo=echo, wait=wait), replace(FrontLimits(), sweep_s=0.1))
    made = H3Front(context, bind_udp(socket.AF_INET, ("127.0.0.1", 0)), store)
    yield made
    await made.drain(0.0)
    await asyncio.sleep(0)
    assert made.held_bytes == 0


@pytest.mark.parametrize(("section", "what", "act", "outcome"), ROWS, ids=[f"{row[0]}: {row[1]}" for row in ROWS])
async def test_server(front: H3Front, section: str, what: str, act: Act, outcome: Outcome) -> None:
    async with h3_visitor(front.port, raw=True) as visitor:
        sid = act(visitor)
        match outcome:
            case Closes(code):
                assert await visitor.close_code() == code
            case Resets(code):
                assert await visitor.reset_code(sid) == code
                # Only the stream is lost.
                other = visitor.raw(4, visitor.headers_frame(GET), True)
                assert (await visitor.answer(other)).status == 200
            case Answers(status):
                assert (await visitor.answer(sid)).status == status


async def test_a_client_that_does_not_want_our_control_stream_is_closed(front: H3Front) -> None:
    async with h3_visitor(front.port, raw=True) as visitor:
        await visitor.answer(visitor.raw(0, visitor.headers_frame(GET), True))
        visitor._quic.stop_stream(3, 0x100)
        visitor.transmit()
        assert await visitor.close_code() == h3.H3_CLOSED_CRITICAL_STREAM


async def test_our_side_keeps_the_rules(front: H3Front) -> None:
    """6.2.1: our control stream is one, begins with SETTINGS and names no setting of HTTP/2; 7.2.4.1, RFC 9204 §5."""
    async with h3_visitor(front.port, raw=True) as visitor:
        sid = visitor.raw(0, visitor.headers_frame(GET), True)
        await visitor.answer(sid)
        received = visitor.h3.received_settings
        assert received == {
            h3.MAX_FIELD_SECTION_SIZE: 32 * 1024 + 32 * 128,
            h3.ENABLE_CONNECT_PROTOCOL: 1,
        }  # no table, no blocked streams: the defaults
        assert visitor.ended is None


def test_the_page_lists_every_row() -> None:
    page = (Path(__file__).parents[2] / "docs" / "http3.md").read_text()
    missing = [f"| {section} | {what} |" for section, what, _, _ in ROWS if f"| {section} | {what} |" not in page]
    assert not missing, "docs/http3.md lacks:\n" + "\n".join(missing)

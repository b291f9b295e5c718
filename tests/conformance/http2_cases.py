"""What RFC 9113 demands of a server in sections 3 to 8: each demand with what a visitor sends and what must come of it.

`test_http2_rfc9113.py` runs the cases; the table in docs/http2.md is made of them by `PYTHONPATH=tests python tests/conformance/http2_cases.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from edgetun_core.http.h2 import PREFACE, Code
from edgetun_core.http.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    build_rst_stream,
    build_window_update,
    frame,
)
from support.h2_frames import GET, POST, block, headers, settings
from support.h2_visitor import H2Visitor

PATH = Path(__file__).resolve().parents[2] / "docs" / "http2.md"
BEGIN, END = "<!-- demands: begin -->\n", "<!-- demands: end -->\n"

Check = Callable[[H2Visitor], Awaitable[None]]


@dataclass(frozen=True)
class Case:
    """One demand. `send` goes out after the greeting, or in its place when `greet` is False; `check` says what must come."""

    section: str
    name: str
    demand: str
    send: bytes
    check: Check
    greet: bool = True


CASES: list[Case] = []


def breaks(*codes: Code) -> Check:
    """A connection error: GOAWAY with one of the codes, and the end of the connection."""

    async def check(visitor: H2Visitor) -> None:
        goaway = await visitor.goaway()
        assert goaway.code in codes, f"{goaway.code} is none of {codes}"

    return check


def resets(stream_id: int, *codes: Code) -> Check:
    """A stream error: RST_STREAM with one of the codes, and a connection that goes on."""

    async def check(visitor: H2Visitor) -> None:
        response = visitor.response(stream_id)
        await visitor.until(lambda: response.reset is not None)
        assert response.reset in codes, f"{response.reset} is none of {codes}"
        await goes_on(visitor)

    return check


def answers(*stream_ids: int, status: int = 200) -> Check:
    async def check(visitor: H2Visitor) -> None:
        for stream_id in stream_ids:
            assert (await visitor.answer(stream_id)).status == status

    return check


async def goes_on(visitor: H2Visitor) -> None:
    assert (await visitor.fetch(999)).status == 200
    assert not visitor.goaways


def ignores(visitor: H2Visitor) -> Awaitable[None]:
    return goes_on(visitor)


def case(section: str, name: str, demand: str, send: bytes, check: Check, *, greet: bool = True) -> None:
    CASES.append(Case(section, name, demand, send, check, greet))


def must(section: str, demand: str, send: bytes = b"", *, greet: bool = True) -> Callable[[Check], Check]:
    """Registers a check that is a conversation; its name is the function's."""

    def register(check: Check) -> Check:
        case(section, check.__name__.replace("_", " "), demand, send, check, greet=greet)
        return check

    return register


P, S, F, C = Code.PROTOCOL_ERROR, Code.STREAM_CLOSED, Code.FRAME_SIZE_ERROR, Code.FLOW_CONTROL_ERROR
get1 = headers(1, *GET)
post1 = headers(1, *POST, end=False)
whole = block(*GET)

# §3.4
case(
    "3.4",
    "a wrong preface",
    "an invalid preface is a connection error",
    PREFACE[:20] + b"XXXX" + settings(),
    breaks(P),
    greet=False,
)
case(
    "3.4",
    "a first frame that is not SETTINGS",
    "the client's preface includes SETTINGS as its first frame",
    PREFACE + get1,
    breaks(P),
    greet=False,
)
case(
    "3.4",
    "a first frame that acknowledges SETTINGS",
    "the client's preface includes SETTINGS as its first frame",
    PREFACE + SETTINGS_ACK,
    breaks(P),
    greet=False,
)


@must("3.4", "the server's first frame is SETTINGS, and frames may be sent before it is acknowledged", get1)
async def settings_come_first(visitor: H2Visitor) -> None:
    visitor.is_polite = False
    assert (await visitor.answer(1)).status == 200
    assert visitor.frames[0].kind == SETTINGS
    assert not visitor.frames[0].flags & ACK


# §4
case(
    "4.1",
    "an unknown frame",
    "frames of unknown types are ignored",
    frame(0xBA, 0xFF, 0, b"x" * 100) + frame(0xBA, 0, 7, b""),
    ignores,
)
case(
    "4.1",
    "unknown flags",
    "flags without a meaning for the type are ignored",
    frame(PING, 0xFE, 0, b"12345678") + frame(HEADERS, END_HEADERS | END_STREAM | 0x42, 1, whole),
    answers(1),
)
case(
    "4.1",
    "a reserved bit",
    "the reserved bit is ignored",
    frame(HEADERS, END_HEADERS | END_STREAM, 1 | 1 << 31, whole),
    answers(1),
)
case(
    "4.2",
    "a DATA frame of the largest size",
    "frames of 2^14 bytes are taken",
    post1 + frame(DATA, END_STREAM, 1, b"x" * 16_384),
    answers(1),
)
case(
    "4.2",
    "a DATA frame that is too large",
    "a larger frame is FRAME_SIZE_ERROR",
    post1 + frame(DATA, END_STREAM, 1, b"x" * 16_385),
    breaks(F),
)
case(
    "4.2",
    "a HEADERS frame that is too large",
    "one with a field block ends the connection",
    frame(HEADERS, END_HEADERS | END_STREAM, 1, whole + b"\0" * 16_385),
    breaks(F),
)
case(
    "4.2",
    "a SETTINGS frame that is too large",
    "one that could change the connection's state ends it",
    frame(SETTINGS, 0, 0, b"\0\x0a\0\0\0\0" * 2731),
    breaks(F),
)
case(
    "4.3",
    "an invalid field block",
    "a field block that cannot be decoded is COMPRESSION_ERROR",
    frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\xff\xff\xff"),
    breaks(Code.COMPRESSION_ERROR),
)
case(
    "4.3",
    "an invalid field block in trailers",
    "the same for trailers",
    post1 + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"),
    breaks(Code.COMPRESSION_ERROR),
)
case(
    "4.3",
    "a field block interrupted by PRIORITY",
    "a field block is contiguous",
    frame(HEADERS, END_STREAM, 1, whole[:5])
    + frame(PRIORITY, 0, 1, b"\0\0\0\0\x01")
    + frame(CONTINUATION, END_HEADERS, 1, whole[5:]),
    breaks(P),
)
case(
    "4.3",
    "a field block interrupted by another stream",
    "a field block is contiguous",
    frame(HEADERS, END_STREAM, 1, whole[:5]) + headers(3, *GET),
    breaks(P),
)
case(
    "4.3",
    "a field block interrupted by an unknown frame",
    "extension frames within a field block are an error (§5.5)",
    frame(HEADERS, END_STREAM, 1, whole[:5]) + frame(0xBA, 0, 1, b"x"),
    breaks(P),
)
case(
    "4.3",
    "a field block in pieces",
    "fragments are joined before they are decoded",
    frame(HEADERS, END_STREAM, 1, whole[:3])
    + frame(CONTINUATION, 0, 1, b"")
    + frame(CONTINUATION, 0, 1, whole[3:9])
    + frame(CONTINUATION, END_HEADERS, 1, whole[9:]),
    answers(1),
)
case(
    "4.3.1",
    "a table size update beyond the limit",
    "a size update beyond SETTINGS_HEADER_TABLE_SIZE is COMPRESSION_ERROR",
    frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xe2\x1f" + whole),
    breaks(Code.COMPRESSION_ERROR),
)
case(
    "4.3.1",
    "a table size update within a block",
    "a size update stands at a block's start",
    frame(HEADERS, END_HEADERS | END_STREAM, 1, whole + b"\x20"),
    breaks(Code.COMPRESSION_ERROR),
)


@must("4.3", "a field block of a stream that is not processed still updates the compression state", post1)
async def discarded_blocks_are_decoded(visitor: H2Visitor) -> None:
    await visitor.until(lambda: bool(visitor.frames))
    visitor.send(build_rst_stream(1, 0))
    # On a stream that was reset: refused, but its entry (x: y) enters the table; the next block refers to it.
    visitor.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x40\x01x\x01y"))
    visitor.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, whole + b"\xbe"))
    assert (await visitor.answer(3)).status == 200


@must(
    "4.3.1",
    "a smaller SETTINGS_HEADER_TABLE_SIZE is confirmed at the start of the next field block",
    settings((0x1, 0)) + get1,
)
async def a_smaller_table_is_confirmed(visitor: H2Visitor) -> None:
    assert (await visitor.answer(1)).status == 200
    first = next(one for one in visitor.frames if one.kind == HEADERS)
    assert first.payload[:1] == b"\x20"


# §5.1
for name, sent in {
    "DATA": frame(DATA, END_STREAM, 1, b"x"),
    "RST_STREAM": build_rst_stream(1, 8),
    "WINDOW_UPDATE": build_window_update(1, 1),
    "CONTINUATION": frame(CONTINUATION, END_HEADERS, 1, whole),
}.items():
    case("5.1", f"{name} on an idle stream", "an idle stream takes HEADERS and PRIORITY only", sent, breaks(P))
case(
    "5.1",
    "PRIORITY on an idle stream",
    "PRIORITY is taken in any state",
    frame(PRIORITY, 0, 9, b"\0\0\0\0\x01"),
    ignores,
)
slow1 = headers(1, GET[0], GET[1], GET[2], (b":path", b"/wait"))
case(
    "5.1",
    "DATA on a half-closed stream",
    "after END_STREAM other frames are STREAM_CLOSED",
    slow1 + frame(DATA, END_STREAM, 1, b"x"),
    resets(1, S),
)
case(
    "5.1",
    "HEADERS on a half-closed stream",
    "after END_STREAM other frames are STREAM_CLOSED",
    slow1 + headers(1, *GET),
    resets(1, S),
)
case(
    "5.1",
    "WINDOW_UPDATE, PRIORITY and RST_STREAM on a half-closed stream",
    "these are taken",
    slow1 + build_window_update(1, 5) + frame(PRIORITY, 0, 1, b"\0\0\0\0\x01") + build_rst_stream(1, 8),
    ignores,
)
case(
    "5.1",
    "DATA after RST_STREAM",
    "a stream that its sender reset takes no more",
    post1 + build_rst_stream(1, 8) + frame(DATA, 0, 1, b"x"),
    resets(1, S),
)
case(
    "5.1",
    "HEADERS after RST_STREAM",
    "a stream that its sender reset takes no more",
    post1 + build_rst_stream(1, 8) + headers(1, *GET),
    resets(1, S),
)
case(
    "5.1",
    "DATA on a closed stream",
    "frames after both ends said END_STREAM are STREAM_CLOSED",
    get1 + frame(DATA, 0, 1, b"x"),
    breaks(S),
)
case(
    "5.1",
    "HEADERS on a closed stream",
    "frames after both ends said END_STREAM are STREAM_CLOSED",
    get1 + get1,
    breaks(S),
)
case(
    "5.1",
    "PRIORITY on a closed stream",
    "PRIORITY is taken in any state",
    get1 + frame(PRIORITY, 0, 1, b"\0\0\0\0\x03"),
    ignores,
)
case(
    "5.1",
    "WINDOW_UPDATE and RST_STREAM on a closed stream",
    "these may have crossed the end",
    get1 + build_window_update(1, 9) + build_rst_stream(1, 0),
    ignores,
)
refused = headers(1, GET[0], *GET)  # malformed: reset by the server
case(
    "5.1",
    "frames on a stream that the server reset",
    "these may have crossed the reset and are ignored",
    refused + frame(DATA, 0, 1, b"x" * 9) + headers(1, *GET) + build_window_update(1, 9) + build_rst_stream(1, 0),
    ignores,
)
case("5.1.1", "an even stream", "clients open odd streams", headers(2, *GET), breaks(P))
case(
    "5.1.1",
    "a stream lower than the last",
    "stream identifiers only grow",
    headers(5, *GET) + headers(3, *GET),
    breaks(P),
)


@must("5.1.2", "more streams than SETTINGS_MAX_CONCURRENT_STREAMS are refused or an error", b"")
async def too_many_streams(visitor: H2Visitor) -> None:
    for stream_id in range(1, 203, 2):
        visitor.ask(stream_id, path=b"/wait")
    await visitor.until(lambda: visitor.response(201).reset is not None)
    assert visitor.response(201).reset in (Code.REFUSED_STREAM, P)
    visitor.send(build_rst_stream(1, 8))
    await goes_on(visitor)


# §5.2, §6.9
case(
    "6.9", "WINDOW_UPDATE of 0 on the connection", "an increment of 0 is an error", build_window_update(0, 0), breaks(P)
)
case(
    "6.9",
    "WINDOW_UPDATE of 0 on a stream",
    "an increment of 0 is an error",
    slow1 + build_window_update(1, 0),
    resets(1, P),
)
case(
    "6.9",
    "WINDOW_UPDATE of a wrong length",
    "a length other than 4 is FRAME_SIZE_ERROR",
    frame(WINDOW_UPDATE, 0, 0, b"\0\0\x01"),
    breaks(F),
)
case(
    "6.9.1",
    "a connection's window beyond 2^31-1",
    "the connection ends with FLOW_CONTROL_ERROR",
    build_window_update(0, 0x7FFFFFFF),
    breaks(C),
)
case(
    "6.9.1",
    "a stream's window beyond 2^31-1",
    "the stream ends with FLOW_CONTROL_ERROR",
    slow1 + build_window_update(1, 0x7FFFFFFF),
    resets(1, C),
)
case(
    "6.9.2",
    "an initial window that makes a stream's too large",
    "the connection ends with FLOW_CONTROL_ERROR",
    slow1 + build_window_update(1, 0x7FFFFFFF - 65_535) + settings((0x4, 65_536)),
    breaks(C),
)


@must("6.9.1", "no more DATA is sent than the windows allow, and the rest after an update", settings((0x4, 1)) + get1)
async def a_window_of_one_byte(visitor: H2Visitor) -> None:
    response = visitor.response(1)
    await visitor.until(lambda: bool(response.body))
    await visitor.roundtrip()
    assert len(response.body) == 1
    visitor.send(build_window_update(1, 100))
    assert (await visitor.answer(1)).body == b"hello /"


@must(
    "6.9.2", "a change of the initial window changes open streams' windows, also to below 0", settings((0x4, 5)) + get1
)
async def a_negative_window(visitor: H2Visitor) -> None:
    response = visitor.response(1)
    await visitor.until(lambda: len(response.body) == 5)
    visitor.send(settings((0x4, 3)), build_window_update(1, 2))
    await visitor.roundtrip()
    assert len(response.body) == 5
    visitor.send(build_window_update(1, 1))
    await visitor.until(lambda: len(response.body) == 6)
    visitor.send(settings((0x4, 100)))
    assert (await visitor.answer(1)).body == b"hello /"


@must(
    "6.9.2",
    "SETTINGS does not change the connection's window",
    settings((0x4, 1 << 20)) + headers(1, *GET[:3], (b":path", b"/large")),
)
async def the_connections_window_is_its_own(visitor: H2Visitor) -> None:
    await visitor.until(lambda: len(visitor.response(1).body) == 65_535)
    await visitor.roundtrip()
    assert len(visitor.response(1).body) == 65_535
    visitor.open_windows()
    assert len((await visitor.answer(1)).body) == 100_000


@must(
    "6.9",
    "DATA beyond the window is FLOW_CONTROL_ERROR; padding counts",
    headers(1, *POST[:3], (b":path", b"/hold"), end=False),
)
async def data_beyond_the_window(visitor: H2Visitor) -> None:
    visitor.send(frame(DATA, PADDED, 1, b"\xff" + b"x" * (16_384 - 256) + b"\0" * 255) * 17)
    await visitor.until(lambda: visitor.response(1).reset is not None)
    assert visitor.response(1).reset == C


@must("5.2", "windows are given back for what is taken, so that long bodies arrive", post1)
async def a_long_body_arrives(visitor: H2Visitor) -> None:
    visitor.open_windows(1)
    await visitor.roundtrip()
    (first,) = [one for one in visitor.frames if one.kind == SETTINGS and not one.flags & ACK]
    values = dict(struct.iter_unpack(">HL", first.payload))
    window, connection = values.get(0x4, 65_535), 65_535
    connection += sum(int.from_bytes(f.payload, "big") for f in visitor.frames if f.kind == WINDOW_UPDATE)
    for _ in range(64):
        size = 16_384
        while window < size or connection < size:
            seen = len(visitor.frames)
            await visitor.read_some()
            for one in visitor.frames[seen:]:
                if one.kind == WINDOW_UPDATE:
                    increment = int.from_bytes(one.payload, "big")
                    window, connection = (
                        (window + increment, connection) if one.stream_id else (window, connection + increment)
                    )
        window, connection = window - size, connection - size
        visitor.send(frame(DATA, 0, 1, b"x" * size))
    visitor.send(frame(DATA, END_STREAM, 1))
    assert (await visitor.answer(1)).status == 200


# §5.4
@must(
    "5.4.1",
    "GOAWAY names the last stream that was processed, then the connection is closed",
    get1 + headers(3, *GET) + headers(2, *GET),
)
async def goaway_names_the_last_stream(visitor: H2Visitor) -> None:
    goaway = await visitor.goaway()
    assert int.from_bytes(goaway.payload[:4], "big") == 3


@must("5.4.2", "RST_STREAM is not answered with RST_STREAM", post1 + build_rst_stream(1, 1))
async def a_reset_is_not_answered(visitor: H2Visitor) -> None:
    await visitor.roundtrip()
    assert not any(one.kind == RST_STREAM for one in visitor.frames)


# §6.1 - §6.4
case("6.1", "DATA on stream 0", "DATA belongs to a stream", frame(DATA, 0, 0, b"x"), breaks(P))
case(
    "6.1",
    "DATA with too much padding",
    "padding of the payload's length or more is an error",
    post1 + frame(DATA, PADDED, 1, b"\x05xxxx"),
    breaks(P),
)
case(
    "6.1",
    "DATA with padding",
    "padding is taken off",
    headers(1, *POST, (b"content-length", b"2"), end=False) + frame(DATA, PADDED | END_STREAM, 1, b"\x03hi\0\0\0"),
    answers(1),
)
case("6.2", "HEADERS on stream 0", "HEADERS belongs to a stream", headers(0, *GET), breaks(P))
case(
    "6.2",
    "HEADERS with too much padding",
    "padding of the payload's length or more is an error",
    frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, b"\xff" + whole),
    breaks(P),
)
case(
    "6.2",
    "HEADERS with padding and priority",
    "both are taken off",
    frame(HEADERS, END_HEADERS | END_STREAM | PADDED | WITH_PRIORITY, 1, b"\x02" + b"\0\0\0\0\x10" + whole + b"\0\0"),
    answers(1),
)
case(
    "6.2",
    "HEADERS too short for its priority",
    "a frame too short for its mandatory parts is FRAME_SIZE_ERROR",
    frame(HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 1, b"\0\0"),
    breaks(F),
)
case("6.3", "PRIORITY on stream 0", "PRIORITY belongs to a stream", frame(PRIORITY, 0, 0, b"\0\0\0\0\x01"), breaks(P))
case(
    "6.3",
    "PRIORITY of a wrong length",
    "a length other than 5 is a stream error FRAME_SIZE_ERROR",
    slow1 + frame(PRIORITY, 0, 1, b"\0\0\0\0"),
    resets(1, F),
)
case("6.4", "RST_STREAM on stream 0", "RST_STREAM belongs to a stream", build_rst_stream(0, 8), breaks(P))
case(
    "6.4",
    "RST_STREAM of a wrong length",
    "a length other than 4 is FRAME_SIZE_ERROR",
    slow1 + frame(RST_STREAM, 0, 1, b"\0\0\0"),
    breaks(F),
)

# §6.5
case(
    "6.5",
    "an acknowledgement of SETTINGS with values",
    "a length other than 0 is FRAME_SIZE_ERROR",
    frame(SETTINGS, ACK, 0, b"\0" * 6),
    breaks(F),
)
case("6.5", "SETTINGS on a stream", "SETTINGS belongs to the connection", frame(SETTINGS, 0, 1, b""), breaks(P))
case(
    "6.5",
    "SETTINGS of a wrong length",
    "a length that is no multiple of 6 is FRAME_SIZE_ERROR",
    frame(SETTINGS, 0, 0, b"\0\x03\0"),
    breaks(F),
)
case("6.5.2", "ENABLE_PUSH beyond 1", "a value other than 0 or 1 is PROTOCOL_ERROR", settings((0x2, 2)), breaks(P))
case(
    "6.5.2",
    "INITIAL_WINDOW_SIZE beyond 2^31-1",
    "a value beyond the maximum is FLOW_CONTROL_ERROR",
    settings((0x4, 1 << 31)),
    breaks(C),
)
case("6.5.2", "MAX_FRAME_SIZE below 2^14", "a value out of range is PROTOCOL_ERROR", settings((0x5, 16_383)), breaks(P))
case(
    "6.5.2",
    "MAX_FRAME_SIZE beyond 2^24-1",
    "a value out of range is PROTOCOL_ERROR",
    settings((0x5, 1 << 24)),
    breaks(P),
)
case("6.5.2", "an unknown setting", "unknown settings are ignored", settings((0xBABA, 1)), ignores)
case(
    "6.5.3",
    "a setting twice",
    "values are taken in order, without the ones before",
    settings((0x4, 1), (0x4, 100)) + get1,
    answers(1),
)


@must("6.5.3", "SETTINGS is acknowledged once its values are in force", settings((0x3, 7)))
async def settings_are_acknowledged(visitor: H2Visitor) -> None:
    await visitor.until(lambda: sum(one.kind == SETTINGS and one.flags & ACK for one in visitor.frames) == 2)
    assert all(one.payload == b"" for one in visitor.frames if one.kind == SETTINGS and one.flags & ACK)


# §6.6 - §6.8
case(
    "6.6",
    "PUSH_PROMISE from a client",
    "a client cannot push",
    post1 + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02" + whole),
    breaks(P),
)
case("6.7", "PING on a stream", "PING belongs to the connection", frame(PING, 0, 1, b"12345678"), breaks(P))
case(
    "6.7",
    "PING of a wrong length",
    "a length other than 8 is FRAME_SIZE_ERROR",
    frame(PING, 0, 0, b"1234567"),
    breaks(F),
)


@must(
    "6.7",
    "PING is answered with the same bytes, and an answer is not",
    frame(PING, ACK, 0, b"notasked") + frame(PING, 0, 0, b"asked..."),
)
async def ping_is_answered_once(visitor: H2Visitor) -> None:
    await visitor.roundtrip()
    assert [one.payload for one in visitor.frames if one.kind == PING and one.flags & ACK] == [b"asked...", b"roundtri"]


case("6.8", "GOAWAY on a stream", "GOAWAY belongs to the connection", frame(GOAWAY, 0, 1, bytes(8)), breaks(P))
case(
    "6.8",
    "GOAWAY that is too short",
    "a frame too short for its mandatory parts is FRAME_SIZE_ERROR",
    frame(GOAWAY, 0, 0, bytes(7)),
    breaks(F),
)
case(
    "6.8",
    "GOAWAY from a client",
    "what is under way is still served",
    post1 + frame(GOAWAY, 0, 0, bytes(8)) + frame(DATA, END_STREAM, 1, b"x"),
    answers(1),
)
case(
    "6.8",
    "GOAWAY with a growing stream",
    "the last stream of a later GOAWAY does not grow",
    frame(GOAWAY, 0, 0, bytes(8)) + frame(GOAWAY, 0, 0, b"\0\0\0\x02" + bytes(4)),
    breaks(P),
)

# §6.10
case(
    "6.10",
    "CONTINUATION on stream 0",
    "CONTINUATION belongs to a stream",
    frame(HEADERS, END_STREAM, 1, whole[:4]) + frame(CONTINUATION, END_HEADERS, 0, whole[4:]),
    breaks(P),
)
case(
    "6.10",
    "CONTINUATION on another stream",
    "CONTINUATION follows a frame of the same stream",
    frame(HEADERS, END_STREAM, 1, whole[:4]) + frame(CONTINUATION, END_HEADERS, 3, whole[4:]),
    breaks(P),
)
case(
    "6.10",
    "CONTINUATION after END_HEADERS",
    "CONTINUATION follows a frame without END_HEADERS",
    slow1 + frame(CONTINUATION, END_HEADERS, 1, whole),
    breaks(P),
)
case(
    "6.10",
    "CONTINUATION after DATA",
    "CONTINUATION follows HEADERS or CONTINUATION",
    post1 + frame(DATA, 0, 1, b"x") + frame(CONTINUATION, END_HEADERS, 1, whole),
    breaks(P),
)

# §7
case(
    "7",
    "unknown error codes",
    "unknown error codes trigger nothing special",
    slow1 + build_rst_stream(1, 0xFFFF) + frame(GOAWAY, 0, 0, bytes(4) + b"\xff" * 4),
    ignores,
)

# §8.1
case(
    "8.1",
    "trailers",
    "a message may end with trailers",
    post1 + frame(DATA, 0, 1, b"x") + headers(1, (b"x-check", b"1")),
    answers(1),
)
case(
    "8.1",
    "trailers that do not end the stream",
    "a second field block without END_STREAM is malformed",
    post1 + headers(1, (b"x", b"y"), end=False),
    resets(1, P),
)
case(
    "8.1",
    "trailers with a pseudo-header field",
    "trailers with one are malformed",
    post1 + headers(1, (b":method", b"GET")),
    resets(1, P),
)
case(
    "8.1.1",
    "less than the announced length",
    "a body of another length is malformed",
    headers(1, *POST, (b"content-length", b"5"), end=False) + frame(DATA, END_STREAM, 1, b"four"),
    resets(1, P),
)
case(
    "8.1.1",
    "more than the announced length",
    "a body of another length is malformed",
    headers(1, *POST, (b"content-length", b"5"), end=False) + frame(DATA, 0, 1, b"sixsix"),
    resets(1, P),
)
case(
    "8.1.1",
    "an announced length and no body",
    "a body of another length is malformed",
    headers(1, *POST, (b"content-length", b"5")),
    resets(1, P),
)
case(
    "8.1.1",
    "an announced length and trailers too early",
    "a body of another length is malformed",
    headers(1, *POST, (b"content-length", b"5"), end=False) + headers(1, (b"x", b"y")),
    resets(1, P),
)


@must(
    "8.1",
    "a response may be whole before its request is: the rest is told to stop with NO_ERROR",
    headers(1, *POST[:3], (b":path", b"/early"), end=False),
)
async def an_early_response(visitor: H2Visitor) -> None:
    response = visitor.response(1)
    await visitor.until(lambda: response.ended)
    assert response.body == b"early"
    for _ in range(17):
        visitor.send(frame(DATA, 0, 1, b"x" * 16_000))
        await visitor.roundtrip()
    await visitor.until(lambda: response.reset is not None)
    assert response.reset == Code.NO_ERROR
    await goes_on(visitor)


# §8.2
MALFORMED: dict[str, tuple[str, str, tuple[tuple[bytes, bytes], ...]]] = {
    "a name in upper case": ("8.2.1", "field names are in lower case", (*GET, (b"X-Upper", b"y"))),
    "a name with a space": (
        "8.2.1",
        "field names hold no control characters, spaces or upper case",
        (*GET, (b"x y", b"z")),
    ),
    "a name with a byte beyond ASCII": ("8.2.1", "field names hold no bytes beyond 0x7e", (*GET, (b"x\xff", b"z"))),
    "a name with a colon": (
        "8.2.1",
        "only pseudo-header fields' names hold a colon, at the start",
        (*GET, (b"x:y", b"z")),
    ),
    "a value with NUL": ("8.2.1", "field values hold no NUL, CR or LF", (*GET, (b"x", b"a\0b"))),
    "a value with CR": ("8.2.1", "field values hold no NUL, CR or LF", (*GET, (b"x", b"a\rb"))),
    "a value with LF": ("8.2.1", "field values hold no NUL, CR or LF", (*GET, (b"x", b"a\nb"))),
    "a value with a space first": ("8.2.1", "field values begin and end without white space", (*GET, (b"x", b" a"))),
    "a value with a tab last": ("8.2.1", "field values begin and end without white space", (*GET, (b"x", b"a\t"))),
    **{
        f"the field {name.decode()}": ("8.2.2", "fields about the connection are malformed", (*GET, (name, b"x")))
        for name in (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
    },
    "TE other than trailers": ("8.2.2", "TE holds nothing but trailers", (*GET, (b"te", b"gzip"))),
    "an unknown pseudo-header field": (
        "8.3",
        "pseudo-header fields that are not defined are malformed",
        (*GET, (b":new", b"x")),
    ),
    "a response's pseudo-header field": (
        "8.3",
        "pseudo-header fields stand in their own kind of message",
        (*GET, (b":status", b"200")),
    ),
    "a pseudo-header field after a regular one": (
        "8.3",
        "pseudo-header fields come first",
        (*GET[:3], (b"x", b"y"), GET[3]),
    ),
    "a pseudo-header field twice": ("8.3", "a pseudo-header field stands once", (*GET, GET[3])),
    "no :method": ("8.3.1", "a request has one :method, :scheme and :path", GET[1:]),
    "no :scheme": ("8.3.1", "a request has one :method, :scheme and :path", (GET[0], *GET[2:])),
    "no :path": ("8.3.1", "a request has one :method, :scheme and :path", GET[:3]),
    "an empty :path": ("8.3.1", ":path is not empty", (*GET[:3], (b":path", b""))),
    "a :path without a slash": ("8.3.1", ":path is an absolute path, or * for OPTIONS", (*GET[:3], (b":path", b"x"))),
    "user information in :authority": (
        "8.3.1",
        ":authority holds no user information",
        (*GET[:2], (b":authority", b"me@localhost"), GET[3]),
    ),
    ":authority and Host that differ": (
        "8.3.1",
        "a Host that differs from :authority is malformed",
        (*GET, (b"host", b"other.example")),
    ),
    "neither :authority nor Host": ("8.3.1", "a request for http or https names its authority", (*GET[:2], GET[3])),
    "CONNECT with :path": (
        "8.5",
        "CONNECT has :authority and neither :scheme nor :path",
        ((b":method", b"CONNECT"), *GET[1:]),
    ),
    ":protocol without CONNECT": (
        "8.3 (RFC 8441 §4)",
        ":protocol stands in CONNECT alone",
        (*GET, (b":protocol", b"websocket")),
    ),
}
for name, (section, demand, fields) in MALFORMED.items():
    case(section, name, demand, headers(1, *fields), resets(1, P))
case("8.2.2", "TE with trailers", "TE: trailers is taken", headers(1, *GET, (b"te", b"trailers")), answers(1))
case(
    "8.3.1",
    "Host in place of :authority",
    "a request without :authority is taken by its Host",
    headers(1, *GET[:2], GET[3], (b"host", b"localhost")),
    answers(1),
)
case(
    "8.3.1",
    "OPTIONS *",
    ":path may be * for OPTIONS",
    headers(1, (b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")),
    answers(1),
)
case(
    "8.5",
    "CONNECT",
    "CONNECT that is not offered is refused",
    headers(1, (b":method", b"CONNECT"), (b":authority", b"localhost:1")),
    answers(1, status=501),
)


@must(
    "8.2.3",
    "crumbs of Cookie are joined before they are passed on",
    headers(1, *GET[:3], (b":path", b"/fields"), (b"cookie", b"a=1"), (b"cookie", b"b=2")),
)
async def cookies_are_joined(visitor: H2Visitor) -> None:
    assert (await visitor.answer(1)).body == b"cookie: a=1; b=2"


@must(
    "8.3.2",
    "a response has one :status and no other pseudo-header field, before all else, in lower case",
    headers(1, *GET[:3], (b":path", b"/interim")),
)
async def responses_are_well_formed(visitor: H2Visitor) -> None:
    response = await visitor.answer(1)
    assert [dict(head)[b":status"] for head in response.heads[:2]] == [b"103", b"200"]
    for head in response.heads[:2]:
        assert head[0][0] == b":status"
        assert not any(name.startswith(b":") or name != name.lower() for name, _ in head[1:])
    assert response.heads[2] == [(b"x-sum", b"1")]
    assert not {b"connection", b"transfer-encoding", b"keep-alive", b"upgrade"} & {
        name for head in response.heads for name, _ in head
    }


@must("8.4", "nothing is pushed", settings((0x2, 1)) + get1)
async def nothing_is_pushed(visitor: H2Visitor) -> None:
    await visitor.answer(1)
    assert not any(one.kind == PUSH_PROMISE for one in visitor.frames)


@must("8.7", "a request is refused before it was processed, or answered; never both", b"")
async def refusals_are_whole(visitor: H2Visitor) -> None:
    for stream_id in range(1, 301, 2):
        visitor.ask(stream_id, path=b"/wait")
    await visitor.until(lambda: visitor.response(299).reset is not None)
    await visitor.roundtrip()
    both = [r for r in visitor.responses.values() if r.reset == Code.REFUSED_STREAM and r.heads]
    assert not both
    assert sum(r.reset == Code.REFUSED_STREAM for r in visitor.responses.values()) == 50


def table() -> str:
    """The demands as docs/http2.md shows them."""
    lines = ["| section | a server must see to it that | case |", "| --- | --- | --- |"]
    lines += [f"| {one.section} | {one.demand} | {one.name} |" for one in CASES]
    return "\n".join(lines).replace("*", "\\*") + "\n"


def embedded(text: str) -> str:
    """The page's text with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PATH.write_text(embedded(PATH.read_text()))

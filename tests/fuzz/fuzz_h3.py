"""Hostile bytes for everything that reads HTTP/3: streams of every kind of one connection, in pieces, ended and reset anywhere.

Only H3Error may come out; what is held is counted right to the last byte; frames read the same however they are cut; and every
exchange that was opened is over when the connection is.
"""

from __future__ import annotations

import asyncio

from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.h3_frames import (
    FrameReader,
    FrameTooLarge,
    H3Error,
    encode_frame,
    encode_settings,
    encode_varint,
)
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.http.qpack import encode_section
from support.h3_stub import StubFront
from support.handlers import Asked, echo, hello

_GET = encode_frame(1, encode_section([
    (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"shop.example"), (b":path", b"/"), (b"x", b"y"),
]))  # fmt: skip
_POST = encode_frame(1, encode_section([
    (b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"shop.example"), (b":path", b"/echo"),
]))  # fmt: skip
_TRAILERS = encode_frame(1, encode_section([(b"x-sum", b"1")]))
_SIDS = (0, 4, 8, 2, 6, 10, 14, 0)


def _piece(stream: int, data: bytes, *, end: bool = False, reset: bool = False) -> bytes:
    return bytes((stream | (0x10 if end else 0) | (0x20 if reset else 0), min(len(data), 255))) + data[:255]


SEEDS = [
    _piece(0, _GET, end=True) + _piece(1, _POST) + _piece(1, b"\x00\x05hello") + _piece(1, _TRAILERS, end=True),
    _piece(3, b"\x00" + encode_settings({6: 1000, 0x21: 1})) + _piece(0, _GET, end=True) + _piece(0, b"", reset=True),
    _piece(
        3, b"\x00\x04\x00" + encode_frame(0xF0700, b"\x00u=1") + encode_frame(7, b"\x00") + encode_frame(0xD, b"\x01")
    ),
    _piece(4, b"\x02\x20") + _piece(5, b"\x03\x7f\x81\x01\x41") + _piece(6, encode_varint(0x21) + b"x"),
    _piece(1, _POST[:7]) + _piece(1, _POST[7:]) + _piece(1, b"\x00\x40\x80" + bytes(128), end=True),
    _piece(0, b"\x21\x03abc" + _GET + b"\x00\x00\x00\x00"),
]


class _Handler:
    """Answers, echoes, or pauses; and knows whether each exchange came to an end."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        asked = Asked(head, peer, end, client)
        self.asked.append(asked)
        if head.target == b"/echo":
            client.pause_request()
            echo(asked)
        elif len(self.asked) % 2:
            hello(asked)
        return asked


def fuzz(data: bytes) -> None:
    """Cuts the bytes into pieces for the streams of a connection, and reads them as frames, whole and in halves."""
    _frames(data)
    asyncio.run(_connection(data))


def _frames(data: bytes) -> None:
    whole = _read(data, len(data) or 1)
    for size in (1, 3, 7):
        assert _read(data, size) == whole, size


def _read(data: bytes, size: int) -> tuple[list[tuple[int, bytes]], object]:
    """Frames with neighbouring pieces of DATA joined, and how it ended."""
    reader = FrameReader(200)
    found: list[tuple[int, bytes]] = []
    for at in range(0, len(data), size):
        try:
            frames = reader.feed(data[at : at + size])
        except FrameTooLarge as error:
            # What came before in the same piece is lost with the connection; only the reason must be the same.
            return [], (error.type, error.size)
        assert reader.held_bytes <= 200 + 16
        for kind, payload in frames:
            if kind == 0 and found and found[-1][0] == 0 and payload and found[-1][1]:
                found[-1] = (0, found[-1][1] + payload)
            else:
                found.append((kind, payload))
    return found, reader.is_between_frames


async def _connection(data: bytes) -> None:
    handler = _Handler()
    front = StubFront(handler)
    connection, quic = front.connection()
    over: set[int] = set()
    at = 0
    try:
        while at + 2 <= len(data):
            how, size = data[at], data[at + 1]
            sid = _SIDS[how & 7]
            piece = data[at + 2 : at + 2 + size]
            at += 2 + size
            if how & 0x40:
                front.run_later()
                for asked in handler.asked:
                    if how & 0x80:
                        asked.client.resume_request()
            if sid in over:
                continue
            if how & 0x20:
                over.add(sid)
                connection.stream_reset(sid, 0x10C)
            else:
                if how & 0x10:
                    over.add(sid)
                connection.stream_data(sid, piece, how & 0x10 != 0)
            held = sum(
                exchange.counted[0] + exchange.counted[1] for exchange in connection.streams.values() if exchange.reader
            )
            assert front.held_bytes >= held
    except H3Error as error:
        connection.fail(error)
    for asked in handler.asked:
        asked.client.resume_request()
    front.run_later()
    if not front.gone:
        connection.give_up("the end")
    assert front.held_bytes == 0
    assert quic.closed is not None
    for asked in handler.asked:
        assert asked.error is not None or asked.ended or asked.head.target != b"/echo", "an exchange was left open"

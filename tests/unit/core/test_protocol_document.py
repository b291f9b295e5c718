"""The examples in docs/protocol.md are what the code says and understands, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from edgetun_core.errors import ERRORS_BY_CODE, Cancelled
from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.wire import frames
from edgetun_core.wire.frames import encode_frame, encode_reset, name_of
from edgetun_core.wire.heads import encode_request, encode_response, encode_trailers
from edgetun_core.wire.hello import Close, Drain, Hello, Refusal, Welcome, encode_control
from support.wire import frames_in

DOCUMENT = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text("utf-8")
EXAMPLES = [bytes.fromhex(block) for block in re.findall(r"```hex\n(.*?)```", DOCUMENT, re.DOTALL)]

HELLO = Hello(
    agent_id="laptop",
    session_id="00112233445566778899aabbccddeeff",
    credential="c",
    services=("team-a/shop",),
    software="edgetun/0.1.0",
)
REQUEST = RequestHead(b"GET", b"https", b"shop.example.com", b"/", ((b"accept", b"*/*"),), None, "team-a/shop")
CREDIT = (128 * 1024).to_bytes(4, "big")

WRITTEN = [
    encode_frame(frames.HELLO, 0, encode_control(HELLO)),
    encode_frame(
        frames.WELCOME, 0, encode_control(Welcome(node="n1", services=("team-a/shop",), server_time=1_700_000_000.0))
    ),
    encode_frame(frames.HEAD_END, 2, encode_request(REQUEST)),
    encode_frame(frames.HEAD, 2, encode_response(ResponseHead(200, ((b"content-length", b"5"),))))
    + encode_frame(frames.DATA_END, 2, b"hello"),
    encode_frame(frames.CREDIT, 2, CREDIT)
    + encode_frame(frames.CREDIT, 0, CREDIT)
    + encode_frame(frames.MOVE, 2, (4).to_bytes(4, "big"))
    + encode_frame(frames.TRAILERS, 2, encode_trailers(((b"grpc-status", b"0"),))),
    encode_reset(2, Cancelled("the visitor left")),
    encode_frame(frames.PING, 0, (1).to_bytes(8, "big"))
    + encode_frame(frames.DRAIN, 0, encode_control(Drain(deadline_s=30.0, reason="bye", last_opened=2)))
    + encode_frame(frames.CLOSE, 0, encode_control(Close()))
    + encode_frame(frames.CLOSE, 0, encode_control(Close(code=3, reason="DATA before HEAD"))),
]


@pytest.mark.parametrize("index", range(len(WRITTEN)))
def test_an_example_is_what_the_code_writes(index: int):
    assert frames_in(EXAMPLES[index]) == frames_in(WRITTEN[index])
    assert EXAMPLES[index] == WRITTEN[index]


def test_there_are_no_other_examples():
    assert len(EXAMPLES) == len(WRITTEN)


@pytest.mark.parametrize("kind", sorted(frames.NAMES))
def test_every_kind_of_frame_is_in_the_table(kind: int):
    assert re.search(rf"\| (0x\w\w, )?0x{kind:02x}[ ,].*\| (\S+, )?{re.escape(name_of(kind))}[ ,]", DOCUMENT)


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
def test_every_close_code_is_in_the_table(code: int):
    assert re.search(rf"\| {code} \| \w", DOCUMENT)


@pytest.mark.parametrize("message", [Hello(), Welcome(), Refusal(), Drain(), Close()], ids=lambda m: type(m).__name__)
def test_every_name_of_a_control_payload_is_in_the_tables(message: object):
    for name in message.__struct_fields__:  # type: ignore[attr-defined]
        assert re.search(rf"\b{name}\b", DOCUMENT)


@pytest.mark.parametrize("message", [Hello(), Welcome()], ids=lambda message: type(message).__name__)
def test_hello_and_welcome_say_everything_since_another_version_may_have_other_defaults(message: Hello | Welcome):
    assert set(msgspec.msgpack.decode(encode_control(message))) == set(message.__struct_fields__)

"""Response heads from an origin: framing, what is forgiven, what is not; and heads as they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.http.h1 import (
    CHUNKED,
    UNTIL_CLOSE,
    H1Error,
    H1Limits,
    ParsedResponse,
    parse_request,
    parse_response,
    render_request,
    render_response,
)
from edgetun_core.http.message import RequestHead, ResponseHead


def parse(*lines: bytes, method: bytes = b"GET") -> ParsedResponse:
    return parse_response(b"\r\n".join((*lines, b"", b"")), method)


OK = b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "line", [OK, b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.1 200 Sehr sch\xf6n", b"HTTP/1.0 200 OK"]
)
def test_status_lines(line: bytes) -> None:
    assert parse(line).head.status == 200


@pytest.mark.parametrize(
    "block",
    [
        *(b"", b"\r\n\r\n", b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 20 OK\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n"),
        *(b"HTTP/1.1 600 X\r\n\r\n", b"HTTP/1.1 099 X\r\n\r\n", b"ICY 200 OK\r\n\r\n", b"200 OK\r\n\r\n"),
        *(b"HTTP/1.1 200 O\x00K\r\n\r\n", b"HTTP/1.1 200 OK\nA: b\r\n\r\n", b"HTTP/1.1  200 OK\r\n\r\n"),
        *(
            OK + b"\r\nA: \x00\r\n\r\n",
            OK + b"\r\nA b: c\r\n\r\n",
            OK + b"\r\nA\r\n\r\n",
            OK + b"\r\nA: b\rC: d\r\n\r\n",
        ),
        *(OK + b"\r\nA: b\nC: d\r\n\r\n", OK + b"\r\n folded: x\r\n\r\n", OK + b"\r\nA: b\r\n"),
        *(OK + b"\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", OK + b"\r\nContent-Length: 5, 6\r\n\r\n"),
        *(
            OK + b"\r\nContent-Length: +5\r\n\r\n",
            OK + b"\r\nContent-Length: x\r\n\r\n",
            OK + b"\r\nContent-Length:\r\n\r\n",
        ),
        *(
            OK + b"\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            OK + b"\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        ),
        OK + b"\r\n" + b"A: b\r\n" * 300 + b"\r\n",
    ],
)
def test_what_is_not_a_response_is_the_origins_fault(block: bytes) -> None:
    with pytest.raises(H1Error) as caught:
        parse_response(block, b"GET")
    assert caught.value.status in (431, 502)


@pytest.mark.parametrize(
    ("lines", "method", "length", "keep_alive"),
    [
        ((OK, b"Content-Length: 5"), b"GET", 5, True),
        ((OK, b"Content-Length: 5"), b"HEAD", 0, True),
        ((OK, b"Transfer-Encoding: chunked"), b"GET", CHUNKED, True),
        ((OK, b"Transfer-Encoding: chunked"), b"HEAD", 0, True),
        ((OK, b"Transfer-Encoding: chunked", b"Content-Length: 5"), b"GET", CHUNKED, False),
        ((b"HTTP/1.0 200 OK", b"Transfer-Encoding: chunked"), b"GET", CHUNKED, False),
        ((OK, b"Transfer-Encoding: identity", b"Content-Length: 5"), b"GET", 5, True),
        ((OK,), b"GET", UNTIL_CLOSE, False),
        ((OK,), b"HEAD", 0, True),
        ((OK, b"Connection: close", b"Content-Length: 5"), b"GET", 5, False),
        ((b"HTTP/1.0 200 OK", b"Content-Length: 5"), b"GET", 5, False),
        ((b"HTTP/1.0 200 OK", b"Content-Length: 5", b"Connection: Keep-Alive"), b"GET", 5, True),
        ((b"HTTP/1.1 204 No Content", b"Content-Length: 5"), b"GET", 0, True),
        ((b"HTTP/1.1 304 Not Modified", b"Content-Length: 5"), b"GET", 0, True),
        ((b"HTTP/1.1 100 Continue",), b"POST", 0, True),
        ((b"HTTP/1.1 103 Early Hints", b"Link: </a>"), b"GET", 0, True),
    ],
)
def test_framing(lines: tuple[bytes, ...], method: bytes, length: int, keep_alive: bool) -> None:
    parsed = parse(*lines, method=method)
    assert (parsed.body_length, parsed.keep_alive) == (length, keep_alive)


def test_a_length_beside_chunked_is_dropped() -> None:
    assert parse(OK, b"Content-Length: 5", b"Transfer-Encoding: chunked").head.fields == ()


def test_the_length_stays_for_head_and_304_and_goes_for_204() -> None:
    assert parse(OK, b"Content-Length: 5", method=b"HEAD").head.get(b"content-length") == b"5"
    assert parse(b"HTTP/1.1 304 X", b"Content-Length: 5").head.get(b"content-length") == b"5"
    assert parse(b"HTTP/1.1 204 X", b"Content-Length: 5").head.get(b"content-length") is None


@pytest.mark.parametrize(
    "lines", [(b"Content-Length: 5", b"content-length: 5"), (b"Content-Length: 5, 5",), (b"Content-Length: 5,5, 5",)]
)
def test_the_same_length_several_times_is_one(lines: tuple[bytes, ...]) -> None:
    parsed = parse(OK, *lines)
    assert parsed.body_length == 5
    assert parsed.head.get_all(b"content-length") == [b"5"]


def test_old_habits_are_forgiven() -> None:
    parsed = parse(OK, b"A : 1", b"B: x", b"\t y", b"C: a\x01b", b"D: \xe9", b"Content-Length: 0")
    assert parsed.head.fields == (
        (b"a", b"1"),
        (b"b", b"x y"),
        (b"c", b"a b"),
        (b"d", b"\xe9"),
        (b"content-length", b"0"),
    )


def test_hop_by_hop_fields_are_dropped() -> None:
    lines = (b"Connection: keep-alive, X-A", b"Keep-Alive: timeout=5", b"X-A: 1", b"X-B: 2", b"Content-Length: 0")
    assert parse(OK, *lines).head.fields == ((b"x-b", b"2"), (b"content-length", b"0"))


def test_an_accepted_upgrade_names_its_protocol() -> None:
    parsed = parse(b"HTTP/1.1 101 Switching Protocols", b"Connection: Upgrade", b"Upgrade: WebSocket", b"X-A: 1")
    assert parsed.upgrade == b"websocket"
    assert parsed.head.fields == ((b"x-a", b"1"),)
    assert parse(OK, b"Connection: upgrade", b"Upgrade: h2c", b"Content-Length: 0").upgrade is None


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_h1_error(data: bytes) -> None:
    for block in (data, data + b"\r\n\r\n", OK + b"\r\n" + data + b"\r\n\r\n"):
        for method in (b"GET", b"HEAD"):
            try:
                parsed = parse_response(block, method)
            except H1Error:
                continue
            for name, value in parsed.head.fields:
                assert not set(name + value) & set(b"\r\n\x00")


def head(
    *fields: tuple[bytes, bytes], method: bytes = b"GET", target: bytes = b"/x", protocol: bytes | None = None
) -> RequestHead:
    return RequestHead(method, b"http", b"a.example", target, fields, protocol)


@pytest.mark.parametrize(
    ("request_head", "body", "expected"),
    [
        (head((b"accept", b"*/*")), "none", b"GET /x HTTP/1.1\r\nhost: o:80\r\naccept: */*\r\n\r\n"),
        (head(method=b"POST"), "none", b"POST /x HTTP/1.1\r\nhost: o:80\r\ncontent-length: 0\r\n\r\n"),
        (
            head((b"content-length", b"3"), method=b"POST"),
            "length",
            b"POST /x HTTP/1.1\r\nhost: o:80\r\ncontent-length: 3\r\n\r\n",
        ),
        (
            head((b"content-length", b"3"), (b"a", b"b"), method=b"PUT"),
            "chunked",
            b"PUT /x HTTP/1.1\r\nhost: o:80\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (
            head(protocol=b"websocket"),
            "none",
            b"GET /x HTTP/1.1\r\nhost: o:80\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        ),
        (
            head((b"te", b"trailers")),
            "none",
            b"GET /x HTTP/1.1\r\nhost: o:80\r\nte: trailers\r\nconnection: te\r\n\r\n",
        ),
    ],
)
def test_requests_as_written(request_head: RequestHead, body: str, expected: bytes) -> None:
    for _ in range(2):  # fresh, and from the rendering kept on the head
        assert render_request(request_head, authority=b"o:80", body=body) == expected  # type: ignore[arg-type]


def test_a_written_request_is_read_as_the_same_head() -> None:
    original = head((b"accept", b"*/*"), (b"te", b"trailers"), protocol=b"websocket")
    block = render_request(original, authority=b"a.example", body="none")
    assert parse_request(block, b"http", H1Limits()).head == original


@pytest.mark.parametrize(
    ("chunked", "keep_alive", "minor", "added"),
    [
        (False, True, 1, b""),
        (True, True, 1, b"transfer-encoding: chunked\r\n"),
        (False, False, 1, b"connection: close\r\n"),
        (True, False, 1, b"transfer-encoding: chunked\r\nconnection: close\r\n"),
        (False, True, 0, b"connection: keep-alive\r\n"),
        (False, False, 0, b"connection: close\r\n"),
    ],
)
def test_responses_as_written(chunked: bool, keep_alive: bool, minor: int, added: bytes) -> None:
    for fields in (((b"a", b"b"),), ((b"a", b"b"), (b"date", b"x"))):
        response = ResponseHead(404, fields)
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        for _ in range(2):
            rendered = render_response(response, chunked=chunked, keep_alive=keep_alive, http_minor=minor)
            assert rendered == b"HTTP/1.1 404 Not Found\r\n" + lines + added + b"\r\n"


def test_an_unknown_status_has_no_phrase() -> None:
    rendered = render_response(ResponseHead(299, ()), chunked=False, keep_alive=True, http_minor=1)
    assert rendered == b"HTTP/1.1 299 \r\n\r\n"


def test_interim_heads_and_upgrades_say_nothing_of_framing() -> None:
    early = render_response(ResponseHead(103, ((b"link", b"</a>"),)), chunked=True, keep_alive=False, http_minor=1)
    assert early == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    accepted = render_response(
        ResponseHead(101, ()), chunked=False, keep_alive=True, http_minor=1, upgrade=b"websocket"
    )
    assert accepted == b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"

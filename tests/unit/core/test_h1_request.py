"""Request heads: what is read, and everything that is refused because two readers might read it differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.http.h1 import CHUNKED, H1Error, H1Limits, ParsedRequest, parse_authority, parse_request

LIMITS = H1Limits()


def parse(block: bytes, scheme: bytes = b"http") -> ParsedRequest:
    return parse_request(block, scheme, LIMITS)


def refused(block: bytes, scheme: bytes = b"http") -> int:
    with pytest.raises(H1Error) as caught:
        parse(block, scheme)
    return caught.value.status


def get(*lines: bytes, target: bytes = b"/", version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    """A request with a valid Host and these further lines."""
    return b"\r\n".join((method + b" " + target + b" " + version, b"Host: a.example", *lines, b"", b""))


def test_a_plain_request_is_read_whole() -> None:
    parsed = parse(b"GET /p?q=1 HTTP/1.1\r\nHost: Shop.Example.com:8080\r\nAccept:  text/html \r\nX-Empty:\r\n\r\n")
    head = parsed.head
    assert (head.method, head.scheme, head.authority, head.target) == (
        b"GET",
        b"http",
        b"shop.example.com:8080",
        b"/p?q=1",
    )
    assert head.fields == ((b"accept", b"text/html"), (b"x-empty", b""))
    assert (parsed.body_length, parsed.keep_alive, parsed.http_minor, head.protocol) == (0, True, 1, None)
    assert parsed.is_simple


def test_the_least_request_is_read() -> None:
    assert parse(b"GET / HTTP/1.0\r\n\r\n").head.authority == b""


def test_repeated_fields_keep_their_order() -> None:
    parsed = parse(get(b"X-A: 1", b"x-b: 2", b"X-a: 3"))
    assert parsed.head.fields == ((b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3"))


def test_bytes_beyond_ascii_in_a_value_are_carried_as_they_are() -> None:
    assert parse(get(b"X-Name: \xc3\xa9")).head.get(b"x-name") == b"\xc3\xa9"


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),  # HTTP/0.9
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
        (b"GET / HTTP/11\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/01.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"M" * 33 + b" / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"\x16\x03\x01\x02\x00 / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", 400),
    ],
)
def test_a_broken_request_line_is_refused(block: bytes, status: int) -> None:
    assert refused(block) == status


@pytest.mark.parametrize("version", [b"HTTP/1.2", b"HTTP/1.9"])
def test_a_higher_minor_version_is_read_as_1_1(version: bytes) -> None:
    assert parse(get(version=version)).http_minor == 1


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"X A: 1", 400),
        (b"X-A : 1", 400),
        (b"X-A\t: 1", 400),
        (b" X-A: 1", 400),
        (b"\tX-A: 1", 400),
        (b"X-A: 1\r\n folded", 400),
        (b"X-A: 1\r\n\tfolded", 400),
        (b"X-A", 400),
        (b": 1", 400),
        (b"X-\x00A: 1", 400),
        (b"X-A: \x00", 400),
        (b"X-A: a\x01b", 400),
        (b"X-A: a\x0bb", 400),
        (b"X-A: a\x7fb", 400),
        (b"X-A: a\nX-B: b", 400),
        (b"X-A: a\rX-B: b", 400),
        (b"X-A: a\r\rX-B: b", 400),
        (b"X-A: a\n\r\nX-B: b", 400),
        (b"X(A): 1", 400),
        (b'X"A": 1', 400),
        (b"X\xc3\xa9: 1", 400),
        (b"Transfer-Encoding\x0b: chunked", 400),
        (b"\x00Transfer-Encoding: chunked", 400),
    ],
)
def test_a_broken_field_line_is_refused(line: bytes, status: int) -> None:
    assert refused(get(line)) == status


@pytest.mark.parametrize(
    "lines",
    [
        # CL and TE together, in every order and disguise
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"content-length: 0", b"TRANSFER-ENCODING: CHUNKED"),
        (b"Content-Length: 5", b"Transfer-Encoding: identity"),
        # CL that is not one number
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: 5", b"Content-Length: 5"),
        (b"Content-Length: 5, 5",),
        (b"Content-Length: 5, 6",),
        (b"Content-Length: +5",),
        (b"Content-Length: -5",),
        (b"Content-Length: 5 5",),
        (b"Content-Length: 0x5",),
        (b"Content-Length: 5.0",),
        (b"Content-Length: 5;",),
        (b"Content-Length: 1e3",),
        (b"Content-Length: 1_000",),
        (b"Content-Length: \xb2",),
        (b"Content-Length:",),
        (b'Content-Length: "5"',),
        # TE in disguise
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        (b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"),
        (b"Transfer-Encoding: chunked, chunked",),
        (b"Transfer-Encoding: chunked, identity",),
        (b"Transfer-Encoding: chunked, gzip",),
        (b"Transfer-Encoding: xchunked",),
        (b"Transfer-Encoding: chunkedx",),
        (b"Transfer-Encoding: chunked;foo=bar",),
        (b"Transfer-Encoding: chunked,",),
        (b"Transfer-Encoding: , chunked",),
        (b'Transfer-Encoding: "chunked"',),
        (b"Transfer-Encoding: chun\xffked",),
        (b"Transfer-Encoding:",),
        # Connection that would take the framing away
        (b"Content-Length: 5", b"Connection: close, Content-Length"),
        (b"Connection: Host",),
    ],
)
def test_a_doubtful_body_length_is_refused(lines: tuple[bytes, ...]) -> None:
    assert refused(get(*lines, method=b"POST")) in (400, 501)


@pytest.mark.parametrize(
    ("value", "status"), [(b"gzip, chunked", 501), (b"gzip", 501), (b"identity", 501), (b"deflate", 501)]
)
def test_another_transfer_coding_is_not_implemented(value: bytes, status: int) -> None:
    assert refused(get(b"Transfer-Encoding: " + value, method=b"POST")) == status


def test_a_transfer_coding_in_http_1_0_is_refused() -> None:
    assert refused(get(b"Transfer-Encoding: chunked", version=b"HTTP/1.0", method=b"POST")) == 400


@pytest.mark.parametrize(("value", "length"), [(b"0", 0), (b"5", 5), (b"007", 7), (b"9" * 18, int("9" * 18))])
def test_a_content_length_is_a_number(value: bytes, length: int) -> None:
    parsed = parse(get(b"Content-Length: " + value, method=b"POST"))
    assert parsed.body_length == length
    assert parsed.head.get(b"content-length") == value


def test_an_absurd_content_length_is_too_large() -> None:
    assert refused(get(b"Content-Length: " + b"9" * 19)) == 413


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b" chunked\t"])
def test_chunked_is_known_in_any_case_and_leaves_the_head(value: bytes) -> None:
    parsed = parse(get(b"Transfer-Encoding:" + value, method=b"POST"))
    assert parsed.body_length == CHUNKED
    assert parsed.head.fields == ()


@pytest.mark.parametrize(
    "block",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: http://a\r\n\r\n",
        b"GET http://b/ HTTP/1.1\r\n\r\n",
        b"GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET http://user@b/ HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET http:///p HTTP/1.1\r\nHost: b\r\n\r\n",
    ],
)
def test_a_missing_repeated_or_invalid_host_is_refused(block: bytes) -> None:
    assert refused(block) == 400


@pytest.mark.parametrize(
    ("value", "authority"),
    [
        (b"a.example", b"a.example"),
        (b"A.Example:80", b"a.example:80"),
        (b"a.example:", b"a.example"),
        (b"a.example.", b"a.example."),
        (b"my_host", b"my_host"),
        (b"192.0.2.1:8080", b"192.0.2.1:8080"),
        (b"[2001:DB8::1]", b"[2001:db8::1]"),
        (b"[::1]:65535", b"[::1]:65535"),
        (b"[::ffff:192.0.2.1]", b"[::ffff:192.0.2.1]"),
    ],
)
def test_an_authority_is_lower_cased(value: bytes, authority: bytes) -> None:
    assert parse_authority(value) == authority


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b":80", b".", b".a", b"a..b", b"a:b", b"a:65536", b"a:123456", b"a:80:80", b"a%2eb", b"a;b", b"a'b"),
        *(
            b"[::1",
            b"::1",
            b"[::1]x",
            b"[::g]",
            b"[]",
            b"[1.2.3.4]",
            b"[v1.x]",
            b"a\\b",
            b"a#b",
            b"a?b",
            b"\xe9.example",
        ),
        *(b"x" * 256, b"[fe80::1%25eth0]", b"a:+80", b"a: 80", b"*"),
    ],
)
def test_an_invalid_authority_is_refused(value: bytes) -> None:
    with pytest.raises(H1Error):
        parse_authority(value)


@pytest.mark.parametrize(
    ("method", "target", "authority", "path"),
    [
        (b"GET", b"http://B.example/x?y", b"b.example", b"/x?y"),
        (b"GET", b"HTTP://b.example:8080", b"b.example:8080", b"/"),
        (b"GET", b"http://b.example?x=/y", b"b.example", b"/?x=/y"),
        (b"OPTIONS", b"http://b.example", b"b.example", b"*"),
        (b"OPTIONS", b"*", b"a.example", b"*"),
        (b"GET", b"//b.example/x", b"a.example", b"//b.example/x"),
        (b"GET", b"/http://b.example/", b"a.example", b"/http://b.example/"),
    ],
)
def test_target_forms(method: bytes, target: bytes, authority: bytes, path: bytes) -> None:
    head = parse(get(target=target, method=method)).head
    assert (head.authority, head.target) == (authority, path)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"GET", b"*", 400),
        (b"GET", b"x", 400),
        (b"GET", b"a.example:80", 400),
        (b"GET", b"/a#b", 400),
        (b"GET", b"/\xc3\xa9", 400),
        (b"GET", b"/a\x00", 400),
        (b"GET", b"/a\x7f", 400),
        (b"GET", b"?x", 400),
        (b"GET", b"http:/a", 400),
        (b"GET", b"https://a.example/", 421),
        (b"GET", b"ftp://a.example/", 421),
        (b"CONNECT", b"a.example:443", 501),
        (b"CONNECT", b"/", 501),
    ],
)
def test_other_targets_are_refused(method: bytes, target: bytes, status: int) -> None:
    assert refused(get(target=target, method=method)) == status


def test_an_absolute_target_of_the_connections_own_scheme_is_taken_over_tls() -> None:
    assert parse(get(target=b"https://b/"), b"https").head.authority == b"b"


def test_too_long_too_large_and_too_many_have_their_statuses() -> None:
    assert refused(get(target=b"/" + b"a" * LIMITS.max_request_line_bytes)) == 414
    assert refused(get(b"X: " + b"a" * LIMITS.max_head_bytes)) == 431
    assert refused(get(*[b"X: a"] * (LIMITS.max_fields + 1))) == 431
    assert len(parse(get(*[b"X: a"] * (LIMITS.max_fields - 1))).head.fields) == LIMITS.max_fields - 1


def test_hop_by_hop_fields_and_what_connection_names_are_dropped() -> None:
    parsed = parse(
        get(
            *(b"Connection: keep-alive, X-Private", b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive"),
            *(b"TE: gzip;q=0.5, trailers", b"X-Private: 1", b"X-Public: 2", b"Connection: x-other", b"X-Other: 3"),
        )
    )
    assert parsed.head.fields == ((b"te", b"trailers"), (b"x-public", b"2"))


def test_te_without_trailers_is_dropped() -> None:
    assert parse(get(b"TE: gzip", b"Connection: TE")).head.fields == ()


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        (b"HTTP/1.1", b"", True),
        (b"HTTP/1.1", b"close", False),
        (b"HTTP/1.1", b"Keep-Alive, Close", False),
        (b"HTTP/1.0", b"", False),
        (b"HTTP/1.0", b"keep-alive", True),
        (b"HTTP/1.0", b"keep-alive, close", False),
    ],
)
def test_whether_the_connection_stays(version: bytes, connection: bytes, keep_alive: bool) -> None:
    assert parse(get(b"Connection: " + connection, version=version)).keep_alive is keep_alive


def test_an_upgrade_becomes_the_heads_protocol() -> None:
    parsed = parse(get(b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket", b"Sec-WebSocket-Version: 13"))
    assert parsed.head.protocol == b"websocket"
    assert parsed.head.fields == ((b"sec-websocket-version", b"13"),)
    assert not parsed.is_simple


@pytest.mark.parametrize(
    "block",
    [
        get(b"Upgrade: websocket"),  # not named by Connection
        get(b"Connection: upgrade"),
        get(b"Connection: upgrade", b"Upgrade: websocket", version=b"HTTP/1.0"),
        get(b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 1"),
        get(b"Connection: upgrade, http2-settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    ],
)
def test_other_upgrades_are_ignored_and_never_forwarded(block: bytes) -> None:
    head = parse(block).head
    assert head.protocol is None
    assert head.get(b"upgrade") is None
    assert head.get(b"http2-settings") is None


def test_expect_continue_travels_on_with_a_body_only() -> None:
    parsed = parse(get(b"Expect: 100-Continue", b"Content-Length: 3", method=b"POST"))
    assert parsed.expect_continue
    assert parsed.head.get(b"expect") == b"100-Continue"
    parsed = parse(get(b"Expect: 100-continue"))
    assert not parsed.expect_continue
    assert parsed.head.get(b"expect") is None
    parsed = parse(get(b"Expect: 100-continue", b"Content-Length: 3", version=b"HTTP/1.0"))
    assert not parsed.expect_continue
    assert parsed.head.get(b"expect") is None


def test_another_expectation_fails() -> None:
    assert refused(get(b"Expect: the-unexpected", b"Content-Length: 3")) == 417
    assert refused(get(b"Expect: 100-continue, x", b"Content-Length: 3")) == 417


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_h1_error(data: bytes) -> None:
    for block in (
        data,
        data + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n",
        b"GET " + data + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        try:
            parse(block)
        except H1Error:
            pass


@given(st.binary(max_size=60))
def test_whatever_stands_in_a_value_no_line_end_gets_through(data: bytes) -> None:
    try:
        parsed = parse(get(b"X-A: " + data))
    except H1Error:
        return
    for name, value in parsed.head.fields:
        assert not set(name + value) & set(b"\r\n\x00")

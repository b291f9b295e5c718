"""Heads of HTTP/2 and HTTP/3: what is malformed is told from what is refused, and what passes reads as HTTP/1.1 would."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.errors import UpstreamBroken
from edgetun_core.http.h1 import H1Limits
from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.http.multiplexed import (
    UNKNOWN_LENGTH,
    MalformedMessage,
    RequestRefused,
    build_request_fields,
    build_response_fields,
    read_request,
    read_response,
    read_trailers,
)
from edgetun_core.http.priority import Priority
from edgetun_core.http.websocket import accept_handshake, open_handshake

GET = ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"shop.example"), (b":path", b"/a?b"))
POST = ((b":method", b"POST"), *GET[1:])
LIMITS = H1Limits()


def read(*fields, scheme=b"https"):
    return read_request(list(fields), scheme, LIMITS)


def test_a_request_becomes_a_head_without_pseudo_header_fields():
    received = read(*GET, (b"accept", b"*/*"), (b"priority", b"u=1, i"))
    assert received.head == RequestHead(
        b"GET", b"https", b"shop.example", b"/a?b", ((b"accept", b"*/*"), (b"priority", b"u=1, i"))
    )
    assert received.priority == Priority(1, True)
    assert received.body_length == UNKNOWN_LENGTH
    assert read(*GET).priority is None


def test_cookie_crumbs_are_joined_where_the_first_stood():
    fields = read(*GET, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"), (b"cookie", b"c=3")).head.fields
    assert fields == ((b"cookie", b"a=1; b=2; c=3"), (b"x", b"y"))


def test_host_stands_in_for_a_missing_authority_and_may_repeat_it():
    without = (GET[0], GET[1], GET[3])
    assert read(*without, (b"host", b"Shop.Example")).head.authority == b"shop.example"
    assert read(*GET, (b"host", b"shop.example")).head.fields == ()


def test_te_stays_as_trailers_and_expect_as_100_continue():
    received = read(*POST, (b"te", b"trailers"), (b"expect", b"100-continue"), (b"content-length", b"3"))
    assert received.head.fields == ((b"te", b"trailers"), (b"expect", b"100-continue"), (b"content-length", b"3"))
    assert received.expects_continue
    assert received.body_length == 3


CONNECT = ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:])


def test_an_extended_connect_is_an_upgrade():
    head = read(*CONNECT, (b"sec-websocket-version", b"13")).head
    assert (head.method, head.protocol, head.target) == (b"GET", b"websocket", b"/a?b")


MALFORMED = {
    "no method": GET[1:],
    "no scheme": (GET[0], *GET[2:]),
    "no path": GET[:3],
    "empty path": (*GET[:3], (b":path", b"")),
    "a path without slash": (*GET[:3], (b":path", b"a")),
    "a star with GET": (*GET[:3], (b":path", b"*")),
    "a path with a fragment": (*GET[:3], (b":path", b"/a#b")),
    "a path with a space": (*GET[:3], (b":path", b"/a b")),
    "a path with a line end": (*GET[:3], (b":path", b"/a\r\nx: y")),
    "neither authority nor host": (*GET[:2], GET[3]),
    "an empty authority": (*GET[:2], (b":authority", b""), GET[3]),
    "an authority with user information": (*GET[:2], (b":authority", b"u@shop.example"), GET[3]),
    "authority and host differ": (*GET, (b"host", b"other.example")),
    "two hosts": (*GET, (b"host", b"shop.example"), (b"host", b"shop.example")),
    "method twice": (GET[0], *GET),
    "path twice": (*GET, (b":path", b"/")),
    "an unknown pseudo-header": (*GET, (b":foo", b"x")),
    "status in a request": (*GET, (b":status", b"200")),
    "a pseudo-header after a field": (*GET[:3], (b"a", b"b"), GET[3]),
    "a name in upper case": (*GET, (b"Accept", b"x")),
    "an empty name": (*GET, (b"", b"x")),
    "a name with a colon": (*GET, (b"a:b", b"x")),
    "a name with a space": (*GET, (b"a b", b"x")),
    "a name with a line end": (*GET, (b"a\nb", b"x")),
    "a value with a line feed": (*GET, (b"a", b"x\ny: z")),
    "a value with a carriage return": (*GET, (b"a", b"x\ry")),
    "a value with NUL": (*GET, (b"a", b"x\x00")),
    "a value that begins with a space": (*GET, (b"a", b" x")),
    "a value that ends with a tab": (*GET, (b"a", b"x\t")),
    "connection": (*GET, (b"connection", b"close")),
    "keep-alive": (*GET, (b"keep-alive", b"timeout=1")),
    "proxy-connection": (*GET, (b"proxy-connection", b"x")),
    "transfer-encoding": (*POST, (b"transfer-encoding", b"chunked")),
    "upgrade": (*GET, (b"upgrade", b"websocket")),
    "te other than trailers": (*GET, (b"te", b"gzip")),
    "te with more than trailers": (*GET, (b"te", b"trailers, gzip")),
    "two lengths": (*POST, (b"content-length", b"1"), (b"content-length", b"1")),
    "a length that is no number": (*POST, (b"content-length", b"+1")),
    "a method with a space": ((b":method", b"GE T"), *GET[1:]),
    "protocol without CONNECT": (*GET, (b":protocol", b"websocket")),
    "CONNECT with a path": ((b":method", b"CONNECT"), *GET[1:]),
    "CONNECT without authority": ((b":method", b"CONNECT"),),
    "extended CONNECT without path": CONNECT[:-1],
    "extended CONNECT with a length": (*CONNECT, (b"content-length", b"1")),
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_told(fields):
    with pytest.raises(MalformedMessage):
        read(*fields)


REFUSED = {
    "CONNECT": (((b":method", b"CONNECT"), (b":authority", b"a:1")), 501),
    "an unknown protocol": (((b":method", b"CONNECT"), (b":protocol", b"connect-udp"), *GET[1:]), 501),
    "another scheme": ((GET[0], (b":scheme", b"http"), *GET[2:]), 421),
    "a foreign scheme": ((GET[0], (b":scheme", b"ftp"), *GET[2:]), 421),
    "an expectation": ((*POST, (b"expect", b"miracles")), 417),
    "a long path": ((*GET[:3], (b":path", b"/" + b"a" * 9000)), 414),
    "a large header section": ((*GET, *((b"a%d" % i, b"x" * 4000) for i in range(9))), 431),
    "many fields": ((*GET, *((b"a%d" % i, b"x") for i in range(129))), 431),
    "a length beyond all bounds": ((*POST, (b"content-length", b"9" * 30)), 413),
}


@pytest.mark.parametrize(("fields", "status"), REFUSED.values(), ids=REFUSED)
def test_a_request_that_is_not_served_gets_its_status(fields, status):
    with pytest.raises(RequestRefused) as refused:
        read(*fields)
    assert refused.value.status == status


def test_options_star_passes():
    assert read((b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")).head.target == b"*"


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=6))
def test_whatever_is_read_could_stand_in_http_1(fields):
    try:
        head = read(*GET, *fields).head
    except (MalformedMessage, RequestRefused):
        return
    for name, value in head.fields:
        assert name
        assert name == name.lower()
        assert not set(name + value) & set(b"\r\n\0")
        assert b":" not in name
        assert value == value.strip(b" \t")


def test_a_response_is_read_and_its_length_kept():
    received = read_response([(b":status", b"200"), (b"content-length", b"5"), (b"a", b"b")])
    assert received.head == ResponseHead(200, ((b"a", b"b"), (b"content-length", b"5")))
    assert received.body_length == 5
    assert read_response([(b":status", b"103"), (b"link", b"x")]).head.status == 103


@pytest.mark.parametrize(
    "fields",
    [
        [(b"a", b"b")],
        [(b":status", b"101")],
        [(b":status", b"20")],
        [(b":status", b"600")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":status", b"200"), (b"A", b"b")],
        [(b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"2")],
    ],
    ids=str,
)
def test_a_malformed_response_is_told(fields):
    with pytest.raises(MalformedMessage):
        read_response(fields)


def test_trailers_have_no_pseudo_header_fields_and_nothing_about_framing():
    assert read_trailers([(b"grpc-status", b"0"), (b"content-length", b"3")]) == ((b"grpc-status", b"0"),)
    for fields in ([(b":status", b"200")], [(b"a", b"b"), (b":path", b"/")], [(b"connection", b"close")]):
        with pytest.raises(MalformedMessage):
            read_trailers(fields)


def test_heads_are_built_for_the_encoder_without_what_belongs_to_http_1():
    head = RequestHead(b"GET", b"https", b"shop.example", b"/x", ((b"a", b"b"), (b"connection", b"close")))
    assert build_request_fields(head, scheme=b"http", authority=b"localhost:3000") == [
        (b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"localhost:3000"), (b":path", b"/x"), (b"a", b"b"),
    ]  # fmt: skip
    upgrade = RequestHead(b"GET", b"https", b"shop.example", b"/x", (), b"websocket")
    assert build_request_fields(upgrade, scheme=b"http", authority=b"a")[:2] == [
        (b":method", b"CONNECT"), (b":protocol", b"websocket"),
    ]  # fmt: skip
    assert build_response_fields(ResponseHead(204, ((b"content-length", b"0"), (b"a", b"b"), (b"upgrade", b"x")))) == [
        (b":status", b"204"), (b"a", b"b"),
    ]  # fmt: skip


def test_a_websocket_handshake_is_made_for_the_origin_and_its_answer_checked():
    head = read(*CONNECT, (b"sec-websocket-key", b"forged")).head
    upgraded, key = open_handshake(head, b"the sample nonce")
    assert upgraded.get_all(b"sec-websocket-key") == [key] == [b"dGhlIHNhbXBsZSBub25jZQ=="]  # RFC 6455 §1.3
    assert upgraded.get(b"sec-websocket-version") == b"13"
    accepted = ResponseHead(101, ((b"sec-websocket-accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), (b"a", b"b")))
    assert accept_handshake(accepted, key) == ResponseHead(200, ((b"a", b"b"),))
    with pytest.raises(UpstreamBroken):
        accept_handshake(ResponseHead(101, ()), key)

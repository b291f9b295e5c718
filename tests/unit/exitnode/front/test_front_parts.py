"""Small parts of the front: names of certificates, addresses, remembered heads, listening sockets."""

from __future__ import annotations

import errno
import socket

import pytest

from edgetun_core.http.h1 import H1Limits, parse_request
from edgetun_exitnode.front.addresses import address_key, normalise_address
from edgetun_exitnode.front.certificates import NameSet
from edgetun_exitnode.front.listening import bind_sockets
from edgetun_exitnode.front.memos import REMEMBERED_BYTES, RequestMemo


@pytest.mark.parametrize(
    ("host", "is_covered"),
    [
        ("shop.example", True),
        ("a.team.example", True),
        ("team.example", False),
        ("a.b.team.example", False),
        ("other.example", False),
        ("", False),
        ("192.0.2.1", True),
    ],
)
def test_a_wildcard_stands_for_one_label(host: str, is_covered: bool) -> None:
    assert NameSet(["Shop.Example.", "*.team.example", "192.0.2.1"]).covers(host) is is_covered


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_addresses_have_one_form(address: str, text: str) -> None:
    assert normalise_address(address) == text


def test_visitors_are_counted_by_address_or_ipv6_network_and_loopback_is_not() -> None:
    assert address_key("192.0.2.1") == "192.0.2.1"
    assert address_key("2001:db8:1:2::1") == address_key("2001:db8:1:2:ffff::2")
    assert address_key("2001:db8:1:2::1") != address_key("2001:db8:1:3::1")
    assert address_key("127.0.0.9") is None
    assert address_key("::1") is None


def test_remembered_heads_are_bounded_in_bytes() -> None:
    memo = RequestMemo(REMEMBERED_BYTES)
    limits = H1Limits()
    for number in range(6000):
        block = b"GET /%d HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (number, b"x" * 3000)
        assert not memo.remember(block, parse_request(block, b"http", limits))
        assert memo.remember(block, parse_request(block, b"http", limits)), "the second time"
    assert len(memo) * 9600 < 2 * 6.5 * 1024 * 1024
    known = memo.get(block)
    assert known is not None
    assert known.head.recurs
    big = b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * 5000)
    for _ in range(2):
        memo.remember(big, parse_request(big, b"http", limits))
    assert memo.get(big) is None


def test_heads_that_come_once_are_not_remembered() -> None:
    memo = RequestMemo(REMEMBERED_BYTES)
    limits = H1Limits()
    for number in range(20_000):
        block = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number
        parsed = parse_request(block, b"http", limits)
        assert not memo.remember(block, parsed)
        assert not parsed.head.recurs
    assert len(memo) == 0


def test_every_address_of_a_name_gets_the_same_port() -> None:
    sockets = bind_sockets("localhost", 0)
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for sock in sockets)
    finally:
        for sock in sockets:
            sock.close()


def test_a_taken_port_is_an_oserror_and_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError) as caught:
        bind_sockets("127.0.0.1", taken.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE

"""The PROXY protocol: what is read of a load balancer, what a local service is told, and what is refused."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.proxy_protocol import (
    MAX_V1_BYTES,
    V2_SIGNATURE,
    Endpoints,
    ProxyHeaderError,
    TrustedNetworks,
    read_proxy_header,
    render_proxy_v1,
    render_proxy_v2,
)

PORTS = st.integers(0, 65535)
FOUR = st.ip_addresses(v=4).map(str)
SIX = st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None and a.scope_id is None).map(str)  # type: ignore[union-attr]
ENDPOINTS = st.one_of(st.builds(Endpoints, FOUR, PORTS, FOUR, PORTS), st.builds(Endpoints, SIX, PORTS, SIX, PORTS))


@given(ENDPOINTS, st.binary(max_size=40))
def test_what_is_written_is_read_again_and_nothing_behind_it(endpoints: Endpoints, rest: bytes) -> None:
    for header in (render_proxy_v1(endpoints), render_proxy_v2(endpoints)):
        read = read_proxy_header(header + rest)
        assert read is not None
        assert (read.size_bytes, read.endpoints) == (len(header), endpoints)


@given(ENDPOINTS)
def test_a_header_that_comes_in_pieces_is_waited_for(endpoints: Endpoints) -> None:
    for header in (render_proxy_v1(endpoints), render_proxy_v2(endpoints)):
        assert all(read_proxy_header(header[:at]) is None for at in range(len(header)))


def test_the_examples_of_the_specification() -> None:
    line = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"
    read = read_proxy_header(line + b"GET / HTTP/1.1\r\n")
    assert read is not None
    assert read.endpoints == Endpoints("255.255.255.255", 65535, "255.255.255.255", 65535)
    unknown = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"
    read = read_proxy_header(unknown)
    assert read is not None
    assert (read.size_bytes, read.endpoints) == (len(unknown), None)
    local = V2_SIGNATURE + b"\x20\x00\x00\x00"
    read = read_proxy_header(local)
    assert read is not None
    assert (read.size_bytes, read.endpoints) == (16, None)


def test_addresses_of_two_families_are_told_as_ipv6() -> None:
    mixed = Endpoints("192.0.2.1", 1, "2001:db8::1", 2)
    assert render_proxy_v1(mixed) == b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n"
    assert render_proxy_v2(mixed)[12:16] == b"\x21\x21\x00\x24"
    assert render_proxy_v2(Endpoints("", 0, "", 0)) == V2_SIGNATURE + b"\x20\x00\x00\x00"
    assert render_proxy_v1(Endpoints("", 0, "", 0)) == b"PROXY UNKNOWN\r\n"


def test_a_datagrams_header_says_so() -> None:
    assert render_proxy_v2(Endpoints("192.0.2.1", 1, "192.0.2.2", 2), datagram=True)[13] == 0x12


def test_tlvs_are_passed_over() -> None:
    header = render_proxy_v2(Endpoints("192.0.2.1", 1, "192.0.2.2", 2))
    longer = header[:14] + (12 + 7).to_bytes(2, "big") + header[16:] + b"\x04\x00\x04abcd"
    read = read_proxy_header(longer + b"data")
    assert read is not None
    assert (read.size_bytes, read.endpoints) == (len(longer), Endpoints("192.0.2.1", 1, "192.0.2.2", 2))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 01 1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 1 \r\n",
        b"PROXY TCP6 1.2.3.4 5.6.7.8 1 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 1\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n",
        b"PROXY UDP4 1.2.3.4 5.6.7.8 1 1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 1\n",
        b"PROXY " + b"x" * MAX_V1_BYTES,
        V2_SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        V2_SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        V2_SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        V2_SIGNATURE + b"\x21\x21\x00\x23" + bytes(35),
        V2_SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_what_is_no_header_is_refused_and_never_guessed_at(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        read_proxy_header(data)


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for block in (data, V2_SIGNATURE + data, b"PROXY TCP4 " + data):
        try:
            read = read_proxy_header(block)
        except ProxyHeaderError:
            continue
        if read is not None:
            assert 0 < read.size_bytes <= len(block)
            if read.endpoints is not None:
                ipaddress.ip_address(read.endpoints.source)


def test_only_members_of_trusted_networks_are_believed() -> None:
    trusted = TrustedNetworks(("10.0.0.0/8", "2001:db8::/32"))
    assert trusted.holds("10.1.2.3")
    assert trusted.holds("2001:db8::7")
    assert not trusted.holds("11.0.0.1")
    assert not trusted.holds("::a01:203")
    assert not trusted.holds("")
    assert not TrustedNetworks().holds("10.1.2.3")

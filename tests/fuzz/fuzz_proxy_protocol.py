"""Hostile PROXY protocol headers: an address, nobody, more to come, or `ProxyHeaderError`, and nothing else."""

from __future__ import annotations

import ipaddress

from edgetun_core.proxy_protocol import (
    MAX_HEADER_BYTES,
    V2_SIGNATURE,
    Endpoints,
    ProxyHeaderError,
    read_proxy_header,
    render_proxy_v1,
    render_proxy_v2,
)

_FOUR = Endpoints("192.0.2.1", 1234, "198.51.100.1", 5432)
_SIX = Endpoints("2001:db8::1", 1234, "2001:db8::2", 5432)

SEEDS = (
    render_proxy_v1(_FOUR),
    render_proxy_v1(_SIX),
    render_proxy_v2(_FOUR),
    render_proxy_v2(_SIX) + b"data",
    b"PROXY UNKNOWN\r\n",
)


def fuzz(data: bytes) -> None:
    """Reads the bytes as the beginning of a connection; what was read is written and read the same."""
    for block in (data, V2_SIGNATURE + data, b"PROXY TCP6 " + data):
        try:
            header = read_proxy_header(block)
        except ProxyHeaderError:
            continue
        if header is None:
            assert len(block) < MAX_HEADER_BYTES
            continue
        assert 0 < header.size_bytes <= min(len(block), MAX_HEADER_BYTES)
        endpoints = header.endpoints
        if endpoints is None:
            continue
        for address in (endpoints.source, endpoints.destination):
            ipaddress.ip_address(address)
        for render in (render_proxy_v1, render_proxy_v2):
            again = read_proxy_header(render(endpoints))
            assert again is not None
            assert again.endpoints == endpoints

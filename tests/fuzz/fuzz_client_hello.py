"""Hostile ClientHellos: a server name, "", more to come, or `NotClientHello`, and nothing else. Waiting for more has an end."""

from __future__ import annotations

import ssl

from edgetun_exitnode.front.client_hello import MAX_HELLO_BYTES, NotClientHello, read_server_name


def _hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="db.example.com")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


SEEDS = (_hello(), _hello()[:200], b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x03\x00\x00\x40")


def fuzz(data: bytes) -> None:
    """Reads the bytes as the beginning of a connection."""
    for block in (data, b"\x16\x03\x01" + data, b"\x16\x03\x01" + len(data).to_bytes(4, "big")[2:] + data):
        try:
            name = read_server_name(block)
        except NotClientHello:
            continue
        if name is None:
            assert len(block) < MAX_HELLO_BYTES
        else:
            assert name == name.lower()
            assert name.isascii()
            assert not set(name) & set(" /\\\0\r\n")

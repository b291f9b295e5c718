"""The server name of a ClientHello, read without touching the connection."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_exitnode.front.client_hello import MAX_HELLO_BYTES, NotClientHello, read_server_name


def hello(name: str | None = "db.example.com", version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def in_records(data: bytes, size: int) -> bytes:
    """The same handshake message, cut into records of `size` bytes."""
    message = data[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_real_client_is_read(version: ssl.TLSVersion) -> None:
    assert read_server_name(hello("db.example.com", version)) == "db.example.com"
    assert read_server_name(hello("DB.Example.com.", version)) == "db.example.com"
    assert read_server_name(hello(None, version)) == ""


def test_one_that_comes_in_pieces_is_waited_for() -> None:
    data = hello()
    assert all(read_server_name(data[:at]) is None for at in range(len(data)))
    assert read_server_name(data + b"more") == "db.example.com"


@given(st.integers(1, 600))
def test_it_may_be_cut_into_records(size: int) -> None:
    data = in_records(_DATA, size)
    assert read_server_name(data) == "db.example.com"
    assert read_server_name(data[:-1]) is None


_DATA = hello()


def test_what_is_no_client_hello_is_left_to_the_tls_front() -> None:
    for data in (
        b"GET / HTTP/1.1\r\n",
        b"\x15\x03\x01\x00\x02\x01\x00",
        b"\x16\x02\x01",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
    ):
        with pytest.raises(NotClientHello):
            read_server_name(data)


def test_a_name_that_is_none_is_not_looked_up() -> None:
    data = hello()
    for bad in (b"db.exa ple.com", b"db.exa\x00ple.com", b"db..xample.com", b"../example.com"):
        with pytest.raises(NotClientHello):
            read_server_name(data.replace(b"db.example.com", bad))


def test_endless_small_records_are_not_waited_for() -> None:
    with pytest.raises(NotClientHello):
        read_server_name(
            (b"\x16\x03\x01\x00\x01\x01" + b"\x16\x03\x01\x00\x01\x00" * MAX_HELLO_BYTES)[:MAX_HELLO_BYTES]
        )


@given(st.binary(max_size=200), st.integers(0, 500))
def test_no_bytes_raise_anything_else(data: bytes, at: int) -> None:
    for block in (data, b"\x16\x03\x01" + data, _DATA[:at] + data + _DATA[at:]):
        try:
            name = read_server_name(block)
        except NotClientHello:
            continue
        assert name is None or name == name.lower()

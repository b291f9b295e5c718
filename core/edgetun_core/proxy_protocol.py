"""The PROXY protocol, versions 1 and 2: who the visitor is, said in front of a connection or a datagram. Pure.

`read_proxy_header` is for what a load balancer in front of us says, `render_proxy_v1` and `render_proxy_v2` for what we say to
a local service. The format is HAProxy's `doc/proxy-protocol.txt`; a reader takes what is bounded (version 1: 107 bytes, version
2: 16 bytes and at most `MAX_V2_BYTES`) and nothing beyond it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Final

from edgetun_core.errors import ProtocolError

V1_START: Final = b"PROXY "
V2_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_V1_BYTES: Final = 107
MAX_V2_BYTES: Final = 2048
"""Of what follows the 16 bytes: addresses (36) and TLVs; load balancers write a few hundred bytes at most."""
MAX_HEADER_BYTES: Final = 16 + MAX_V2_BYTES

_LOCAL, _PROXY = 0x20, 0x21
_STREAM, _DATAGRAM = 1, 2
_INET, _INET6 = 0x10, 0x20
_V2_HEAD: Final = struct.Struct(">12sBBH")
_ADDRESSES_4: Final = struct.Struct(">4s4sHH")
_ADDRESSES_6: Final = struct.Struct(">16s16sHH")


class ProxyHeaderError(ProtocolError):
    """What should be a PROXY protocol header is none."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Who speaks to whom: IP addresses as text, and ports."""

    source: str
    source_port: int
    destination: str
    destination_port: int


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header that was read: how long it is, and whom it names (None: the load balancer speaks for itself)."""

    size_bytes: int
    endpoints: Endpoints | None


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """Reads the header at the beginning of a connection; None while more of it is to come. Raises `ProxyHeaderError`."""
    if data.startswith(V2_SIGNATURE[: len(data)]):
        return _read_v2(data)
    if data.startswith(V1_START[: len(data)]):
        return _read_v1(data)
    raise ProxyHeaderError(
        "the connection does not begin with a PROXY protocol header",
        remedy="turn PROXY protocol on at the load balancer, or take its network out of trustedProxies",
    )


def _read_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES or b"\n" in data:
            raise ProxyHeaderError("the PROXY protocol line has no end")
        return None
    words = data[:end].split(b" ")
    if words[1] == b"UNKNOWN":
        return ProxyHeader(end + 2, None)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyHeaderError("the PROXY protocol line is not TCP4, TCP6 or UNKNOWN with two addresses and two ports")
    version = 4 if words[1] == b"TCP4" else 6
    try:
        source, destination = (ipaddress.ip_address(word.decode("ascii")) for word in words[2:4])
        ports = [_read_port(word) for word in words[4:6]]
    except ValueError:
        raise ProxyHeaderError("the PROXY protocol line holds an address or a port that is none") from None
    if source.version != version or destination.version != version or getattr(source, "scope_id", None):
        raise ProxyHeaderError("the PROXY protocol line names another family than its addresses are of")
    return ProxyHeader(end + 2, Endpoints(_plain(source), ports[0], _plain(destination), ports[1]))


def _read_port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or (word[0] == 0x30 and len(word) > 1) or int(word) > 65535:
        raise ValueError
    return int(word)


def _read_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < 16:
        return None
    _, command, family, size = _V2_HEAD.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError(f"a PROXY protocol header of version and command 0x{command:02x}")
    if size > MAX_V2_BYTES:
        raise ProxyHeaderError(f"a PROXY protocol header of {size} bytes")
    if len(data) < 16 + size:
        return None
    whole = 16 + size
    if command == _LOCAL:
        return ProxyHeader(whole, None)
    kind = family & 0xF0
    if kind == _INET and size >= _ADDRESSES_4.size:
        source, destination, *ports = _ADDRESSES_4.unpack_from(data, 16)
    elif kind == _INET6 and size >= _ADDRESSES_6.size:
        source, destination, *ports = _ADDRESSES_6.unpack_from(data, 16)
    elif kind in (_INET, _INET6):
        raise ProxyHeaderError("a PROXY protocol header without room for its addresses")
    else:
        return ProxyHeader(whole, None)  # AF_UNSPEC and AF_UNIX name nobody on the network
    addresses = [_plain(ipaddress.ip_address(raw)) for raw in (source, destination)]
    return ProxyHeader(whole, Endpoints(addresses[0], ports[0], addresses[1], ports[1]))


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """IPv4 in IPv6 is shown as IPv4."""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped if mapped is not None else address)


def render_proxy_v1(endpoints: Endpoints) -> bytes:
    """The line of version 1, for TCP."""
    source, destination, is_v6 = _packed(endpoints)
    if source is None or destination is None:
        return b"PROXY UNKNOWN\r\n"
    family = socket.AF_INET6 if is_v6 else socket.AF_INET
    texts = (socket.inet_ntop(family, source), socket.inet_ntop(family, destination))
    line = (
        f"PROXY TCP{6 if is_v6 else 4} {texts[0]} {texts[1]} {endpoints.source_port} {endpoints.destination_port}\r\n"
    )
    return line.encode("ascii")


def render_proxy_v2(endpoints: Endpoints, *, datagram: bool = False) -> bytes:
    """The header of version 2; `datagram` when it stands before a UDP datagram."""
    source, destination, is_v6 = _packed(endpoints)
    transport = _DATAGRAM if datagram else _STREAM
    if source is None or destination is None:
        return _V2_HEAD.pack(V2_SIGNATURE, _LOCAL, 0, 0)
    shape = _ADDRESSES_6 if is_v6 else _ADDRESSES_4
    head = _V2_HEAD.pack(V2_SIGNATURE, _PROXY, (_INET6 if is_v6 else _INET) | transport, shape.size)
    return head + shape.pack(source, destination, endpoints.source_port, endpoints.destination_port)


def _packed(endpoints: Endpoints) -> tuple[bytes | None, bytes | None, bool]:
    """Both addresses in one family: when they differ, the IPv4 one is written as IPv6."""
    try:
        source = ipaddress.ip_address(endpoints.source)
        destination = ipaddress.ip_address(endpoints.destination)
    except ValueError:
        return None, None, False
    is_v6 = source.version == 6 or destination.version == 6
    return _in_family(source, is_v6), _in_family(destination, is_v6), is_v6


def _in_family(address: ipaddress.IPv4Address | ipaddress.IPv6Address, is_v6: bool) -> bytes:
    return bytes(10) + b"\xff\xff" + address.packed if is_v6 and address.version == 4 else address.packed


class TrustedNetworks:
    """Networks whose members may say who the visitor is; or whose may connect, or may not (`pipeline/streams.py` of exit nodes)."""

    __slots__ = ("_networks",)

    def __init__(self, networks: tuple[str, ...] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(network, strict=False) for network in networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def holds(self, address: str) -> bool:
        """Whether an address (as text, IPv4 as such) is in one of them."""
        if not self._networks:
            return False
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found.version == network.version and found in network for network in self._networks)

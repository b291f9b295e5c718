"""Heads of exchanges that carry no HTTP: a TCP connection (`tcp`) or a UDP flow (`udp`) on its way to an agent.

Such an exchange is an accepted upgrade from its first byte (exchange.py, rules 7 and 8): a CONNECT whose `protocol` is `tcp` or
`udp`, answered with 200 once the local service is connected. Whoever does not know these protocols refuses a CONNECT.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.proxy_protocol import Endpoints

TCP: Final = b"tcp"
UDP: Final = b"udp"
STREAMS: Final = frozenset((TCP, UDP))

SOURCE: Final = b"edgetun-source"
DESTINATION: Final = b"edgetun-destination"
SERVER_NAME: Final = b"edgetun-server-name"

ACCEPTED: Final = ResponseHead(200, ())
"""The local service is connected."""


def build_stream_head(protocol: bytes, service: str, endpoints: Endpoints, server_name: str = "") -> RequestHead:
    """The head of a connection or flow from `endpoints.source` to the tunnel `service`."""
    source = b"%s %d" % (endpoints.source.encode("ascii", "replace"), endpoints.source_port)
    destination = b"%s %d" % (endpoints.destination.encode("ascii", "replace"), endpoints.destination_port)
    fields = [(SOURCE, source), (DESTINATION, destination)]
    if server_name:
        fields.append((SERVER_NAME, server_name.encode("ascii", "replace")))
    scheme = b"https" if server_name else b"http"
    return RequestHead(b"CONNECT", scheme, b"", b"/", tuple(fields), protocol, service)


def read_endpoints(head: RequestHead) -> Endpoints:
    """Who speaks to whom; addresses that are not there are empty."""
    source, source_port = _read(head.get(SOURCE))
    destination, destination_port = _read(head.get(DESTINATION))
    return Endpoints(source, source_port, destination, destination_port)


def _read(value: bytes | None) -> tuple[str, int]:
    address, _, port = (value or b"").partition(b" ")
    if not port.isdigit() or len(port) > 5:
        return "", 0
    return address.decode("ascii", "replace"), int(port)

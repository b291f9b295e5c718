"""Where else visitors find us: the `Alt-Svc` field that tells a browser of HTTP/3 (RFC 7838, RFC 9114 §3.1.1).

HTTP/3 is served on UDP at the number of the TCP port, also through a load balancer or a NAT that maps both. So the port that is
told is the one that the visitor used, which stands in the request's authority.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from edgetun_core.http.h2.hpack import render_field

MAX_AGE_S: Final = 86_400
_DEFAULT_PORT: Final = b"443"


def alt_svc_value(authority: bytes) -> bytes:
    """The field's value for a visitor who asked for this authority."""
    port = authority.rpartition(b":")[2] if b":" in authority and not authority.endswith(b"]") else _DEFAULT_PORT
    return b'h3=":%b"; ma=%d' % (port, MAX_AGE_S)


def alt_svc_line(authority: bytes) -> bytes:
    """The field as the last line of an HTTP/1.1 head, with the empty line that ends it."""
    return b"alt-svc: %b\r\n\r\n" % alt_svc_value(authority)


@lru_cache(maxsize=256)
def alt_svc_block(authority: bytes) -> bytes:
    """The field as it may be put behind a header block of HTTP/2."""
    return render_field(b"alt-svc", alt_svc_value(authority))

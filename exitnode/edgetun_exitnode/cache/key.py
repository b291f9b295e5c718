"""Keys of the cache (RFC 9111 §2): what two requests must share to be answered by one response.

A primary key is one `bytes` (its hash is computed once and kept):

    tenant NUL host target NUL scheme NUL partition [NUL HEAD | NUL PART]

so that everything of a tenant, of a host or below a path is a prefix. The method is not in it but for responses to a
forwarded HEAD, which answer other HEADs only, and to parts, which answer ranges only; a HEAD is answered from a GET where there is one (RFC 9110 §9.3.2).
`partition` keeps apart what shares a URI but not an answer, such as two origins of one tunnel.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urljoin, urlsplit

from edgetun_core.http.message import RequestHead

HEAD_SUFFIX: Final = b"\0HEAD"
PART_SUFFIX: Final = b"\0PART"

Secondary = tuple[bytes | None, ...]
"""A request's values of the fields that a response varies on, in the order of their names; None for an absent field."""

_DEFAULT_PORT: Final = {b"http": b":80", b"https": b":443"}
_AROUND_COMMAS = re.compile(rb"[ \t]*+,[ \t]*+")


_NOBODY: Final[frozenset[bytes]] = frozenset()


class QueryFilter:
    """Leaves the parameters of `CacheRule.ignore_query` out of a target: names, or prefixes that end in `*`."""

    __slots__ = ("_names", "_prefixes")

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._names = frozenset(p.encode() for p in patterns if not p.endswith("*")) if patterns else _NOBODY
        self._prefixes = tuple(p[:-1].encode() for p in patterns if p.endswith("*"))

    def strip(self, target: bytes) -> bytes:
        """The target as it counts for the key; names are compared as sent, without decoding."""
        path, question, query = target.partition(b"?")
        if not question or not (self._names or self._prefixes):
            return target
        kept = [part for part in query.split(b"&") if not self._ignores(part.partition(b"=")[0])]
        return path + b"?" + b"&".join(kept) if kept else path

    def _ignores(self, name: bytes) -> bool:
        return name in self._names or name.startswith(self._prefixes)


def build_host(scheme: bytes, authority: bytes) -> bytes:
    """The authority without the scheme's own port (RFC 9110 §4.2.3)."""
    return authority.removesuffix(_DEFAULT_PORT.get(scheme, b":"))


def build_key(tenant: bytes, scheme: bytes, authority: bytes, target: bytes, partition: bytes = b"") -> bytes:
    """The primary key of a GET; empty when no key can be built, because a part holds the separator."""
    if b"\0" in authority or b"\0" in target:
        return b""
    return b"\0".join((tenant, build_host(scheme, authority) + target, scheme, partition))


def build_prefix(tenant: bytes, host: bytes = b"", path: bytes = b"") -> bytes:
    """The prefix of every key of a tenant, of a host of it, or below a path of that host."""
    return b"%s\0%s%s" % (tenant, host, path)


def build_secondary(head: RequestHead, names: tuple[bytes, ...]) -> Secondary:
    """The secondary key of a request (RFC 9111 §4.1): lines joined, white space around commas taken out where that is safe."""
    values: list[bytes | None] = []
    for name in names:
        lines = head.get_all(name)
        if not lines:
            values.append(None)
            continue
        value = b",".join(lines)
        values.append(value if b'"' in value else _AROUND_COMMAS.sub(b",", value))
    return tuple(values)


def build_invalidated_targets(head: RequestHead, locations: list[bytes]) -> list[bytes]:
    """Targets that a successful unsafe request makes stale (RFC 9111 §4.4): its own, and `Location` and `Content-Location`
    of the same origin."""
    targets = [head.target]
    base = b"%s://%s%s" % (head.scheme, head.authority, head.target)
    for location in locations:
        try:
            url = urlsplit(urljoin(base.decode("latin-1"), location.decode("latin-1")))
            authority = url.netloc.encode("latin-1").lower()
        except ValueError:
            continue
        scheme = url.scheme.encode("latin-1")
        if scheme != head.scheme or build_host(scheme, authority) != build_host(head.scheme, head.authority):
            continue
        target = url.path or "/"
        targets.append(f"{target}?{url.query}".encode("latin-1") if url.query else target.encode("latin-1"))
    return targets

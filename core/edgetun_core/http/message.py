"""Heads of HTTP messages, version-neutral: what an H1, H2 or H3 front, the wire and the origin client all speak.

Everything is `bytes`, as on the wire. Field names are lower case; values carry no surrounding white space. Hop-by-hop
fields (RFC 9110 §7.6.1: `connection` and what it names, `keep-alive`, `proxy-connection`, `transfer-encoding`, `te` but
for `trailers`, `upgrade`) never stand in a head: fronts and the origin client take them off and put their own on.

Heads are immutable and shared: parsers memoise them, so one object may serve thousands of exchanges. A stage that changes
a head builds a new one (and memoises that). The slots under "prepared forms" cache renderings of the head; a front or a
codec fills them on first use. `recurs` says that a memo holds the head, so the same object comes again and what is made of it is worth
keeping; of a head that comes once nobody keeps anything.
"""

from __future__ import annotations

from msgspec import Struct

Field = tuple[bytes, bytes]
Fields = tuple[Field, ...]

_HEAD_BYTES = 600
"""A head's object with the tuple of its fields and its prepared forms, without their bytes."""
_FIELD_BYTES = 150
"""A field's tuple and the two objects in it, without their bytes."""


class Relayed(Struct, frozen=True, array_like=True):
    """What one exit node tells another of the visitor whose request it hands on; believed of an exit node only.

    `hops` counts the exit nodes behind the first. `port` is 0 where nobody needs it. `version` as in `Peer`. `is_fetch`: the answer
    goes into the cache of the node that asks, which wants to be told how long it may be used. `only_stored`: from what is stored and fresh, or not at all.
    """

    hops: int
    address: str
    port: int = 0
    version: bytes = b"1.1"
    sni: str = ""
    is_fetch: bool = False
    only_stored: bool = False


class RequestHead:
    """The head of a request (RFC 9110 §6.2).

    `method` as sent; `scheme` is `b"http"` or `b"https"`; `authority` is host or host:port as in `Host` (RFC 9112 §3.2),
    lower-cased; `target` is the origin-form, path and query, or `b"*"` for `OPTIONS *`. There is no `host` field in
    `fields`: the authority is it. `protocol` names the protocol of an upgrade (`b"websocket"`), or is None.
    `service` tells an agent which of its origins is meant (`"namespace/tunnel"`); it is empty until a session is chosen.
    `relayed` is set between exit nodes only; `replace` does not carry it over.
    """

    __slots__ = (
        "authority",
        "fields",
        "h1",
        "method",
        "protocol",
        "recurs",
        "relayed",
        "scheme",
        "service",
        "target",
        "view",
        "wire",
    )

    def __init__(
        self,
        method: bytes,
        scheme: bytes,
        authority: bytes,
        target: bytes,
        fields: Fields,
        protocol: bytes | None = None,
        service: str = "",
        relayed: Relayed | None = None,
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.target = target
        self.fields = fields
        self.protocol = protocol
        self.service = service
        self.relayed = relayed
        # Prepared forms. `view` is the exit node's: what routing, limits and the cache key need, see pipeline/view.py.
        self.h1: bytes | None = None
        self.wire: bytes | None = None
        self.view: object | None = None
        self.recurs = False

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field, or None; `name` in lower case."""
        for key, value in self.fields:
            if key == name:
                return value
        return None

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a field, in order; `name` in lower case."""
        return [value for key, value in self.fields if key == name]

    def size_bytes(self) -> int:
        """Roughly what the head takes: for bounds, not for the wire."""
        return len(self.target) + len(self.authority) + sum(len(name) + len(value) for name, value in self.fields)

    def memory_bytes(self) -> int:
        """What the head and one rendering of it take in memory, by estimate: for memos."""
        return _HEAD_BYTES + 2 * self.size_bytes() + _FIELD_BYTES * len(self.fields)

    def replace(
        self,
        *,
        authority: bytes | None = None,
        target: bytes | None = None,
        fields: Fields | None = None,
        service: str | None = None,
    ) -> RequestHead:
        """A new head with some parts changed; prepared forms are not carried over."""
        return RequestHead(
            self.method,
            self.scheme,
            self.authority if authority is None else authority,
            self.target if target is None else target,
            self.fields if fields is None else fields,
            self.protocol,
            self.service if service is None else service,
        )

    def key(self) -> tuple[object, ...]:
        """What two equal heads share; for tests and comparison, not for the hot path."""
        return (self.method, self.scheme, self.authority, self.target, self.fields, self.protocol, self.service)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestHead) and self.key() == other.key()

    __hash__ = object.__hash__  # heads are memoised by identity; equality is for tests

    def __repr__(self) -> str:
        return f"RequestHead({self.method!r}, {self.scheme!r}, {self.authority!r}, {self.target!r}, {self.fields!r})"


class ResponseHead:
    """The head of a response, final (200-599, or 101 for an accepted upgrade) or interim (1xx).

    The reason phrase is not kept: it carries nothing (RFC 9112 §4). `content-length` stays in `fields` when the origin
    sent one; without it the front chooses the framing.
    """

    __slots__ = ("fields", "h1", "h2", "h3", "recurs", "status", "view", "wire")

    def __init__(self, status: int, fields: Fields) -> None:
        self.status = status
        self.fields = fields
        # Prepared forms.
        self.h1: object | None = None
        self.h2: object | None = None
        self.h3: object | None = None
        self.wire: bytes | None = None
        self.view: object | None = None
        self.recurs = False

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field, or None; `name` in lower case."""
        for key, value in self.fields:
            if key == name:
                return value
        return None

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a field, in order; `name` in lower case."""
        return [value for key, value in self.fields if key == name]

    def size_bytes(self) -> int:
        """Roughly what the head takes: for bounds, not for the wire."""
        return sum(len(name) + len(value) for name, value in self.fields)

    def memory_bytes(self) -> int:
        """What the head and one rendering of it take in memory, by estimate: for memos."""
        return _HEAD_BYTES + 2 * self.size_bytes() + _FIELD_BYTES * len(self.fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResponseHead) and (self.status, self.fields) == (other.status, other.fields)

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"ResponseHead({self.status}, {self.fields!r})"


class Peer:
    """Who is at the other end of a visitor's connection; one object per connection, shared by its exchanges.

    `address` is the IP address as text, `port` the TCP or UDP port, `scheme` `b"http"` or `b"https"`, `version` the HTTP
    version as in `Via` (`b"1.1"`, `b"2"`, `b"3"`), `sni` the TLS server name (lower case) or the empty string, and
    `local` the address and port on which the connection was accepted.
    """

    __slots__ = ("address", "local", "port", "scheme", "sni", "version")

    def __init__(
        self,
        address: str,
        port: int,
        scheme: bytes,
        version: bytes = b"1.1",
        sni: str = "",
        local: tuple[str, int] = ("", 0),
    ) -> None:
        self.address = address
        self.port = port
        self.scheme = scheme
        self.version = version
        self.sni = sni
        self.local = local

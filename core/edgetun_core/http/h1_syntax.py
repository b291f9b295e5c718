"""Grammar of HTTP/1.1 that requests, responses and trailers share: field lines, authority, limits, the error.

Hot path on a memo miss: one regular expression pass over the whole field section (about 5 us for 12 fields).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from edgetun_core.errors import ProtocolError
from edgetun_core.http.message import Field, Fields

CHUNKED: Final = -1
"""Body length of a message in the chunked transfer coding (RFC 9112 §7.1)."""
UNTIL_CLOSE: Final = -2
"""Body length of a response that ends when its connection does (RFC 9112 §6.3, rule 8)."""


class H1Error(ProtocolError):
    """A message breaks HTTP/1.1's rules or our limits; `status` is what a server answers before it closes."""

    def __init__(self, message: str, *, status: int = 400, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


@dataclass(frozen=True, slots=True)
class H1Limits:
    """Bounds on a message head. A head beyond them is refused before it is stored whole."""

    max_request_line_bytes: int = 8 * 1024
    """Method, target and version; longer is answered with 414."""
    max_head_bytes: int = 32 * 1024
    """The whole head; longer is answered with 431."""
    max_fields: int = 128
    """Field lines; more are answered with 431."""


# RFC 9110 §5.6.2 token; RFC 9110 §5.5 field-value without CTL other than HTAB (obs-text is let through as opaque bytes).
TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]"

_FIELD_LINES = re.compile(rb"(" + TOKEN + rb"++):(" + VALUE + rb"*+)\r\n")
_TOKEN_ONLY = re.compile(TOKEN + rb"++")
_VALUE_ONLY = re.compile(VALUE + rb"*+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_BARE_CR = re.compile(rb"\r(?!\n)")

# RFC 3986 §3.2.2, narrowed to what a public host name or address can hold: no percent-encoding, no sub-delims, no userinfo.
_AUTHORITY = re.compile(rb"([a-z0-9._\-]{1,255}|\[[0-9a-f:.]{2,45}\])(?::([0-9]{0,5}))?")
_DIGITS = re.compile(rb"[0-9]{1,18}")


def has_bare_line_end(data: bytes | bytearray, start: int = 0) -> bool:
    """Whether a LF without its CR stands in the data: such a head may never reach an end that we accept (RFC 9112 §2.2)."""
    return _BARE_LF.search(data, start) is not None


def parse_fields(section: bytes, limits: H1Limits) -> list[Field]:
    """Field lines, each with its CRLF, to (lower-case name, value) pairs in order; strict (RFC 9112 §5).

    Raises H1Error for anything that is not a field line: obs-fold, space before the colon, a control character, a bare CR or LF.
    """
    found: list[Field] = _FIELD_LINES.findall(section)
    if len(found) > limits.max_fields:
        raise _too_many(limits)
    fields: list[Field] = []
    covered = 3 * len(found)
    for name, value in found:
        covered += len(name) + len(value)
        fields.append((name.lower(), value.strip(b" \t")))
    # The matches do not overlap; when they add up to the whole, nothing stood between them.
    if covered != len(section):
        raise _explain(section, limits)
    return fields


def _too_many(limits: H1Limits) -> H1Error:
    return H1Error(f"more than {limits.max_fields} field lines", status=431, remedy="send fewer header fields")


def _explain(section: bytes, limits: H1Limits) -> H1Error:
    """Names what is wrong with a field section that did not match."""
    if _BARE_LF.search(section):
        return H1Error("a line ends in LF without CR (RFC 9112 §2.2)")
    if _BARE_CR.search(section):
        return H1Error("a CR stands without LF (RFC 9112 §2.2)")
    lines = section.split(b"\r\n")
    if len(lines) - 1 > limits.max_fields:
        return _too_many(limits)
    for line in lines[:-1]:
        if line[:1] in (b" ", b"\t"):
            return H1Error("a field line is folded (RFC 9112 §5.2)")
        name, colon, value = line.partition(b":")
        if not colon:
            return H1Error("a field line has no colon (RFC 9112 §5)")
        if name.rstrip(b" \t") != name:
            return H1Error("white space stands before a field's colon (RFC 9112 §5.1)")
        if not _TOKEN_ONLY.fullmatch(name):
            return H1Error("a field name holds a character that no token has (RFC 9110 §5.1)")
        if not _VALUE_ONLY.fullmatch(value):
            return H1Error("a field value holds a control character (RFC 9110 §5.5)")
    return H1Error("the header section is malformed (RFC 9112 §5)")


def parse_authority(value: bytes) -> bytes:
    """`host` or `host:port`, validated and lower-cased; an empty port is dropped (RFC 3986 §6.2.3).

    Raises H1Error for user information, a port beyond 65535, a broken IPv6 literal and anything else that is not one.
    """
    lowered = value.lower()
    match = _AUTHORITY.fullmatch(lowered)
    if match is None:
        raise H1Error("the host is not a valid host name or address (RFC 9112 §3.2)")
    host: bytes = match[1]
    port: bytes | None = match[2]
    if host.startswith(b"["):
        try:
            ipaddress.IPv6Address(host[1:-1].decode("ascii"))
        except ValueError:
            raise H1Error("the host is not a valid IPv6 address (RFC 3986 §3.2.2)") from None
    elif host.startswith(b".") or b".." in host:
        raise H1Error("the host name has an empty label (RFC 9112 §3.2)")
    if port is None:
        return lowered
    if port == b"":
        return host
    if int(port) > 65535:
        raise H1Error("the host's port is beyond 65535 (RFC 9112 §3.2)")
    return lowered


def parse_content_length(value: bytes) -> int:
    """`1*DIGIT` and nothing else (RFC 9110 §8.6); H1Error otherwise, 413 when the number is absurd."""
    if not _DIGITS.fullmatch(value):
        if value.isdigit():
            raise H1Error("the content length is beyond any bound", status=413)
        raise H1Error("the content length is not a number (RFC 9110 §8.6)")
    return int(value)


def split_list(value: bytes) -> list[bytes]:
    """Elements of a comma-separated list of tokens, lower-cased, empty ones left out (RFC 9110 §5.6.1)."""
    return [part for part in (element.strip(b" \t") for element in value.lower().split(b",")) if part]


def without_hop_by_hop(fields: list[Field], named: frozenset[bytes] | set[bytes]) -> Fields:
    """The fields that go end to end: without those of RFC 9110 §7.6.1 and those that `Connection` names.

    `te` stays only as `trailers` (§10.1.4).
    """
    kept: list[Field] = []
    for field in fields:
        name = field[0]
        if name == b"te":
            if b"trailers" in split_list(field[1]):
                kept.append((b"te", b"trailers"))
        elif name not in HOP_BY_HOP and name not in named:
            kept.append(field)
    return tuple(kept)


HOP_BY_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",  # only means something next to `Upgrade: h2c` (RFC 7540 §3.2.1), which we never forward
    )
)

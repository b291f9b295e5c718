"""Reads a response head (RFC 9112 §4, §6.3). For the agent's origin client.

Forgiven, because the meaning is beyond doubt and RFC 9112 says how: a missing reason phrase, white space before a colon (§5.1),
folded lines (§5.2), the same Content-Length several times (RFC 9110 §8.6), Content-Length beside chunked (§6.3), control
characters other than NUL, CR and LF in a value (RFC 9110 §5.5). H1Error otherwise: the response is not HTTP.
"""

from __future__ import annotations

import re

from edgetun_core.http.h1_syntax import (
    CHUNKED,
    UNTIL_CLOSE,
    H1Error,
    H1Limits,
    parse_content_length,
    parse_fields,
    split_list,
    without_hop_by_hop,
)
from edgetun_core.http.message import Field, ResponseHead

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n\x00]*+)?\r\n")
_FOLD = re.compile(rb"[ \t]*\r\n[ \t]+")
_SPACE_BEFORE_COLON = re.compile(rb"(?m)^([^\s:]+)[ \t]+:")
_HARMLESS_CONTROLS = bytes(
    0x20 if (byte < 0x20 and byte not in (0x00, 0x09, 0x0A, 0x0D)) or byte == 0x7F else byte for byte in range(256)
)
_LIMITS = H1Limits(max_fields=256)


class ParsedResponse:
    """A response head and its framing; immutable and shared by every response with the same block.

    `body_length` is the length in bytes, `CHUNKED` or `UNTIL_CLOSE`. `upgrade` is the protocol of a 101, lower case.
    """

    __slots__ = ("body_length", "head", "keep_alive", "upgrade")

    def __init__(self, head: ResponseHead, body_length: int, keep_alive: bool, upgrade: bytes | None) -> None:
        self.head = head
        self.body_length = body_length
        self.keep_alive = keep_alive
        self.upgrade = upgrade


def parse_response(block: bytes, request_method: bytes) -> ParsedResponse:
    """Reads a block from the status line to the empty line, both included; H1Error when it is not a response."""
    match = _STATUS_LINE.match(block)
    if match is None:
        raise H1Error("the origin's status line is malformed (RFC 9112 §4)", status=502)
    minor = 1 if match[1] == b"1" else 0
    status = int(match[2])
    if not block.endswith(b"\r\n\r\n") and len(block) != match.end() + 2:
        raise H1Error("the origin's head does not end in an empty line (RFC 9112 §2.1)", status=502)
    section = block[match.end() : -2]
    try:
        fields = parse_fields(section, _LIMITS)
    except H1Error:
        fields = _parse_forgiving(section)

    lengths: list[bytes] = []
    codings: list[bytes] = []
    options: list[bytes] = []
    upgrade: bytes | None = None
    for name, value in fields:
        if name == b"content-length":
            lengths += split_list(value) or [b""]
        elif name == b"transfer-encoding":
            codings += split_list(value)
        elif name == b"connection":
            options += split_list(value)
        elif name == b"upgrade":
            upgrade = upgrade or value.lower()

    codings = [coding for coding in codings if coding != b"identity"]
    keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
    dropped = set(options) - {b"content-length", b"te", b"content-type", b"cache-control", b"set-cookie"}
    if lengths and len(set(lengths)) > 1:
        raise H1Error("the origin sent several different content lengths (RFC 9112 §6.3)", status=502)

    bodiless = request_method == b"HEAD" or status < 200 or status in (204, 304)
    if codings:
        # Beside a transfer coding the length counts for nothing, and the connection is not trusted further (§6.3 rule 3).
        dropped.add(b"content-length")
        if codings != [b"chunked"] and not bodiless:
            raise H1Error("the origin used a transfer coding other than chunked (RFC 9112 §6.1)", status=502)
        if lengths or minor == 0:
            keep_alive = False
        body_length = CHUNKED
    elif lengths:
        try:
            body_length = parse_content_length(lengths[0])
        except H1Error as error:
            raise H1Error(f"in the origin's response {error.message}", status=502) from None
        if len(lengths) > 1:
            dropped.add(b"content-length")
    else:
        body_length = UNTIL_CLOSE
    if bodiless:
        body_length = 0
    elif body_length == UNTIL_CLOSE:
        keep_alive = False
    if status < 200 or status == 204:
        dropped.add(b"content-length")  # RFC 9110 §8.6

    kept = without_hop_by_hop(fields, dropped)
    if len(lengths) > 1 and not codings and status >= 200 and status != 204:
        kept = (*kept, (b"content-length", lengths[0]))
    return ParsedResponse(ResponseHead(status, kept), body_length, keep_alive, upgrade if status == 101 else None)


def _parse_forgiving(section: bytes) -> list[Field]:
    """Reads a field section again after the forgivable has been put right; H1Error when that was not it."""
    if section[:1] in (b" ", b"\t"):
        raise H1Error("the origin's first field line is folded (RFC 9112 §2.2)", status=502)
    mended = _FOLD.sub(b" ", section).translate(_HARMLESS_CONTROLS)
    mended = _SPACE_BEFORE_COLON.sub(rb"\1:", mended)
    try:
        return parse_fields(mended, _LIMITS)
    except H1Error as error:
        raise H1Error(f"in the origin's response {error.message}", status=502) from None

"""Heads as HTTP/2 and HTTP/3 carry them: lists of fields that begin with pseudo-header fields (RFC 9113 §8, RFC 9114 §4).

What the two versions share stands here once: validation, pseudo-header fields to heads and back, cookie crumbs. Pure; callers
memoise by the decoded fields. Hot path on a memo miss only: about 8 us for a browser's request.

    read_request, read_response, read_trailers      fields to heads, strictly
    build_request_fields, build_response_fields     heads to fields, for the encoder

Two kinds of mistakes: `MalformedMessage` is a stream error (RFC 9113 §8.1.1: PROTOCOL_ERROR, RFC 9114 §4.1.2:
H3_MESSAGE_ERROR); `RequestRefused` is a well-formed request that gets an answer with its `status`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from edgetun_core.errors import ProtocolError
from edgetun_core.http.h1_chunked import FORBIDDEN_TRAILERS
from edgetun_core.http.h1_syntax import (
    HOP_BY_HOP,
    TOKEN,
    VALUE,
    H1Error,
    H1Limits,
    parse_authority,
    parse_content_length,
    split_list,
)
from edgetun_core.http.message import Field, Fields, RequestHead, ResponseHead
from edgetun_core.http.priority import Priority, parse_priority

UNKNOWN_LENGTH: Final = -1
"""Body length of a message without `content-length`."""


class MalformedMessage(ProtocolError):
    """A message that breaks the version's rules for field sections; its stream is reset and nothing of it is passed on."""


class RequestRefused(ProtocolError):
    """A request that is understood and not served; `status` is the answer.

    `is_head` is for whoever read the fields to set when the method was HEAD: the answer then has no body.
    """

    is_head = False

    def __init__(self, message: str, *, status: int, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.status = status


class ReceivedRequest:
    """A request head and what a multiplexed front needs beside it; immutable, shared by every request with the same fields.

    `body_length` is what `content-length` says or `UNKNOWN_LENGTH`. `priority` is None when the request says nothing of it.
    An extended CONNECT (RFC 8441, RFC 9220) is a GET whose `head.protocol` is set, as an upgrade in HTTP/1.1 would be.
    """

    __slots__ = ("body_length", "expects_continue", "head", "is_head", "priority")

    def __init__(
        self, head: RequestHead, body_length: int, *, expects_continue: bool = False, priority: Priority | None = None
    ) -> None:
        self.head = head
        self.body_length = body_length
        self.expects_continue = expects_continue
        self.is_head = head.method == b"HEAD"
        self.priority = priority


class ReceivedResponse:
    """A response head, interim or final, and the length that it announces or `UNKNOWN_LENGTH`."""

    __slots__ = ("body_length", "head")

    def __init__(self, head: ResponseHead, body_length: int) -> None:
        self.head = head
        self.body_length = body_length


# One pass over all names and one over all values: joined by LF, which neither may hold.
_NAME = TOKEN.replace(b"A-Z", b"")
_NAMES = re.compile(rb"(?:" + _NAME + rb"++\n)*+")
_NO_EDGES = rb"(?:(?![ \t])" + VALUE + rb"*+(?<![ \t]))?"
_VALUES = re.compile(rb"(?:" + _NO_EDGES + rb"\n)*+")
_METHOD = re.compile(TOKEN + rb"{1,32}")
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")
_STATUS = re.compile(rb"[1-5][0-9][0-9]")

_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_TELLING: Final = frozenset(
    (b"host", b"content-length", b"cookie", b"te", b"expect", b"priority", b"http2-settings", *HOP_BY_HOP)
)
"""Fields that say something about the message itself; the rest is carried unread."""
_CONTINUE: Final = b"100-continue"
_SCHEMES: Final = (b"http", b"https")


def read_request(fields: Sequence[Field], scheme: bytes, limits: H1Limits) -> ReceivedRequest:
    """Reads a request's field section. `scheme` is the connection's own, `http` or `https`.

    Raises MalformedMessage or RequestRefused.
    """
    pseudo, regular = _split(fields, _REQUEST_PSEUDO)
    if len(regular) > limits.max_fields:
        raise RequestRefused(
            f"more than {limits.max_fields} field lines", status=431, remedy="send fewer header fields"
        )
    _check_fields(regular)
    method = pseudo.get(b":method")
    if method is None or not _METHOD.fullmatch(method):
        raise MalformedMessage(":method is missing or no method (RFC 9113 §8.3.1)")
    protocol = pseudo.get(b":protocol")
    if method == b"CONNECT":
        if protocol is None:
            if b":scheme" in pseudo or b":path" in pseudo or b":authority" not in pseudo:
                raise MalformedMessage("CONNECT has :authority and neither :scheme nor :path (RFC 9113 §8.5)")
            raise RequestRefused("CONNECT is not offered here: this is no forward proxy", status=501)
    elif protocol is not None:
        raise MalformedMessage(":protocol stands in a request other than CONNECT (RFC 8441 §4)")
    path = pseudo.get(b":path")
    if not path:
        raise MalformedMessage(":path is missing or empty (RFC 9113 §8.3.1)")
    if b":scheme" not in pseudo:
        raise MalformedMessage(":scheme is missing (RFC 9113 §8.3.1)")

    kept, telling = _sort_out(regular)
    authority = _authority(pseudo.get(b":authority"), telling.get(b"host"))
    body_length = UNKNOWN_LENGTH
    lengths = telling.get(b"content-length")
    if lengths is not None:
        body_length = _content_length(lengths)
    _check_size(fields, path, limits)
    if pseudo[b":scheme"].lower() != scheme:
        if pseudo[b":scheme"].lower() not in _SCHEMES:
            raise RequestRefused("the scheme is neither http nor https: this is no forward proxy", status=421)
        raise RequestRefused(
            "the request's scheme is not the one of this connection", status=421, remedy="connect anew to what is meant"
        )
    if not _TARGET.fullmatch(path) and not (path == b"*" and method == b"OPTIONS"):
        raise MalformedMessage(":path is no path and query (RFC 9113 §8.3.1)")

    expects_continue = False
    expectations = telling.get(b"expect")
    if expectations is not None:
        if any(element != _CONTINUE for value in expectations for element in split_list(value)):
            raise RequestRefused("only the expectation 100-continue can be met (RFC 9110 §10.1.1)", status=417)
        expects_continue = body_length != 0 and protocol is None
    if protocol is not None:
        method = b"GET"
        protocol = protocol.lower()
        if protocol != b"websocket":
            raise RequestRefused(f"the protocol {protocol.decode('latin-1')} is not offered here", status=501)
        if lengths is not None:
            raise MalformedMessage("content-length in an extended CONNECT (RFC 8441 §5)")
    priority = telling.get(b"priority")
    head = RequestHead(method, scheme, authority, path, kept, protocol)
    return ReceivedRequest(
        head,
        body_length,
        expects_continue=expects_continue,
        priority=parse_priority(b",".join(priority)) if priority is not None else None,
    )


def read_response(fields: Sequence[Field]) -> ReceivedResponse:
    """Reads a response's field section, interim or final. Raises MalformedMessage."""
    pseudo, regular = _split(fields, frozenset((b":status",)))
    _check_fields(regular)
    status = pseudo.get(b":status")
    if status is None or not _STATUS.fullmatch(status):
        raise MalformedMessage(":status is missing or no status (RFC 9113 §8.3.2)")
    if status == b"101":
        raise MalformedMessage("101 does not exist in this version (RFC 9113 §8.6)")
    lengths = [value for name, value in regular if name == b"content-length"]
    body_length = UNKNOWN_LENGTH
    kept: list[Field] = []
    for field in regular:
        if field[0] in HOP_BY_HOP:
            raise MalformedMessage(f"{field[0].decode()} in a response (RFC 9113 §8.2.2)")
        if field[0] != b"content-length":
            kept.append(field)
    if lengths:
        body_length = _content_length(lengths)
        if status[0] != 0x31 and status != b"204":
            kept.append((b"content-length", lengths[0]))
    return ReceivedResponse(ResponseHead(int(status), tuple(kept)), body_length)


def read_trailers(fields: Sequence[Field]) -> Fields:
    """Reads a trailer section; what may not stand there is left out (RFC 9110 §6.5.1). Raises MalformedMessage."""
    _, regular = _split(fields, frozenset())
    _check_fields(regular)
    kept: list[Field] = []
    for field in regular:
        if field[0] in HOP_BY_HOP:
            raise MalformedMessage(f"{field[0].decode()} in trailers (RFC 9113 §8.2.2)")
        if field[0] not in FORBIDDEN_TRAILERS:
            kept.append(field)
    return tuple(kept)


def build_request_fields(head: RequestHead, *, scheme: bytes, authority: bytes) -> list[Field]:
    """The field section of a request to an origin; an upgrade becomes an extended CONNECT (RFC 8441 §5)."""
    if head.protocol is not None:
        fields: list[Field] = [(b":method", b"CONNECT"), (b":protocol", head.protocol)]
    else:
        fields = [(b":method", head.method)]
    fields += ((b":scheme", scheme), (b":authority", authority), (b":path", head.target))
    fields += (field for field in head.fields if field[0] not in HOP_BY_HOP)
    return fields


def build_response_fields(head: ResponseHead) -> list[Field]:
    """The field section of a response; a length that is not one number, or stands where none may, is left out."""
    status = head.status
    fields: list[Field] = [(b":status", b"%d" % status)]
    lengths = head.get_all(b"content-length")
    has_length = len(lengths) == 1 and lengths[0].isdigit() and status >= 200 and status != 204
    for field in head.fields:
        name = field[0]
        if name not in HOP_BY_HOP and (has_length or name != b"content-length"):
            fields.append(field)
    return fields


def announced_length(head: ResponseHead) -> int:
    """The length that a response is written with (see `build_response_fields`), or `UNKNOWN_LENGTH`."""
    lengths = head.get_all(b"content-length")
    if len(lengths) == 1 and lengths[0].isdigit() and head.status >= 200 and head.status != 204:
        return int(lengths[0])
    return UNKNOWN_LENGTH


def _split(fields: Sequence[Field], allowed: frozenset[bytes]) -> tuple[dict[bytes, bytes], list[Field]]:
    """Pseudo-header fields, each at most once and before all others (RFC 9113 §8.3), and the rest."""
    pseudo: dict[bytes, bytes] = {}
    at = 0
    for at, (name, value) in enumerate(fields):  # noqa: B007
        if name[:1] != b":":
            break
        if name not in allowed:
            raise MalformedMessage("a pseudo-header field that may not stand here (RFC 9113 §8.3)")
        if name in pseudo:
            raise MalformedMessage(f"{name.decode()} twice (RFC 9113 §8.3)")
        pseudo[name] = value
    else:
        at = len(fields)
    if pseudo and not _VALUES.fullmatch(b"\n".join(pseudo.values()) + b"\n"):
        raise MalformedMessage("a pseudo-header field's value holds what no value may (RFC 9113 §8.2.1)")
    if pseudo and any(b"\n" in value for value in pseudo.values()):
        raise MalformedMessage("a pseudo-header field's value holds a line end (RFC 9113 §8.2.1)")
    return pseudo, [(field[0], field[1]) for field in fields[at:]]


def _check_fields(fields: list[Field]) -> None:
    """Names in lower case and of token characters, values without controls or white space at the ends (RFC 9113 §8.2.1)."""
    count = len(fields)
    if not count:
        return
    names = b"\n".join([name for name, _ in fields]) + b"\n"
    values = b"\n".join([value for _, value in fields]) + b"\n"
    if names.count(b"\n") != count or not _NAMES.fullmatch(names):
        for name, _ in fields:
            if name[:1] == b":":
                raise MalformedMessage("a pseudo-header field after a regular one (RFC 9113 §8.3)")
        raise MalformedMessage("a field name is not one in lower case (RFC 9113 §8.2.1)")
    if values.count(b"\n") != count or not _VALUES.fullmatch(values):
        raise MalformedMessage("a field value holds what no value may (RFC 9113 §8.2.1)")


def _sort_out(regular: list[Field]) -> tuple[Fields, dict[bytes, list[bytes]]]:
    """The fields that go on to the origin, cookie crumbs joined (RFC 9113 §8.2.3), and those that say something here."""
    kept: list[Field] = []
    telling: dict[bytes, list[bytes]] = {}
    cookie_at = -1
    for field in regular:
        name, value = field
        if name not in _TELLING:
            kept.append(field)
            continue
        if name in HOP_BY_HOP and name != b"http2-settings":
            raise MalformedMessage(f"{name.decode()} belongs to HTTP/1.1 alone (RFC 9113 §8.2.2)")
        telling.setdefault(name, []).append(value)
        if name == b"cookie":
            if cookie_at < 0:
                cookie_at = len(kept)
                kept.append(field)
        elif name == b"te":
            if value.lower() != b"trailers":
                raise MalformedMessage("te is other than trailers (RFC 9113 §8.2.2)")
            kept.append((b"te", b"trailers"))
        elif name in (b"priority", b"content-length", b"expect"):
            kept.append(field)
    if cookie_at >= 0 and len(telling[b"cookie"]) > 1:
        kept[cookie_at] = (b"cookie", b"; ".join(telling[b"cookie"]))
    return tuple(kept), telling


def _authority(pseudo: bytes | None, hosts: list[bytes] | None) -> bytes:
    """The authority out of `:authority` and `host`, which must agree (RFC 9113 §8.3.1)."""
    if hosts is not None and len(hosts) > 1:
        raise MalformedMessage("several host fields (RFC 9112 §3.2)")
    host = hosts[0] if hosts is not None else None
    if pseudo is None and host is None:
        raise MalformedMessage("neither :authority nor host (RFC 9113 §8.3.1)")
    try:
        if pseudo is None:
            assert host is not None
            return parse_authority(host)
        authority = parse_authority(pseudo)
        if host is not None and host.lower() != pseudo.lower() and parse_authority(host) != authority:
            raise MalformedMessage(":authority and host differ (RFC 9113 §8.3.1)")
    except H1Error as error:
        raise MalformedMessage(error.message) from None
    return authority


def _content_length(values: list[bytes]) -> int:
    if len(values) > 1:
        raise MalformedMessage("several content-length fields (RFC 9110 §8.6)")
    try:
        return parse_content_length(values[0])
    except H1Error as error:
        if error.status == 413:
            raise RequestRefused(error.message, status=413) from None
        raise MalformedMessage(error.message) from None


def _check_size(fields: Sequence[Field], path: bytes, limits: H1Limits) -> None:
    if len(path) > limits.max_request_line_bytes:
        raise RequestRefused(
            f"the path is longer than {limits.max_request_line_bytes} bytes", status=414, remedy="shorten the URL"
        )
    # As HTTP/1.1 would have written it: a colon, a space and a line end beside each.
    if sum(len(field[0]) + len(field[1]) + 4 for field in fields) > limits.max_head_bytes:
        raise RequestRefused(
            "the header section is too large", status=431, remedy="send fewer or shorter header fields"
        )

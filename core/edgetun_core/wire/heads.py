"""Heads as frame payloads: msgpack arrays, checked in full when they come in, because the peer may be hostile.

Hot path: encoding is kept in `head.wire`, decoding is memoised by block (up to `MEMO_BLOCK_BYTES`, from the second time on), so a head that was seen
lately costs one lookup and nothing is checked twice. Later versions may append elements to the arrays; readers skip them.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Struct

from edgetun_core.errors import LimitExceeded, ProtocolError
from edgetun_core.http.message import Fields, Relayed, RequestHead, ResponseHead
from edgetun_core.memo import RecurringMemo
from edgetun_core.wire.frames import MAX_HEAD_BYTES

MAX_FIELDS: Final = 200
MAX_SERVICE_CHARS: Final = 512
MEMO_BLOCK_BYTES: Final = 4096
MEMO_BYTES: Final = 4 * 1024 * 1024
"""What each of the two generations of a memo holds."""
"""Per kind of head; a generation of blocks of 4 KiB and what they decode to is about 10 MB at worst."""

_NOT_TOKEN: Final = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9a-z]")
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
_PROTOCOL: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z/]{1,64}")
_AUTHORITY: Final = re.compile(rb"[^\x00-\x20\x7f/@?#\\\"<>]{0,512}")
_TARGET: Final = re.compile(rb"(?:/[^\x00-\x20\x7f]*|\*)")
_NOT_VALUE: Final = re.compile(rb"[\r\n\x00]")
_SERVICE: Final = re.compile(r"[^\x00-\x20\x7f]*")
_ADDRESS: Final = re.compile(r"[0-9A-Za-z.:%_-]{0,64}")
_SNI: Final = re.compile(r"[0-9A-Za-z._-]{0,255}")
_VERSION: Final = re.compile(rb"[0-9](?:\.[0-9])?")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"host", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings")
)
"""Never in a head (http/message.py); `host` is the authority, and `te` may only say `trailers`."""

_NOT_IN_TRAILERS: Final = _HOP_BY_HOP | {b"content-length", b"te", b"trailer"}


class _Request(Struct, array_like=True):
    method: bytes
    scheme: bytes
    authority: bytes
    target: bytes
    protocol: bytes | None
    service: str
    fields: tuple[tuple[bytes, bytes], ...]
    relayed: Relayed | None = None


class _Response(Struct, array_like=True):
    status: int
    fields: tuple[tuple[bytes, bytes], ...]


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(_Request).decode
_decode_response = msgspec.msgpack.Decoder(_Response).decode
_decode_fields = msgspec.msgpack.Decoder(tuple[tuple[bytes, bytes], ...]).decode


def _weigh(block: bytes, head: RequestHead | ResponseHead) -> int:
    return len(block) + head.memory_bytes()


_requests: Final[RecurringMemo[bytes, RequestHead]] = RecurringMemo(
    _weigh, MEMO_BYTES, max_entry_bytes=4 * MEMO_BLOCK_BYTES
)
_responses: Final[RecurringMemo[bytes, ResponseHead]] = RecurringMemo(
    _weigh, MEMO_BYTES, max_entry_bytes=4 * MEMO_BLOCK_BYTES
)


def encode_request(head: RequestHead) -> bytes:
    """The payload of a request's HEAD; raises `LimitExceeded` when it is larger than a frame may be."""
    wire = head.wire
    if wire is None:
        parts = (head.method, head.scheme, head.authority, head.target, head.protocol, head.service, head.fields)
        block = _encode(parts if head.relayed is None else (*parts, head.relayed))
        wire = head.wire = _bounded(block, head.fields)
    return wire


def encode_response(head: ResponseHead) -> bytes:
    """The payload of a response's HEAD or INTERIM; raises `LimitExceeded` when it is larger than a frame may be."""
    wire = head.wire
    if wire is None:
        wire = head.wire = _bounded(_encode((head.status, head.fields)), head.fields)
    return wire


def encode_trailers(fields: Fields) -> bytes:
    """The payload of TRAILERS; raises `LimitExceeded` when it is larger than a frame may be."""
    return _bounded(_encode(fields), fields)


def _bounded(block: bytes, fields: Fields) -> bytes:
    if len(block) > MAX_HEAD_BYTES:
        raise LimitExceeded(f"a head of {len(block)} bytes is more than the {MAX_HEAD_BYTES} a session carries")
    if len(fields) > MAX_FIELDS:
        raise LimitExceeded(f"a head of {len(fields)} fields is more than the {MAX_FIELDS} a session carries")
    return block


def decode_request(block: bytes) -> RequestHead:
    """Reads and checks a request's head; raises `ProtocolError`. The result is shared: it is never to be changed."""
    head = _requests.young.get(block) or _requests.get(block)
    if head is None:
        head = _check_request(block)
        # Upgrades, and TCP and UDP more so, come with a head of their own each: nobody sends it again.
        if len(block) <= MEMO_BLOCK_BYTES and head.protocol is None:
            head.recurs = _requests.remember(block, head)
    return head


def decode_response(block: bytes) -> ResponseHead:
    """Reads and checks a response's head, final or interim; raises `ProtocolError`. The result is shared."""
    head = _responses.young.get(block) or _responses.get(block)
    if head is None:
        head = _check_response(block)
        if len(block) <= MEMO_BLOCK_BYTES:
            head.recurs = _responses.remember(block, head)
    return head


def decode_trailers(block: bytes) -> Fields:
    """Reads and checks a trailer section (RFC 9110 §6.5.1); raises `ProtocolError`."""
    try:
        fields = _decode_fields(block)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the trailers cannot be read: {error}") from None
    _check_fields(fields, _NOT_IN_TRAILERS)
    return fields


def _check_request(block: bytes) -> RequestHead:
    try:
        raw = _decode_request(block)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the request's head cannot be read: {error}") from None
    if _METHOD.fullmatch(raw.method) is None:
        raise ProtocolError("the request's method is no token")
    if raw.scheme not in (b"http", b"https"):
        raise ProtocolError("the request's scheme is neither http nor https")
    if _AUTHORITY.fullmatch(raw.authority) is None:
        raise ProtocolError("the request's authority holds a character that cannot be in one")
    if _TARGET.fullmatch(raw.target) is None:
        raise ProtocolError("the request's target is not in origin form")
    if raw.protocol is not None and _PROTOCOL.fullmatch(raw.protocol) is None:
        raise ProtocolError("the request's upgrade protocol is no token")
    if len(raw.service) > MAX_SERVICE_CHARS or _SERVICE.fullmatch(raw.service) is None:
        raise ProtocolError("the request's service is no name of a tunnel")
    _check_fields(raw.fields, _HOP_BY_HOP)
    if raw.relayed is not None:
        _check_relayed(raw.relayed)
    head = RequestHead(
        raw.method, raw.scheme, raw.authority, raw.target, raw.fields, raw.protocol, raw.service, raw.relayed
    )
    if len(block) <= MEMO_BLOCK_BYTES:
        head.wire = block  # a relay sends it on as it came
    return head


def _check_response(block: bytes) -> ResponseHead:
    try:
        raw = _decode_response(block)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the response's head cannot be read: {error}") from None
    if not 100 <= raw.status <= 599:
        raise ProtocolError(f"the response's status {raw.status} is none")
    _check_fields(raw.fields, _HOP_BY_HOP)
    head = ResponseHead(raw.status, raw.fields)
    if len(block) <= MEMO_BLOCK_BYTES:
        head.wire = block
    return head


def _check_relayed(relayed: Relayed) -> None:
    """Its parts end in fields that the origin reads."""
    if not 1 <= relayed.hops <= 255 or not 0 <= relayed.port <= 65535:
        raise ProtocolError("the relayed request's hops or port are out of bounds")
    if _ADDRESS.fullmatch(relayed.address) is None or _SNI.fullmatch(relayed.sni) is None:
        raise ProtocolError("the relayed request's address or server name is none")
    if _VERSION.fullmatch(relayed.version) is None:
        raise ProtocolError("the relayed request's HTTP version is none")


def _check_fields(fields: Fields, forbidden: frozenset[bytes]) -> None:
    """RFC 9110 §5.1, §5.5; one search over all names and one over all values."""
    if not fields:
        return
    if len(fields) > MAX_FIELDS:
        raise ProtocolError(f"the head has {len(fields)} fields, more than {MAX_FIELDS}")
    names = [name for name, _ in fields]
    if b"" in names or _NOT_TOKEN.search(b"".join(names)) is not None:
        raise ProtocolError("a field name is not a lower-case token")
    if _NOT_VALUE.search(b"".join([value for _, value in fields])) is not None:
        raise ProtocolError("a field value holds CR, LF or NUL")
    if not forbidden.isdisjoint(names):
        raise ProtocolError(f"field {min(forbidden.intersection(names)).decode()} does not belong in this head")
    if b"te" in names and any(name == b"te" and value != b"trailers" for name, value in fields):
        raise ProtocolError("field te says something other than trailers")
    if b"content-length" in names:
        lengths = {value for name, value in fields if name == b"content-length"}
        if names.count(b"content-length") > 1 or _LENGTH.fullmatch(lengths.pop()) is None:
            raise ProtocolError("content-length is not one number (RFC 9112 §6.3)")


def body_length(fields: Fields) -> int | None:
    """What `content-length` announces, or None."""
    for name, value in fields:
        if name == b"content-length":
            return int(value) if _LENGTH.fullmatch(value) is not None else None
    return None

"""Whether a response may be compressed at all, and the heads it then has. Pure; worked out once per response head.

RFC 9110 §8.8.3.3: another coding is another representation, so a strong entity-tag cannot stand for both; ours becomes weak.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from edgetun_core.http.message import Field, Fields, ResponseHead
from edgetun_exitnode.cache.response import stored_behind

_ACCEPT_ENCODING: Final = b"accept-encoding"
VARY: Final[Field] = (b"vary", _ACCEPT_ENCODING)
_WITHOUT_CONTENT: Final = frozenset((204, 205, 206, 304))
_BOUND_TO_BYTES: Final = frozenset((b"content-range", b"content-digest", b"repr-digest", b"digest", b"content-md5"))
"""Fields that say something of the very bytes: what carries one is left alone."""
_EVENT_STREAM: Final = b"text/event-stream"
_DIRECTIVE: Final = re.compile(rb'\s*([^\s=,"]+)(?:\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s,"]*))?\s*(?:,|\Z)')


class TypeFilter:
    """The media types of a rule: `type/subtype`, `type/*`, `type/*+suffix`.

    Event streams count only when they are listed by their full name: an encoder for every open tab is a lot of memory.
    """

    __slots__ = ("_exact", "_patterns")

    def __init__(self, types: tuple[str, ...]) -> None:
        self._exact = frozenset(one.encode() for one in types if "*" not in one)
        self._patterns = tuple(
            (before.encode(), after.encode())
            for before, _, after in (one.partition("*") for one in types if "*" in one)
        )

    def matches(self, content_type: bytes) -> bool:
        media_type = content_type.partition(b";")[0].strip(b" \t").lower()
        if media_type in self._exact:
            return True
        if media_type == _EVENT_STREAM:
            return False
        return any(media_type.startswith(before) and media_type.endswith(after) for before, after in self._patterns)


@lru_cache(maxsize=256)
def filter_of(types: tuple[str, ...]) -> TypeFilter:
    """The filter of a rule. Ten thousand tunnels mostly list the same types: they share one."""
    return TypeFilter(types)


class Verdict:
    """What can be done with a response.

    `may_encode`: nothing forbids it; `is_worth_it`: it is also of a listed type and not known to be small. `plain` is the head of
    the response as it is, with `Vary` when others get it compressed. `is_public`: the response says that it is for everybody, so
    there is no secret of the requester's in it. `source` is what the cache answers with, if it does. `length` is -1 when unknown.
    """

    __slots__ = ("_encoded", "head", "is_public", "is_worth_it", "length", "may_encode", "plain", "source")

    def __init__(self, head: ResponseHead, may_encode: bool, is_worth_it: bool, is_public: bool, length: int) -> None:
        self.head = head
        self.source = stored_behind(head)
        self.may_encode = may_encode
        self.is_worth_it = is_worth_it
        self.is_public = is_public or self.source is not None
        self.length = length
        self.plain = head
        if is_worth_it:
            fields = with_vary(head.fields)
            if fields is not head.fields:
                self.plain = ResponseHead(head.status, fields)
                self.plain.view = head.view
        self._encoded: dict[tuple[bytes, int], ResponseHead] = {}

    def encoded(self, coding: bytes, length: int) -> ResponseHead:
        """The head of the compressed response; `length` -1 when it is not known yet."""
        key = (coding, length)
        head = self._encoded.get(key)
        if head is None:
            if len(self._encoded) > 8:
                self._encoded.clear()
            head = self._encoded[key] = build_encoded_head(self.head, coding, length)
        return head


def decide_verdict(head: ResponseHead, types: TypeFilter, min_bytes: int) -> Verdict:
    """Looks at a final response head."""
    length, media_type, is_free, is_public = -1, b"", head.status not in _WITHOUT_CONTENT and head.status >= 200, False
    for name, value in head.fields:
        if name == b"content-type":
            media_type = value
        elif name == b"content-length":
            is_free = is_free and value.isdigit()
            length = int(value) if value.isdigit() else -1
        elif name == b"content-encoding":
            is_free = is_free and value.strip().lower() in (b"", b"identity")
        elif name == b"cache-control":
            directives = {match[1].lower() for match in _DIRECTIVE.finditer(value)}
            is_free = is_free and b"no-transform" not in directives
            is_public = is_public or b"public" in directives or b"s-maxage" in directives
        elif name in _BOUND_TO_BYTES:
            is_free = False
    is_worth_it = is_free and bool(media_type) and not 0 <= length < min_bytes and types.matches(media_type)
    return Verdict(head, is_free, is_worth_it, is_public, length)


def with_vary(fields: Fields) -> Fields:
    """The fields with `Accept-Encoding` among what the response varies on; the same object when it is there already."""
    for name, value in fields:
        if name == b"vary" and any(one.strip().lower() in (b"*", _ACCEPT_ENCODING) for one in value.split(b",")):
            return fields
    return (*fields, VARY)


def weaken(etag: bytes) -> bytes:
    """The entity-tag as a weak one."""
    return etag if etag.startswith(b"W/") else b"W/" + etag


def build_encoded_head(head: ResponseHead, coding: bytes, length: int) -> ResponseHead:
    """The head of a response whose content is now `coding`."""
    fields: list[Field] = []
    for name, value in head.fields:
        if name in (b"content-length", b"content-encoding", b"accept-ranges"):
            continue
        fields.append((name, weaken(value)) if name == b"etag" else (name, value))
    fields.append((b"content-encoding", coding))
    if length >= 0:
        fields.append((b"content-length", b"%d" % length))
    return ResponseHead(head.status, with_vary(tuple(fields)))


def weaken_not_modified(head: ResponseHead, if_none_match: bytes) -> ResponseHead:
    """A 304 for who holds the compressed response: its tag must be the one they have (RFC 9111 §4.3.4)."""
    etag = head.get(b"etag")
    if etag is None or etag.startswith(b"W/") or weaken(etag) not in if_none_match:
        return head
    fields = tuple((name, weaken(value)) if name == b"etag" else (name, value) for name, value in head.fields)
    return ResponseHead(head.status, with_vary(fields))

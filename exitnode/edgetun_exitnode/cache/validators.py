"""Preconditions and single byte ranges, answered from a response we hold (RFC 9110 §13, §14; RFC 9111 §4.3.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from edgetun_exitnode.cache.dates import parse_http_date

_ETAG: Final = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_ONE_ETAG = re.compile(_ETAG)
_RANGE_SPEC = re.compile(rb"(\d{0,15})-(\d{0,15})")
MAX_RANGES: Final = 16
"""Whoever asks for more gets the whole (RFC 9110 §14.2)."""


@dataclass(frozen=True, slots=True)
class Condition:
    """`If-None-Match` and `If-Modified-Since` of a request; the latter counts only without the former (§13.1.3)."""

    any_etag: bool = False
    etags: tuple[bytes, ...] = ()
    """Opaque tags without the weakness mark: the comparison is weak (§13.1.2)."""
    has_etags: bool = False
    modified_since: float | None = None

    def is_not_modified(self, etag: bytes | None, last_modified: float | None) -> bool:
        """True when the visitor's own copy will do, so that the answer is 304. In doubt False: the whole is never wrong."""
        if self.any_etag:
            return True
        if self.has_etags:
            return etag is not None and etag.removeprefix(b"W/") in self.etags
        return self.modified_since is not None and last_modified is not None and last_modified <= self.modified_since


@dataclass(frozen=True, slots=True)
class ByteRange:
    """One range as asked for: `first-last`, `first-` (last None), or the last `suffix` bytes (first None)."""

    first: int | None
    last: int | None
    suffix: int = 0
    if_range: bytes | None = None
    """The strong entity-tag that must match for the range to be served, when there is one."""
    if_range_date: bytes | None = None
    """The Last-Modified that must match exactly, and be a strong validator (§13.1.5)."""
    never: bool = False
    """`If-Range` with a weak tag or nonsense: it cannot match, so the whole is served."""
    more: tuple[ByteRange, ...] = ()
    """The other ranges, where several are asked for."""

    def resolve(self, length: int) -> tuple[int, int] | None:
        """First and last position in a body of `length` bytes, or None when it cannot be satisfied (§14.1.2)."""
        if self.first is None:
            if self.suffix == 0 or length == 0:
                return None
            return max(0, length - self.suffix), length - 1
        if self.first >= length:
            return None
        return self.first, length - 1 if self.last is None else min(self.last, length - 1)


def is_strong_etag(value: bytes) -> bool:
    """True for one well-formed entity-tag without the weakness mark."""
    return not value.startswith(b"W/") and _ONE_ETAG.fullmatch(value) is not None


def parse_etag(value: bytes | None) -> bytes | None:
    """A response's ETag as it stands when it is well formed, otherwise None."""
    return value if value is not None and _ONE_ETAG.fullmatch(value) is not None else None


def _parse_etag_list(value: bytes) -> tuple[bytes, ...]:
    """The opaque tags of `#entity-tag`; none at all when the list breaks the grammar."""
    tags: list[bytes] = []
    position, size = 0, len(value)
    after_tag = False
    while position < size:
        octet = value[position]
        if octet in b" \t":
            position += 1
        elif octet == 0x2C:
            after_tag = False
            position += 1
        else:
            match = None if after_tag else _ONE_ETAG.match(value, position)
            if match is None:
                return ()
            tags.append(match[0].removeprefix(b"W/"))
            position = match.end()
            after_tag = True
    return tuple(tags)


def parse_condition(if_none_match: list[bytes], if_modified_since: list[bytes]) -> Condition | None:
    """None when there is nothing to evaluate. What cannot be read never matches."""
    if if_none_match:
        joined = b", ".join(if_none_match)
        if joined.strip(b" \t") == b"*":
            return Condition(any_etag=True)
        return Condition(has_etags=True, etags=_parse_etag_list(joined))
    if len(if_modified_since) == 1 and (moment := parse_http_date(if_modified_since[0])) is not None:
        return Condition(modified_since=moment)
    return None


def parse_range(value: bytes, if_range: list[bytes]) -> ByteRange | Literal["too many"] | None:
    """The `bytes` ranges asked for, the first with the others in `more`; None for another unit or nonsense."""
    unit, equals, text = value.partition(b"=")
    if not equals or unit.lower() != b"bytes":
        return None
    specs = [part.strip(b" \t") for part in text.split(b",")]
    specs = [spec for spec in specs if spec]
    if len(specs) > MAX_RANGES:
        return "too many"
    spans: list[tuple[int | None, int | None, int]] = []
    for spec in specs:
        match = _RANGE_SPEC.fullmatch(spec)
        if match is None:
            return None
        first_text, last_text = match.groups()
        if not first_text and not last_text:
            return None
        if not first_text:
            spans.append((None, None, int(last_text)))
            continue
        first, last = int(first_text), int(last_text) if last_text else None
        if last is not None and last < first:
            return None
        spans.append((first, last, 0))
    if not spans:
        return None
    tag = date = None
    never = len(if_range) > 1
    if len(if_range) == 1:
        if is_strong_etag(if_range[0]):
            tag = if_range[0]
        elif parse_http_date(if_range[0]) is not None:
            date = if_range[0]
        else:
            never = True
    return ByteRange(*spans[0], tag, date, never, tuple(ByteRange(*span) for span in spans[1:]))

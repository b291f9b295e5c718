"""Priorities of HTTP/2 and HTTP/3 (RFC 9218): the `Priority` field and the value of a PRIORITY_UPDATE frame.

Pure and memoised: browsers send a handful of values.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from edgetun_core.memo import Memo

LEAST_URGENT: Final = 7


class Priority(NamedTuple):
    """How soon a response is wanted. `urgency` runs from 0, first, to 7, last; `incremental` ones are of use piece by piece."""

    urgency: int = 3
    incremental: bool = False


DEFAULT: Final = Priority()
"""What holds when nothing was said (RFC 9218 §4)."""

# A dictionary member (RFC 8941 §3.2): key, then perhaps a bare item, then parameters. Inner lists occur in none we know, so a
# field with one fails to parse here, which means the same as no field.
_ITEM = r"(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|\?[01]|:[A-Za-z0-9+/=]*:|\"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\[\"\\])*\"|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*)"
_KEY = r"[a-z*][a-z0-9_\-.*]*"
_MEMBER = re.compile(rf"[ \t]*({_KEY})(?:=({_ITEM}))?(?:;[ ]*{_KEY}(?:={_ITEM})?)*[ \t]*(,|\Z)")
_MAX_VALUE_BYTES: Final = 256

_known: Memo[bytes, Priority] = Memo(128)


def parse_priority(value: bytes) -> Priority:
    """Reads a `Priority` field or update; what is out of range or does not parse counts as not said (RFC 9218 §4)."""
    known = _known.get(value)
    if known is None:
        known = _parse(value) if len(value) <= _MAX_VALUE_BYTES else DEFAULT
        if len(value) <= _MAX_VALUE_BYTES:
            _known.put(value, known)
    return known


def _parse(value: bytes) -> Priority:
    try:
        text = value.decode("ascii").strip(" ")
    except UnicodeDecodeError:
        return DEFAULT
    urgency, incremental = DEFAULT
    at = 0
    goes_on = bool(text)
    while goes_on:
        match = _MEMBER.match(text, at)
        if match is None:
            return DEFAULT
        key, item, end = match.groups()
        # A later member replaces an earlier one of the same key, also by one of the wrong type (RFC 8941 §4.2.2).
        if key == "u":
            urgency = int(item) if item is not None and len(item) == 1 and "0" <= item <= "7" else DEFAULT.urgency
        elif key == "i":
            incremental = item is None or item == "?1"
        at = match.end()
        goes_on = end == ","
    return Priority(urgency, incremental)

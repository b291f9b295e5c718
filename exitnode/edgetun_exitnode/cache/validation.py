"""Asking the origin whether what is stored still holds, and what a 304 or a HEAD makes of it (RFC 9111 §3.2, §4.3). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgetun_core.http.message import Fields, ResponseHead
from edgetun_exitnode.cache.dates import format_http_date, parse_http_date
from edgetun_exitnode.cache.response import StoredResponse
from edgetun_exitnode.cache.validators import is_strong_etag, parse_etag

MAX_TAGS: Final = 16
"""Entity-tags in one conditional request; a URL with more variants names the selected one and the latest."""

_KEPT_AS_STORED: Final = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"trailer",
        b"content-length", b"content-range", b"content-encoding",
    }
)  # fmt: skip
"""What a later response does not change (RFC 9111 §3.2): framing, and what says how the stored bytes are coded."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is added to a request so that the origin may answer 304, and what it was made from.

    `selected` is the stored response that the request selects (by Vary); `others` are those of other variants, which the origin
    may name by their strong entity-tags (§4.3.1).
    """

    fields: Fields
    selected: StoredResponse | None
    others: tuple[StoredResponse, ...] = ()


def build_conditions(selected: StoredResponse | None, others: Sequence[StoredResponse]) -> Conditions | None:
    """The preconditions for a validating request (RFC 9111 §4.3.1), or None when nothing stored has a validator."""
    tags: list[bytes] = []
    named: list[StoredResponse] = []
    if selected is not None and not selected.can_be_validated:
        selected = None
    if selected is not None and selected.etag is not None:
        tags.append(selected.etag)
    for other in others:
        etag = other.etag
        if other is selected or etag is None or not is_strong_etag(etag) or other.status != 200:
            continue
        named.append(other)
        if etag not in tags and len(tags) < MAX_TAGS:
            tags.append(etag)
    if selected is not None and selected.etag is None:
        # Tags of other variants would make the origin ignore the date (RFC 9110 §13.1.3).
        modified = selected.last_modified_field
        return None if modified is None else Conditions(((b"if-modified-since", modified),), selected)
    if not tags:
        return None
    fields: Fields = ((b"if-none-match", b", ".join(tags)),)
    if selected is not None and selected.last_modified_field is not None:
        fields += ((b"if-modified-since", selected.last_modified_field),)  # for origins that know no entity-tags
    return Conditions(fields, selected, tuple(named))


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The 304 means `answer`, which answers the request; `also` share its strong validator and are updated too (§4.3.4)."""

    answer: StoredResponse
    also: tuple[StoredResponse, ...] = ()


@dataclass(frozen=True, slots=True)
class Unidentified:
    """The 304 names nothing that is stored: none of it is updated, and the request goes out again without conditions."""

    reason: str


def decide_confirmed(response: ResponseHead, conditions: Conditions) -> Confirmed | Unidentified:
    """Which stored responses a 304 updates (RFC 9111 §4.3.4).

    By a strong entity-tag all that have it; by a weak one the selected. A 304 without any validator can only mean the response
    that the conditions were made from, when that was one: many small servers leave the validator out.
    """
    selected, others = conditions.selected, conditions.others
    etag = parse_etag(response.get(b"etag"))
    if etag is not None and is_strong_etag(etag):
        matching = [one for one in (selected, *others) if one is not None and one.etag == etag]
        if not matching:
            return Unidentified("its entity-tag is of nothing stored")
        return Confirmed(matching[0], tuple(matching[1:]))
    if selected is None:
        return Unidentified("it names none of several variants")
    if etag is not None:
        if selected.etag is not None and selected.etag.removeprefix(b"W/") == etag.removeprefix(b"W/"):
            return Confirmed(selected)
        return Unidentified("its weak entity-tag is not that of the selected response")
    modified = response.get(b"last-modified")
    if modified is not None and selected.last_modified is not None:
        if parse_http_date(modified) == selected.last_modified:
            return Confirmed(selected)
        return Unidentified("its Last-Modified is not that of the selected response")
    if others and any(other.etag != selected.etag for other in others):
        return Unidentified("it names none of several variants")
    return Confirmed(selected)


def update_fields(stored: Fields, newer: Fields, wall_s: float) -> Fields:
    """The stored fields with those of a later response in their place (RFC 9111 §3.2).

    `age` of the later one is among them, for whoever works out the timing. A later response without `Date` gets the moment it
    came (RFC 9110 §6.6.1): the stored Date would make it old.
    """
    if not any(name == b"date" for name, _ in newer):
        newer = (*newer, (b"date", format_http_date(wall_s)))
    replacing = {name for name, _ in newer if name not in _KEPT_AS_STORED}
    kept = tuple(field for field in stored if field[0] not in replacing and field[0] != b"age")
    return kept + tuple(field for field in newer if field[0] in replacing)


def decide_freshened_by_head(stored: StoredResponse, response: ResponseHead) -> bool:
    """True when a 200 to a HEAD confirms a stored GET; otherwise that one is to be taken as stale (RFC 9111 §4.3.5)."""
    etag = response.get(b"etag")
    if etag is not None and parse_etag(etag) != stored.etag:
        return False
    modified = response.get(b"last-modified")
    if modified is not None and parse_http_date(modified) != stored.last_modified:
        return False
    length = response.get(b"content-length")
    return length is None or length == b"%d" % stored.length

"""Cache-Control of requests and responses (RFC 9111 §5.2), read strictly and, in doubt, the careful way.

Doubt is resolved against storing and against reuse: a field that breaks the grammar counts as `no-store`; a duration that
is no number counts as 0; a lifetime that is said twice, differently, counts as 0 (RFC 9111 §4.2.1); of other durations the
shorter holds; a directive that is said twice, once with and once without field names, counts as said without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

MAX_FIELD_BYTES: Final = 8192
"""A longer Cache-Control is not read; it counts as malformed."""
MAX_DELTA_S: Final = 2**31
"""What a larger number of seconds counts as (RFC 9111 §1.2.2)."""

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Possessive where white space meets white space, so that no field costs more than its length.
_DIRECTIVE = re.compile(
    rb"[ \t]*+(?:(?P<name>" + _TOKEN + rb")"
    rb"(?:=(?:(?P<token>"
    + _TOKEN
    + rb')|"(?P<quoted>(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*)"))?)?'
    rb"[ \t]*+(?P<after>,|\Z)"
)
_QUOTED_PAIR = re.compile(rb"\\(.)")
_DIGITS = re.compile(rb"[0-9]+")
_FIELD_NAME = re.compile(_TOKEN)


class MalformedField(Exception):
    """The field does not follow the grammar `#( token [ "=" ( token / quoted-string ) ] )`."""


@dataclass(frozen=True, slots=True)
class RequestDirectives:
    """What a visitor asks of caches (RFC 9111 §5.2.1)."""

    max_age_s: int | None = None
    max_stale_s: int = 0
    """`max-stale` without a number is `MAX_DELTA_S`."""
    min_fresh_s: int = 0
    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False


@dataclass(frozen=True, slots=True)
class ResponseDirectives:
    """What an origin allows caches (RFC 9111 §5.2.2, RFC 5861).

    `no_cache` and `private` are the forms without field names; `no_cache_fields` and `private_fields` hold the names, in
    lower case, of the forms with them.
    """

    max_age_s: int | None = None
    s_maxage_s: int | None = None
    no_cache: bool = False
    no_cache_fields: tuple[bytes, ...] = ()
    no_store: bool = False
    private: bool = False
    private_fields: tuple[bytes, ...] = ()
    public: bool = False
    must_revalidate: bool = False
    proxy_revalidate: bool = False
    must_understand: bool = False
    immutable: bool = False
    stale_while_revalidate_s: int | None = None
    stale_if_error_s: int | None = None


NO_REQUEST_DIRECTIVES: Final = RequestDirectives()
NO_RESPONSE_DIRECTIVES: Final = ResponseDirectives()
_MALFORMED_RESPONSE: Final = ResponseDirectives(no_store=True, no_cache=True)
_MALFORMED_REQUEST: Final = RequestDirectives(no_cache=True)


def iterate_directives(value: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Name (lower case) and argument (unquoted, or None) of each directive of one field line; raises `MalformedField`."""
    if len(value) > MAX_FIELD_BYTES:
        raise MalformedField
    position, size = 0, len(value)
    while position < size:
        match = _DIRECTIVE.match(value, position)
        if match is None:
            raise MalformedField
        position = match.end()
        name = match["name"]
        if name is None:
            continue  # empty list elements are allowed (RFC 9110 §5.6.1.2)
        argument = match["token"]
        if argument is None and (argument := match["quoted"]) is not None:
            argument = _QUOTED_PAIR.sub(rb"\1", argument)
        yield name.lower(), argument


def parse_delta_s(argument: bytes | None) -> int:
    """A delta-seconds (RFC 9111 §1.2.2), token or quoted alike (§5.2); 0 when it is missing or no number."""
    if argument is None or _DIGITS.fullmatch(argument) is None:
        return 0
    digits = argument.lstrip(b"0") or b"0"
    return MAX_DELTA_S if len(digits) > 10 else min(int(digits), MAX_DELTA_S)


def _shorter(known: int | None, argument: bytes | None) -> int:
    seconds = parse_delta_s(argument)
    return seconds if known is None else min(known, seconds)


def _field_names(argument: bytes) -> tuple[bytes, ...]:
    """The names in a qualified `no-cache` or `private`; none when one of them is no name: then it counts as unqualified."""
    names = tuple(name for part in argument.split(b",") if (name := part.strip(b" \t").lower()))
    return names if all(_FIELD_NAME.fullmatch(name) for name in names) else ()


def parse_response_directives(values: Sequence[bytes]) -> ResponseDirectives:
    """Reads all Cache-Control lines of a response together."""
    if not values:
        return NO_RESPONSE_DIRECTIVES
    durations: dict[bytes, int] = {}
    flags: set[bytes] = set()
    fields: dict[bytes, tuple[bytes, ...]] = {}
    try:
        for value in values:
            for name, argument in iterate_directives(value):
                if name in (b"max-age", b"s-maxage"):
                    seconds = parse_delta_s(argument)
                    durations[name] = seconds if durations.get(name, seconds) == seconds else 0
                elif name in (b"stale-while-revalidate", b"stale-if-error"):
                    durations[name] = _shorter(durations.get(name), argument)
                elif name in (b"no-cache", b"private") and argument is not None and _field_names(argument):
                    fields[name] = fields.get(name, ()) + _field_names(argument)
                else:
                    flags.add(name)  # also `no-store=x`: an argument where none belongs does not weaken it
    except MalformedField:
        return _MALFORMED_RESPONSE
    return ResponseDirectives(
        max_age_s=durations.get(b"max-age"),
        s_maxage_s=durations.get(b"s-maxage"),
        no_cache=b"no-cache" in flags,
        no_cache_fields=fields.get(b"no-cache", ()),
        no_store=b"no-store" in flags,
        private=b"private" in flags,
        private_fields=fields.get(b"private", ()),
        public=b"public" in flags,
        must_revalidate=b"must-revalidate" in flags,
        proxy_revalidate=b"proxy-revalidate" in flags,
        must_understand=b"must-understand" in flags,
        immutable=b"immutable" in flags,
        stale_while_revalidate_s=durations.get(b"stale-while-revalidate"),
        stale_if_error_s=durations.get(b"stale-if-error"),
    )


def parse_request_directives(values: Sequence[bytes], pragma: Sequence[bytes] = ()) -> RequestDirectives:
    """Reads all Cache-Control lines of a request; without any, `Pragma: no-cache` counts (RFC 9111 §5.4).

    A malformed field counts as `no-cache` and not as `no-store`: a visitor must not get past the shield by writing nonsense.
    """
    if not values:
        if any(part.strip(b" \t").lower() == b"no-cache" for line in pragma for part in line.split(b",")):
            return _MALFORMED_REQUEST
        return NO_REQUEST_DIRECTIVES
    max_age_s: int | None = None
    min_fresh_s = 0
    max_stale_s: int | None = None
    flags: set[bytes] = set()
    try:
        for value in values:
            for name, argument in iterate_directives(value):
                if name == b"max-age":
                    max_age_s = _shorter(max_age_s, argument)
                elif name == b"min-fresh":
                    # Not a number: as demanding as can be.
                    wanted = parse_delta_s(argument)
                    if not wanted and (argument is None or argument.strip(b"0")):
                        wanted = MAX_DELTA_S
                    min_fresh_s = max(min_fresh_s, wanted)
                elif name == b"max-stale":
                    # Without a number: any staleness (§5.2.1.2). Not a number: none.
                    accepted = MAX_DELTA_S if argument is None else parse_delta_s(argument)
                    max_stale_s = accepted if max_stale_s is None else min(max_stale_s, accepted)
                else:
                    flags.add(name)
    except MalformedField:
        return _MALFORMED_REQUEST
    return RequestDirectives(
        max_age_s=max_age_s,
        max_stale_s=max_stale_s or 0,
        min_fresh_s=min_fresh_s,
        no_cache=b"no-cache" in flags,
        no_store=b"no-store" in flags,
        only_if_cached=b"only-if-cached" in flags,
    )

"""Targeted Cache-Control fields (RFC 9213): what an origin says to this cache, or to caches like it, and to no others.

They are Structured Fields (RFC 9651) and read strictly: a field that breaks that grammar is as good as absent, and a directive
whose value is of the wrong type is left out. Off the hot path: once per head that holds such a field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgetun_exitnode.cache.directives import MAX_DELTA_S, MAX_FIELD_BYTES, ResponseDirectives

TARGETS: Final = (b"edgetun-cache-control", b"cdn-cache-control")
"""The target list (RFC 9213 §2.2), the closest first."""


def parse_targeted(found: Mapping[bytes, Sequence[bytes]]) -> ResponseDirectives | None:
    """The directives of the first field of the target list that is valid and not empty; None when there is none, so that
    `Cache-Control` and `Expires` count."""
    for name in TARGETS:
        values = found.get(name)
        if values:
            members = _parse_dictionary(b", ".join(values))
            if members:
                return _directives(members)
    return None


def _parse_dictionary(value: bytes) -> dict[str, Any] | None:
    if len(value) > MAX_FIELD_BYTES:
        return None
    import http_sf

    try:
        parsed = http_sf.parse(value, tltype="dictionary")
    except ValueError:  # the library's StructuredFieldError is one
        return None
    return parsed if isinstance(parsed, dict) else None


def _directives(members: dict[str, Any]) -> ResponseDirectives:
    def duration(name: str) -> int | None:
        value = _bare(members.get(name))
        if type(value) is not int or value < 0:
            return None
        return min(value, MAX_DELTA_S)

    def flag(name: str) -> bool:
        return _bare(members.get(name)) is True

    def named(name: str) -> bool | tuple[bytes, ...]:
        value = _bare(members.get(name))
        if isinstance(value, str) and (
            names := tuple(part.strip().lower() for part in value.split(",") if part.strip())
        ):
            return tuple(part.encode("ascii") for part in names)
        return value is True

    no_cache, private = named("no-cache"), named("private")
    return ResponseDirectives(
        max_age_s=duration("max-age"),
        s_maxage_s=duration("s-maxage"),
        no_cache=no_cache is True,
        no_cache_fields=no_cache if isinstance(no_cache, tuple) else (),
        no_store=flag("no-store"),
        private=private is True,
        private_fields=private if isinstance(private, tuple) else (),
        public=flag("public"),
        must_revalidate=flag("must-revalidate"),
        proxy_revalidate=flag("proxy-revalidate"),
        must_understand=flag("must-understand"),
        immutable=flag("immutable"),
        stale_while_revalidate_s=duration("stale-while-revalidate"),
        stale_if_error_s=duration("stale-if-error"),
    )


def _bare(member: Any) -> Any:
    """The value of a dictionary's member without its parameters, which mean nothing here."""
    return member[0] if isinstance(member, tuple) and len(member) == 2 else None

"""What the cache needs to know of a request, worked out once per request head and rule.

Heads are shared by all who send the same bytes, so a crowd costs one view.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.http.message import RequestHead
from edgetun_core.memo import WeighedMemo
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.directives import NO_REQUEST_DIRECTIVES, RequestDirectives, parse_request_directives
from edgetun_exitnode.cache.key import HEAD_SUFFIX, QueryFilter, Secondary, build_key, build_secondary
from edgetun_exitnode.cache.validators import ByteRange, Condition, parse_condition, parse_range

_REWRITES: Final = frozenset(
    {b"x-original-url", b"x-rewrite-url", b"x-http-method", b"x-http-method-override", b"x-method-override", b"x-host"}
)
"""Fields by which some origins take another target, method or host than the request's, which the key does not hold."""

_CONDITIONS_ANSWERED_HERE: Final = frozenset({b"if-none-match", b"if-modified-since", b"range", b"if-range"})
_MAX_BYTES: Final = 6 * 1024 * 1024
_MAX_ENTRY_BYTES: Final = 20 * 1024
_VIEW_BYTES: Final = 400

_SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})


class RequestView:
    """A request as the cache sees it. Immutable but for the secondary key, which is kept for the names last asked for.

    `bypass` says why the request passes untouched (a Cache-Status `fwd` reason), or is empty. `is_plain`: a GET that any
    fresh response answers as a whole. `directives` is None where the operator's override leaves them out of account.
    """

    __slots__ = (
        "_names",
        "_secondary",
        "bypass",
        "byte_range",
        "condition",
        "directives",
        "fetch_head",
        "head",
        "head_key",
        "is_head",
        "is_plain",
        "is_solo",
        "key",
        "may_validate",
        "owner",
        "wants_new",
    )

    def __init__(self, owner: object, head: RequestHead) -> None:
        self.owner = owner
        self.head = head
        self.key = b""
        self.head_key = b""
        self.bypass = b""
        self.is_plain = False
        self.is_solo = False
        """It carries Authorization: it shares nothing but what the origin gives to everyone (RFC 9111 §3.5)."""
        self.is_head = False
        self.directives: RequestDirectives | None = None
        self.wants_new = False
        """The visitor wants what the origin says now: a flight whose head has arrived is too old."""
        self.condition: Condition | None = None
        self.byte_range: ByteRange | None = None
        self.may_validate = False
        """A fetch for this request may ask the origin to confirm what is stored: a GET."""
        self.fetch_head = head
        """What is sent when this request leads a fetch for all: without conditions, which are answered here."""
        self._names: tuple[bytes, ...] = ()
        self._secondary: Secondary = ()

    def secondary(self, names: tuple[bytes, ...]) -> Secondary:
        """The secondary key for these names."""
        if names is self._names or names == self._names:
            return self._secondary
        self._names = names
        self._secondary = build_secondary(self.head, names)
        return self._secondary


def build_view(
    owner: object, head: RequestHead, rule: CacheRule, tenant: bytes, partition: bytes, query: QueryFilter
) -> RequestView:
    """Works out what the cache may do with a request without a body."""
    view = RequestView(owner, head)
    method = head.method
    if method not in (b"GET", b"HEAD"):
        view.bypass = b"bypass" if method in _SAFE else b"method"
        return view
    interesting = _interesting(head)
    is_override = rule.mode == "override"
    directives = NO_REQUEST_DIRECTIVES
    if b"cache-control" in interesting or b"pragma" in interesting:
        directives = parse_request_directives(interesting.get(b"cache-control", []), interesting.get(b"pragma", ()))
    if (
        (b"cookie" in interesting and not rule.allow_cookies)
        or head.protocol is not None
        or any(b"text/event-stream" in value.lower() for value in interesting.get(b"accept", ()))
        or (directives.no_store and not rule.ignore_no_store)
        # A request that went down this tunnel before would wait for itself; the next stage refuses it.
        or any(tenant in value for value in interesting.get(b"cdn-loop", ()))
        or not _REWRITES.isdisjoint(interesting)
        # For the origin alone to evaluate (RFC 9111 §4.3.2).
        or b"if-match" in interesting
        or b"if-unmodified-since" in interesting
    ):
        view.bypass = b"bypass"
        return view
    target = query.strip(head.target)
    key = build_key(tenant, head.scheme, head.authority, target, partition)
    if not key:
        view.bypass = b"bypass"
        return view
    view.is_solo = b"authorization" in interesting and not rule.allow_authorization
    view.key = key
    view.head_key = key + HEAD_SUFFIX
    view.is_head = method == b"HEAD"
    view.may_validate = not view.is_head
    if is_override:
        # A reload must not pierce the shield; `only-if-cached` never does.
        if directives.only_if_cached:
            view.directives = RequestDirectives(only_if_cached=True)
    elif directives != NO_REQUEST_DIRECTIVES:
        view.directives = directives
        view.wants_new = directives.no_cache or directives.max_age_s is not None or directives.min_fresh_s > 0
    if b"range" in interesting and not view.is_head:
        ranges = interesting[b"range"]
        wanted = parse_range(ranges[0], interesting.get(b"if-range", [])) if len(ranges) == 1 else None
        if wanted is None:
            view.bypass = b"bypass"
            return view
        view.byte_range = wanted if wanted != "too many" else None
    if b"if-none-match" in interesting or b"if-modified-since" in interesting:
        view.condition = parse_condition(
            interesting.get(b"if-none-match", []), interesting.get(b"if-modified-since", [])
        )
    if view.condition is not None or b"range" in interesting or b"if-range" in interesting:
        view.fetch_head = head.replace(
            fields=tuple(field for field in head.fields if field[0] not in _CONDITIONS_ANSWERED_HERE)
        )
    view.is_plain = (
        not view.is_head
        and not view.is_solo
        and view.directives is None
        and view.byte_range is None
        and view.condition is None
    )
    return view


class Views(WeighedMemo[RequestHead, RequestView]):
    """Views by request head, one memo per node; bounded in bytes, since visitors choose the heads.

    A head that comes once, or is beyond 4 KiB, is looked at anew.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_weigh, _MAX_BYTES, max_entry_bytes=_MAX_ENTRY_BYTES)

    def remember(self, view: RequestView) -> None:
        """Keeps a view, if its head comes again."""
        if view.head.recurs:
            self.put(view.head, view)


def _weigh(head: RequestHead, _view: RequestView) -> int:
    return _VIEW_BYTES + head.memory_bytes()


_INTERESTING: Final = frozenset(
    {
        b"accept", b"authorization", b"cache-control", b"cdn-loop", b"cookie", b"if-match", b"if-modified-since",
        b"if-none-match", b"if-range", b"if-unmodified-since", b"pragma", b"range", *_REWRITES,
    }
)  # fmt: skip


def _interesting(head: RequestHead) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in head.fields:
        if name in _INTERESTING:
            found.setdefault(name, []).append(value)
    return found

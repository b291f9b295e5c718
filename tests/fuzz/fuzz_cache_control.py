"""Hostile fields for the cache: Cache-Control, dates, conditions, ranges, Vary, Location. Nothing may raise, and no field may
talk the cache into storing what another field forbids."""

from __future__ import annotations

from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.dates import parse_http_date
from edgetun_exitnode.cache.directives import NO_REQUEST_DIRECTIVES, parse_request_directives, parse_response_directives
from edgetun_exitnode.cache.disk import decode_file
from edgetun_exitnode.cache.freshness import NotStorable, decide_storable
from edgetun_exitnode.cache.key import QueryFilter, build_invalidated_targets, build_key, build_secondary
from edgetun_exitnode.cache.parts import parse_content_range
from edgetun_exitnode.cache.targeted import parse_targeted
from edgetun_exitnode.cache.validators import parse_condition, parse_etag, parse_range
from edgetun_exitnode.cache.view import build_view
from support.cache import Bench

SEEDS = (
    b"max-age=10, public\nprivate=\"a, b\"\nno-cache=\"x",
    b"s-maxage=\"5\", stale-while-revalidate=10, stale-if-error=99999999999\nGET, accept-encoding",
    b"Sun, 06 Nov 1994 08:49:37 GMT\nSunday, 06-Nov-94 08:49:37 GMT\nSun Nov  6 08:49:37 1994",
    b"\"a\", W/\"b\",, \"c\"\nbytes=0-5\nbytes=-3\nbytes=5-",
    b"http://shop.test:80/a?b#c\n//other/x\n/../y?z=\xff\nhttp://[::1",
    b"no-store\nno-cache\nonly-if-cached, min-fresh=x, max-age=-1",
    b"max-age=60;a=1, no-store=?0\nprivate=\"a, b\"\nbytes 0-9/10\nbytes=0-1, 5-6,-2",
    b"*\naccept-encoding, Host\n x y \n123",
)  # fmt: skip

_RULES = (
    CacheRule(),
    CacheRule(mode="override", ttl_s=1.0, stale_while_revalidate_s=1.0, stale_if_error_s=1.0),
    CacheRule(mode="override", ttl_s=1.0, allow_set_cookie=True, ignore_query=("a", "utm_*")),
)
_RESPONSE_NAMES = (
    b"cache-control",
    b"expires",
    b"date",
    b"age",
    b"vary",
    b"content-length",
    b"etag",
    b"last-modified",
    b"pragma",
)
_REQUEST_NAMES = (b"cache-control", b"pragma", b"if-none-match", b"if-modified-since", b"range", b"if-range", b"accept")


def _forbids(line: bytes) -> bool:
    """A plain reading of one line: with no quotes in it, a list member is what stands between commas."""
    return b'"' not in line and any(
        part.strip(b" \t").lower() in (b"no-store", b"private") for part in line.split(b",")
    )


def fuzz(data: bytes) -> None:
    """Lines of the data become values of fields, in turn."""
    lines = data.split(b"\n")
    parse_response_directives(lines)
    parse_request_directives(lines[:2], lines[2:])
    parse_condition(lines[:1], lines[1:2])
    parse_targeted({b"cdn-cache-control": lines[:3], b"edgetun-cache-control": lines[3:4]})
    parse_content_range(lines[:1])
    assert decode_file(data, 100) is None or data.startswith(b"edgetun-cache-1")
    for line in lines[:8]:
        parse_http_date(line)
        parse_etag(line)
        parse_range(line, lines[:1])
    turn = data[0] if data else 0
    response = ResponseHead(
        200, tuple((_RESPONSE_NAMES[(turn + number) % len(_RESPONSE_NAMES)], line) for number, line in enumerate(lines))
    )
    fields = tuple((_REQUEST_NAMES[(turn + number) % len(_REQUEST_NAMES)], line) for number, line in enumerate(lines))
    target = b"/" + lines[0]
    request = RequestHead(b"GET", b"http", b"shop.test", target, fields)
    build_invalidated_targets(request, lines)
    build_secondary(request, _REQUEST_NAMES)
    forbidden = any(_forbids(value) for value in response.get_all(b"cache-control"))
    for rule in _RULES:
        query = QueryFilter(rule.ignore_query)
        key = build_key(b"t", b"http", b"shop.test", query.strip(target))
        assert (b"\0" in target) == (key == b"")
        build_view(None, request, rule, b"t", b"", query)
        verdict = decide_storable(
            rule, request, NO_REQUEST_DIRECTIVES, response, requested_at=0.0, received_at=1.0, wall_s=1_700_000_000.0
        )
        assert not forbidden or isinstance(verdict, NotStorable)
        _serve(rule, request, response)


def _serve(rule: CacheRule, request: RequestHead, response: ResponseHead) -> None:
    """A visitor with such a request and a plain one, an origin with such a response: both are answered, nothing is left."""
    bench = Bench(rule)
    bench.origin.script = lambda exchange: exchange.answer(b"0123456789", *response.fields)
    for head in (request, RequestHead(b"GET", b"http", b"shop.test", request.target, ()), request):
        guest = bench.send(head)
        assert guest.is_complete or guest.error is not None
        assert not guest.is_complete or guest.body in b"0123456789"
    bench.check_nothing_left()

"""Purging by URL, prefix, tag and tunnel."""

from __future__ import annotations

import pytest

from edgetun_core.errors import ConfigError
from edgetun_core.purge import PurgeOrder, PurgeReport, decode_order
from edgetun_core.snapshot import CacheRule, RouteRule, TunnelRule
from edgetun_exitnode.cache.purge import purge
from edgetun_exitnode.cache.store import MAX_TAGS, response_tags
from support.cache import Bench

TUNNEL = TunnelRule(
    "team/shop", ("shop.test", "*.shop.test"), (), (RouteRule(cache=CacheRule(ignore_query=("utm_*",))),)
)


def find(host: bytes) -> TunnelRule | None:
    return TUNNEL if host == b"shop.test" or host.endswith(b".shop.test") else None


@pytest.fixture
def bench() -> Bench:
    bench = Bench(CacheRule(mode="override", ttl_s=3600.0, ignore_query=("utm_*",)))
    bench.origin.script = lambda exchange: exchange.answer(
        b"x",
        *(
            [(b"surrogate-key", b"all shoes")]
            if exchange.head.target.startswith(b"/shoes")
            else [(b"cache-tag", b"hats,  all")]
        ),
    )
    return bench


def fill(bench: Bench, *targets: bytes, authority: bytes = b"shop.test", scheme: bytes = b"http") -> None:
    for target in targets:
        bench.ask(target, authority=authority, scheme=scheme)


def do(bench: Bench, **what) -> PurgeReport:
    return purge(bench.store, PurgeOrder(**what), find, bench.time.now)


def is_stored(bench: Bench, target: bytes, **more) -> bool:
    before = len(bench.origin)
    bench.ask(target, **more)
    return len(bench.origin) == before


def test_a_url_is_purged_with_both_schemes_all_variants_and_nothing_beside_it(bench):
    fill(bench, b"/shoes", b"/shoes?a=1", b"/shoes/red")
    fill(bench, b"/shoes", scheme=b"https")
    bench.ask(b"/shoes", method=b"HEAD")
    assert do(bench, urls=("https://shop.test/shoes",)) == PurgeReport(2)
    assert is_stored(bench, b"/shoes?a=1")
    assert is_stored(bench, b"/shoes/red")
    assert not is_stored(bench, b"/shoes")


def test_a_url_is_purged_as_it_is_keyed(bench):
    """Ignored parameters, default ports, capital hosts and a missing path."""
    fill(bench, b"/", b"/shoes")
    fill(bench, b"/", authority=b"shop.test:8080")
    assert do(bench, urls=("http://SHOP.test:80/shoes?utm_source=x",)).purged == 1
    assert do(bench, urls=("http://shop.test",)).purged == 1
    bench.time.advance(0.1)
    fill(bench, b"/")
    assert do(bench, urls=("http://shop.test:8080/",)).purged == 2, "the port and none"


def test_a_prefix_is_purged_below_it_and_on_its_host_only(bench):
    fill(bench, b"/shoes", b"/shoes/red", b"/shoes?a", b"/hats")
    fill(bench, b"/shoes", authority=b"eu.shop.test")
    assert do(bench, prefixes=("http://shop.test/shoes",)).purged == 3
    assert is_stored(bench, b"/hats")
    assert is_stored(bench, b"/shoes", authority=b"eu.shop.test")


def test_a_tag_purges_what_the_origin_tagged(bench):
    fill(bench, b"/shoes", b"/hats", b"/shoes/red")
    assert do(bench, tunnel="team/shop", tags=("shoes",)).purged == 2
    assert is_stored(bench, b"/hats")
    assert do(bench, tunnel="team/shop", tags=("all", "nothing")).purged == 1
    assert do(bench, tunnel="team/shop", tags=("all",)).purged == 0


def test_a_tag_that_comes_with_a_304_is_known_and_one_that_goes_is_forgotten():
    bench = Bench(CacheRule())
    bench.ask()
    bench.origin[0].answer(b"x", (b"etag", b'"1"'), (b"cache-control", b"max-age=1"), (b"cache-tag", b"old"))
    bench.time.advance(1.0)
    bench.ask()
    bench.origin[1].answer_head(304, ((b"etag", b'"1"'), (b"cache-tag", b"new")), end=True)
    assert do(bench, tunnel="team/shop", tags=("old",)).purged == 0
    assert do(bench, tunnel="team/shop", tags=("new",)).purged == 1


def test_everything_of_a_tunnel_is_purged_and_nothing_of_another(bench):
    other = Bench(bench.rule, store=bench.store, tenant="team/other", time=bench.time)
    other.ask()
    other.origin[0].answer(b"y")
    fill(bench, b"/shoes", b"/hats")
    assert do(bench, tunnel="team/shop", everything=True).purged == 2
    assert other.ask().body == b"y"


def test_what_is_on_its_way_while_something_is_purged_is_not_stored():
    bench = Bench()
    guest = bench.ask(b"/slow")
    bench.time.advance(0.1)
    do(bench, urls=("http://shop.test/slow",))
    bench.time.advance(0.1)
    late = bench.ask(b"/slow")
    assert len(bench.origin) == 2, "who asks after the purge does not get what was asked for before"
    bench.origin[0].answer(b"old")
    assert guest.body == b"old"
    bench.origin[1].answer(b"new")
    assert late.body == bench.ask(b"/slow").body == b"new"


def test_a_host_of_no_tunnel_is_a_problem_and_the_rest_is_done(bench):
    fill(bench, b"/hats")
    report = do(bench, urls=("http://other.test/", "http://shop.test/hats", "http://[::1"))
    assert report.purged == 1
    assert len(report.problems) == 2
    assert "no tunnel" in report.problems[0]
    assert do(bench, tunnel="team/other", urls=("http://shop.test/",)).problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{}", "nothing to purge"),
        (b'{"tags": ["a"]}', "--tunnel"),
        (b'{"everything": true}', "--tunnel"),
        (b'{"urls": ["/page"]}', "is not a URL"),
        (b'{"urls": ["http://a/\\u0000"]}', "is not a URL"),
        (b'{"url": "http://a/"}', "no purge order"),
        (b"[" * 100_000, "no purge order"),
        (b'{"prefixes": [' + b",".join([b'"http://a/"'] * 1001) + b"]}", "at most 1000"),
    ],
)
def test_an_order_that_says_too_little_or_nonsense_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        decode_order(text)


def test_tags_are_bounded_and_those_of_both_fields_count():
    fields = ((b"surrogate-key", b" ".join(b"k%d" % i for i in range(200))), (b"cache-tag", b"x"))
    assert len(response_tags(fields)) == MAX_TAGS
    assert response_tags(((b"surrogate-key", b"a  b"), (b"cache-tag", b"c d, a,"))) == (b"a", b"b", b"c d")
    assert response_tags(((b"cache-tag", b"x" * 2000),)) == ()

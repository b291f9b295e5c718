"""Two caches in a row: what the node that owns a key says of a response bounds what the visitor's node does with it."""

from __future__ import annotations

import pytest

from edgetun_core.http.message import RequestHead
from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.directives import NO_REQUEST_DIRECTIVES
from edgetun_exitnode.cache.freshness import NotStorable, Storable, Told, decide_storable
from edgetun_exitnode.mesh.ownership import _Telling
from edgetun_exitnode.pipeline.relaying import take_told
from support.cache import PEER, WALL_S, Bench, Guest

OVERRIDE = CacheRule(mode="override", ttl_s=1.0)
TAG = (b"etag", b'"1"')


def told_by(owner: Bench) -> tuple[Told | None, Guest]:
    guest = Guest()
    head = RequestHead(b"GET", b"http", b"shop.test", b"/", ())
    owner.stage.open(head, PEER, True, _Telling(guest, owner.time))
    assert guest.head is not None
    return take_told(guest.head)[0], guest


def at_the_other(rule: CacheRule, guest: Guest, told: Told | None, now: float = 1000.0) -> Storable | NotStorable:
    """What the visitor's node makes of it."""
    assert guest.head is not None
    return decide_storable(
        rule,
        RequestHead(b"GET", b"http", b"shop.test", b"/", ()),
        NO_REQUEST_DIRECTIVES,
        take_told(guest.head)[1],
        requested_at=now,
        received_at=now,
        wall_s=WALL_S,
        told=told,
    )


def test_what_is_left_at_the_owner_is_what_is_left_at_the_visitors_node():
    owner = Bench(OVERRIDE)
    owner.origin.script = lambda exchange: exchange.answer(b"x", TAG)
    owner.ask()
    owner.time.advance(0.75)
    told, guest = told_by(owner)
    assert told is not None
    assert told.fresh_s == pytest.approx(0.25, abs=0.001)
    verdict = at_the_other(OVERRIDE, guest, told)
    assert isinstance(verdict, Storable)
    assert verdict.timing.fresh_until - 1000.0 == pytest.approx(0.25, abs=0.001), "and not another second"


@pytest.mark.parametrize("word", [b"no-cache", b"max-age=0", b"s-maxage=0"])
def test_what_must_be_validated_each_time_is_validated_at_both(word):
    owner = Bench(CacheRule(stale_if_error_s=60.0))
    owner.origin.script = lambda exchange: exchange.answer(b"x", TAG, (b"cache-control", word))
    told, guest = told_by(owner)
    assert told is not None
    assert told.fresh_s == 0
    verdict = at_the_other(CacheRule(), guest, told)
    assert isinstance(verdict, Storable)
    assert not verdict.is_shareable


def test_what_is_stale_at_the_owner_and_allowed_is_used_for_a_second_and_not_asked_for_at_once():
    owner = Bench(CacheRule(mode="override", ttl_s=1.0, stale_while_revalidate_s=60.0))
    owner.origin.script = lambda exchange: exchange.answer(b"x", TAG)
    owner.ask()
    owner.origin.script = None
    owner.time.advance(2.0)
    told, guest = told_by(owner)
    assert guest.cache_status.endswith(b"stale-while-revalidate")
    assert told is not None
    assert told.fresh_s == 1.0


@pytest.mark.parametrize("left_s", [0.0003, 0.0, -0.01], ids=["hardly fresh", "just over", "over"])
def test_what_is_asked_for_as_its_time_ends_is_shared_and_asked_for_again_at_once(left_s: float):
    owner = Bench(OVERRIDE)
    owner.ask()
    owner.origin[0].answer_head(200, ((b"content-length", b"2"),))
    owner.origin[0].send(b"x")
    owner.time.advance(1.0 - left_s)
    told, guest = told_by(owner)
    assert len(owner.origin) == 1, "it joined what is still coming in"
    assert told is not None
    assert told.fresh_s == 0.001
    verdict = at_the_other(OVERRIDE, guest, told)
    assert isinstance(verdict, Storable), "each visitor would go alone, and be remembered for it"
    assert verdict.is_shareable

"""The collapser, as conversations. Each test's name is the promise."""

from __future__ import annotations

import pytest

from edgetun_exitnode.cache.collapse import (
    AskAgain,
    Asked,
    BrokeAfterHead,
    Cancel,
    Coordinator,
    Ended,
    Fail,
    FailedBeforeHead,
    Fetch,
    FillAlone,
    FillTimeOver,
    FoundStorable,
    GoAlone,
    HeadNotStorable,
    HeadStorable,
    Left,
    Outgrew,
    Refresh,
    Satisfied,
    ServeStale,
    Stream,
    TimePassed,
    Wait,
)

LATER = 1000.0


@pytest.fixture
def collapser() -> Coordinator:
    return Coordinator(patience_s=30.0)


def asked_by(collapser: Coordinator, *visitors: int, now: float = 0.0, key: str = "k") -> None:
    for visitor in visitors:
        collapser.handle(Asked(key, visitor), now)


def test_the_first_fetches_and_the_others_wait(collapser):
    assert collapser.handle(Asked("k", 1), now=0) == [Fetch(1, "k", 1)]
    assert collapser.handle(Asked("k", 2), now=0) == [Wait(1, 2)]
    assert collapser.handle(Asked("k", 3), now=9) == [Wait(1, 3)]
    assert collapser.handle(Asked("other", 4), now=9) == [Fetch(2, "other", 4)]


def test_a_storable_head_streams_to_everyone_from_the_first_byte(collapser):
    asked_by(collapser, 1, 2, 3)
    assert collapser.handle(HeadStorable(1, "k", LATER), now=1) == [Stream(1, (1, 2, 3))]


def test_who_comes_while_the_body_is_coming_in_joins_it(collapser):
    asked_by(collapser, 1)
    collapser.handle(HeadStorable(1, "k", joinable_until=2), now=1)
    assert collapser.handle(Asked("k", 2), now=1.9) == [Stream(1, (2,))]


def test_who_comes_when_the_body_coming_in_is_stale_starts_another_fetch(collapser):
    asked_by(collapser, 1)
    collapser.handle(HeadStorable(1, "k", joinable_until=2), now=1)
    assert collapser.handle(Asked("k", 2), now=2.0) == [Fetch(2, "k", 2)]
    assert collapser.handle(Asked("k", 3), now=2.0) == [Wait(2, 3)]
    assert collapser.handle(Ended(1), now=3) == []
    assert collapser.handle(Asked("k", 4), now=3.0) == [Wait(2, 4)]


def test_a_head_that_is_not_storable_releases_all_followers_at_once_and_the_leader_keeps_it(collapser):
    asked_by(collapser, 1, 2, 3)
    assert collapser.handle(HeadNotStorable(1, 120), now=1) == [Stream(1, (1,)), GoAlone((2, 3))]


def test_a_key_that_was_not_storable_is_not_collapsed_for_a_while_and_then_tried_again(collapser):
    asked_by(collapser, 1)
    collapser.handle(HeadNotStorable(1, 120), now=1)
    collapser.handle(Ended(1), now=1)
    assert collapser.handle(Asked("k", 2), now=2) == [GoAlone((2,), remembered=True)]
    assert collapser.goes_alone("k", now=120.9)
    assert not collapser.goes_alone("k", now=121)
    assert collapser.handle(Asked("k", 3), now=121) == [Fetch(2, "k", 3)]
    assert collapser.handle(Asked("k", 4), now=121) == [Wait(2, 4)]


def test_a_storable_response_ends_not_collapsing_early(collapser):
    asked_by(collapser, 1)
    collapser.handle(HeadNotStorable(1, 120), now=1)
    collapser.handle(FoundStorable("k"), now=2)
    assert collapser.handle(Asked("k", 2), now=2) == [Fetch(2, "k", 2)]


def test_the_memory_of_keys_not_collapsed_is_bounded(collapser):
    for number in range(50_000):
        collapser.handle(Asked(number, "visitor"), now=0)
        collapser.handle(HeadNotStorable(number + 1, 120), now=0)
        collapser.handle(Ended(number + 1), now=0)
    assert len(collapser._not_collapsible) <= 2 * 4096
    assert len(collapser) == 0


def test_followers_with_another_secondary_key_ask_again_with_the_full_key(collapser):
    asked_by(collapser, 1, 2, 3, 4)
    effects = collapser.handle(HeadStorable(1, "k+gzip", LATER, differing=(2, 4)), now=1)
    assert effects == [Stream(1, (1, 3)), AskAgain((2, 4))]
    assert collapser.handle(Asked("k+br", 2), now=1) == [Fetch(2, "k+br", 2)]
    assert collapser.handle(Asked("k+br", 4), now=1) == [Wait(2, 4)]
    assert collapser.handle(Asked("k+gzip", 5), now=1) == [Stream(1, (5,))]


def test_the_leader_leaving_does_not_cancel_the_fetch_while_a_follower_waits(collapser):
    asked_by(collapser, 1, 2)
    assert collapser.handle(Left(1, 1), now=1) == []
    assert collapser.handle(Asked("k", 3), now=1) == [Wait(1, 3)]
    assert collapser.handle(Left(1, 2), now=2) == []
    assert collapser.handle(Left(1, 3), now=2) == [Cancel(1)]
    assert collapser.handle(Asked("k", 4), now=2) == [Fetch(2, "k", 4)]


def test_the_last_one_leaving_cancels_the_fetch_also_within_the_body(collapser):
    asked_by(collapser, 1, 2)
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    assert collapser.handle(Left(1, 2), now=1) == []
    assert collapser.handle(Left(1, 1), now=1) == [Cancel(1)]
    assert len(collapser) == 0


def test_the_leader_gone_before_a_head_that_is_not_storable_leaves_nobody_to_give_it_to(collapser):
    asked_by(collapser, 1, 2)
    collapser.handle(Left(1, 1), now=0)
    assert collapser.handle(HeadNotStorable(1, 120), now=1) == [Cancel(1), GoAlone((2,))]


def test_an_origin_that_fails_before_the_head_is_asked_once_more_for_everyone_who_waits(collapser):
    asked_by(collapser, 1, 2, 3)
    assert collapser.handle(FailedBeforeHead(1), now=1) == [Fail((1,)), Fetch(1, "k", 2)]
    assert collapser.handle(Asked("k", 4), now=1) == [Wait(1, 4)]
    assert collapser.handle(HeadStorable(1, "k", LATER), now=2) == [Stream(1, (2, 3, 4))]


def test_a_dead_origin_is_asked_twice_and_not_once_per_visitor(collapser):
    asked_by(collapser, *range(1000))
    [failed, fetch] = collapser.handle(FailedBeforeHead(1), now=1)
    assert (failed, fetch) == (Fail((0,)), Fetch(1, "k", 1))
    assert collapser.handle(FailedBeforeHead(1), now=2) == [Fail(tuple(range(1, 1000)))]
    assert len(collapser) == 0


def test_a_follower_is_promoted_also_when_the_leader_left_before_the_failure(collapser):
    asked_by(collapser, 1, 2)
    collapser.handle(Left(1, 1), now=0)
    assert collapser.handle(FailedBeforeHead(1), now=1) == [Fetch(1, "k", 2)]


def test_a_lone_leader_gets_the_error(collapser):
    asked_by(collapser, 1)
    assert collapser.handle(FailedBeforeHead(1), now=1) == [Fail((1,))]
    assert len(collapser) == 0


def test_who_cannot_lead_is_never_promoted(collapser):
    asked_by(collapser, 1)
    collapser.handle(Asked("k", "a range", may_lead=False), now=0)
    asked_by(collapser, 2)
    assert collapser.handle(FailedBeforeHead(1), now=1) == [Fail((1,)), Fetch(1, "k", 2)]
    assert collapser.handle(FailedBeforeHead(1), now=1) == [Fail(("a range", 2))]
    collapser.handle(Asked("k", 3), now=2)
    collapser.handle(Asked("k", "a range", may_lead=False), now=2)
    assert collapser.handle(FailedBeforeHead(2), now=3) == [Fail((3, "a range"))]


def test_who_cannot_lead_goes_alone_when_there_is_nothing_to_join(collapser):
    assert collapser.handle(Asked("k", 1, may_lead=False), now=0) == [GoAlone((1,))]
    assert len(collapser) == 0


def test_stale_is_served_to_everyone_where_it_is_allowed(collapser):
    asked_by(collapser, 1, 2)
    assert collapser.handle(FailedBeforeHead(1, stale_allowed=True), now=1) == [ServeStale((1, 2))]
    assert len(collapser) == 0


def test_a_body_that_breaks_off_is_aborted_for_everyone(collapser):
    asked_by(collapser, 1, 2)
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    assert collapser.handle(BrokeAfterHead(1), now=2) == [Fail((1, 2))]
    assert collapser.handle(Asked("k", 3), now=2) == [Fetch(2, "k", 3)]


def test_a_followers_patience_ends_and_the_leaders_does_not(collapser):
    asked_by(collapser, 1, now=0)
    assert collapser.next_timer(1) is None
    asked_by(collapser, 2, now=5)
    asked_by(collapser, 3, now=6)
    assert collapser.next_timer(1) == 35
    assert collapser.handle(TimePassed(1), now=34.9) == []
    assert collapser.handle(TimePassed(1), now=35) == [GoAlone((2,))]
    assert collapser.next_timer(1) == 36
    assert collapser.handle(HeadStorable(1, "k", LATER), now=35.5) == [Stream(1, (1, 3))]
    assert collapser.next_timer(1) is None
    assert collapser.handle(TimePassed(1), now=99) == []


def test_the_last_followers_patience_ending_after_the_leader_left_cancels_the_fetch(collapser):
    asked_by(collapser, 1, 2)
    collapser.handle(Left(1, 1), now=1)
    assert collapser.handle(TimePassed(1), now=30) == [Cancel(1), GoAlone((2,))]


def test_exactly_one_refresh_runs_in_the_background(collapser):
    assert collapser.handle(Refresh("k"), now=0) == [Fetch(1, "k", None)]
    assert collapser.handle(Refresh("k"), now=0) == []
    assert collapser.handle(HeadStorable(1, "k", LATER), now=1) == [FillAlone(1)]
    assert collapser.handle(Refresh("k"), now=1) == []
    assert collapser.handle(Ended(1), now=2) == []
    assert collapser.handle(Refresh("k"), now=2) == [Fetch(2, "k", None)]


def test_no_refresh_is_started_beside_a_fetch(collapser):
    asked_by(collapser, 1)
    assert collapser.handle(Refresh("k"), now=0) == []


def test_a_refresh_can_be_joined_and_is_not_cancelled_by_who_leaves(collapser):
    collapser.handle(Refresh("k"), now=0)
    assert collapser.handle(Asked("k", 1), now=0) == [Wait(1, 1)]
    assert collapser.handle(Left(1, 1), now=0) == []
    assert len(collapser) == 1


def test_a_refresh_that_fails_fails_nobody_and_promotes_who_waits(collapser):
    collapser.handle(Refresh("k"), now=0)
    assert collapser.handle(FailedBeforeHead(1), now=1) == []
    collapser.handle(Refresh("k"), now=1)
    asked_by(collapser, 1, now=1)
    assert collapser.handle(FailedBeforeHead(2), now=2) == [Fetch(2, "k", 1)]
    assert collapser.handle(Left(2, 1), now=2) == [Cancel(2)]


def test_a_refresh_that_is_not_storable_is_cancelled(collapser):
    collapser.handle(Refresh("k"), now=0)
    assert collapser.handle(HeadNotStorable(1, 120), now=1) == [Cancel(1)]


def test_who_is_satisfied_by_the_head_does_not_cancel_the_body(collapser):
    asked_by(collapser, 1, 2)
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    assert collapser.handle(Satisfied(1, 1), now=1) == []
    assert collapser.handle(Satisfied(1, 2), now=1) == [FillAlone(1)]
    assert collapser.handle(Asked("k", 3), now=1) == [Stream(1, (3,))]
    assert collapser.handle(Left(1, 3), now=1) == []


def test_a_body_that_nobody_reads_has_a_deadline(collapser):
    asked_by(collapser, 1)
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    collapser.handle(Satisfied(1, 1), now=1)
    assert collapser.handle(FillTimeOver(1), now=31) == [Cancel(1)]


def test_at_the_deadline_of_a_fill_who_reads_by_then_keeps_it_and_cancels_it_by_leaving(collapser):
    asked_by(collapser, 1)
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    collapser.handle(Satisfied(1, 1), now=1)
    collapser.handle(Asked("k", 2), now=2)
    assert collapser.handle(FillTimeOver(1), now=31) == []
    assert collapser.handle(Left(1, 2), now=32) == [Cancel(1)]


def test_a_body_that_outgrew_the_bound_is_joined_by_nobody_and_goes_on_for_its_readers(collapser):
    asked_by(collapser, 1, 2)
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    assert collapser.handle(Outgrew(1, 120), now=2) == []
    assert collapser.handle(Asked("k", 3), now=3) == [GoAlone((3,), remembered=True)]
    assert collapser.handle(Left(1, 1), now=4) == []
    assert collapser.handle(Left(1, 2), now=4) == [Cancel(1)]


def test_a_fill_that_outgrew_the_bound_is_cancelled(collapser):
    asked_by(collapser, 1)
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    collapser.handle(Satisfied(1, 1), now=1)
    assert collapser.handle(Outgrew(1, 120), now=2) == [Cancel(1)]


def test_who_comes_after_an_invalidation_does_not_join_an_older_fetch(collapser):
    asked_by(collapser, 1, now=0)
    assert collapser.handle(Asked("k", 2, newer_than=1.0), now=2) == [Fetch(2, "k", 2)]
    assert collapser.handle(Asked("k", 3, newer_than=1.0), now=2) == [Wait(2, 3)]
    assert collapser.handle(Refresh("k", newer_than=1.0), now=2) == []
    assert collapser.handle(HeadStorable(1, "k", LATER), now=3) == [Stream(1, (1,))]
    assert collapser.handle(Ended(1), now=3) == []
    assert collapser.handle(Asked("k", 4, newer_than=1.0), now=3) == [Wait(2, 4)]


def test_who_wants_what_the_origin_says_now_joins_only_before_the_head(collapser):
    asked_by(collapser, 1)
    assert collapser.handle(Asked("k", 2, may_join_late=False), now=0) == [Wait(1, 2)]
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    assert collapser.handle(Asked("k", 3, may_join_late=False), now=1) == [Fetch(2, "k", 3)]


def test_events_of_a_flight_that_is_over_do_nothing(collapser):
    asked_by(collapser, 1)
    collapser.handle(HeadStorable(1, "k", LATER), now=1)
    collapser.handle(Ended(1), now=1)
    for event in (
        Left(1, 1), Satisfied(1, 1), HeadStorable(1, "k", LATER), HeadNotStorable(1, 9), FailedBeforeHead(1),
        BrokeAfterHead(1), Outgrew(1, 9), Ended(1), TimePassed(1), FillTimeOver(1),
    ):  # fmt: skip
        assert collapser.handle(event, now=2) == []

from edgetun_agent.endpoints import (
    FAILURES_TO_LOOK_ELSEWHERE,
    LOOK_AGAIN_MOST_S,
    LOOK_AGAIN_S,
    Failures,
    decide_crowded,
    decide_endpoint,
)
from edgetun_core.enrollment import Endpoint

A, B, C = (Endpoint(name, 443, 443) for name in ("a", "b", "c"))


def test_the_first_session_goes_to_the_best_and_the_second_elsewhere() -> None:
    assert decide_endpoint((A, B, C), (), {}, ()) == A
    assert decide_endpoint((A, B, C), (A,), {}, ()) == B


def test_a_single_endpoint_gets_all_sessions() -> None:
    assert decide_endpoint((A,), (A,), {A: 10}, (A,)) == A


def test_one_failure_is_tried_again_and_two_lead_to_a_second_session_where_it_works() -> None:
    assert decide_endpoint((A, B), (A,), {B: 1}, ()) == B
    assert decide_endpoint((A, B), (A,), {B: FAILURES_TO_LOOK_ELSEWHERE}, ()) == A


def test_what_drains_is_the_last_choice() -> None:
    assert decide_endpoint((A, B), (B,), {}, (A,)) == B
    assert decide_endpoint((A, B), (B,), {B: 1}, (A,)) == B


def test_when_none_works_they_are_tried_in_turn() -> None:
    assert decide_endpoint((A, B), (), {A: 5, B: 4}, ()) == B


def test_a_session_beside_another_goes_to_an_exit_node_that_came_later_and_works() -> None:
    assert decide_crowded((A, B), (A, A), {}, ()) == A
    assert decide_crowded((A, B), (A, B), {}, ()) is None
    assert decide_crowded((A,), (A, A), {}, ()) is None
    assert decide_crowded((A, B), (A, A), {B: 1}, ()) is None, "one that cannot be reached is not worth leaving for"
    assert decide_crowded((A, B), (A, A), {}, (B,)) is None, "nor one that is going away"
    assert decide_crowded((A, B, C), (B, B), {A: 1}, ()) == B


def test_failures_are_counted_until_a_session_opens() -> None:
    failures = Failures()
    failures.failed(A, 0.0)
    failures.failed(A, 1.0)
    failures.failed(B, 1.0)
    assert failures.counts(2.0) == {A: 2, B: 1}
    failures.opened(A)
    assert failures.counts(2.0) == {B: 1}


def test_what_is_withdrawn_and_offered_anew_has_a_clean_record() -> None:
    failures = Failures()
    failures.failed(A, 0.0)
    failures.failed(B, 0.0)
    failures.offered((A, B), (A, B, C))
    assert failures.counts(1.0) == {A: 1, B: 1}, "the same offer again says nothing new"
    failures.offered((A, B), (B,))
    assert failures.counts(1.0) == {B: 1}
    failures.failed(A, 1.0)  # an attempt that was under way
    failures.offered((B,), (A, B))
    assert failures.counts(1.0) == {B: 1}


def test_a_failure_is_set_aside_after_a_while_and_later_with_every_further_one() -> None:
    failures = Failures()
    now = 0.0
    for count, wait_s in enumerate((LOOK_AGAIN_S, 2 * LOOK_AGAIN_S, 4 * LOOK_AGAIN_S), 1):
        failures.failed(A, now)
        assert failures.counts(now + wait_s - 1) == {A: count}
        assert failures.next_change(now) == now + wait_s
        now += wait_s
        assert failures.counts(now) == {}
        assert failures.next_change(now) is None
    for _ in range(50):
        failures.failed(A, now)
    assert failures.next_change(now) == now + LOOK_AGAIN_MOST_S


def test_the_spare_region_is_for_the_last_session_and_for_the_others_when_nothing_else_works() -> None:
    spare = Endpoint("spare", 1, 1, spare=True)
    assert decide_endpoint((A, B, spare), (), {}, ()) == A
    assert decide_endpoint((A, spare), (A,), {}, ()) == A, (
        "two sessions at one node before one too many in the spare region"
    )
    assert decide_endpoint((A, B, spare), (A,), {}, (), wants_spare=True) == spare
    assert decide_endpoint((A, spare), (spare,), {A: FAILURES_TO_LOOK_ELSEWHERE}, ()) == spare
    assert decide_endpoint((A, B, spare), (A,), {spare: FAILURES_TO_LOOK_ELSEWHERE}, (), wants_spare=True) == B
    assert decide_endpoint((A, spare), (A,), {}, (spare,), wants_spare=True) == A

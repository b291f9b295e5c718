from edgetun_agent.endpoints import FAILURES_TO_LOOK_ELSEWHERE, decide_crowded, decide_endpoint
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
    assert decide_crowded((A, B), (A, A), {}) == A
    assert decide_crowded((A, B), (A, B), {}) is None
    assert decide_crowded((A,), (A, A), {}) is None
    assert decide_crowded((A, B), (A, A), {B: 1}) is None, "one that cannot be reached is not worth leaving for"
    assert decide_crowded((A, B, C), (B, B), {A: 1}) == B

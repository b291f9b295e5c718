import random

from hypothesis import given
from hypothesis import strategies as st

from edgetun_agent.backoff import (
    AWAY_LEAST_S,
    AWAY_SHARE,
    FIRST_BOUND_S,
    MOST_S,
    REFUSED_LEAST_S,
    REFUSED_MOST_S,
    STABLE_S,
    Backoff,
    decide_away_delay_s,
    decide_delay_s,
    decide_drained_delay_s,
    decide_refused_delay_s,
)

attempts = st.integers(min_value=0, max_value=10_000)
chances = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(attempts, chances)
def test_a_delay_is_never_longer_than_thirty_seconds_nor_than_its_attempts_bound(attempt: int, chance: float) -> None:
    delay = decide_delay_s(attempt, chance)
    assert 0 <= delay <= MOST_S
    assert delay <= FIRST_BOUND_S * 2 ** min(max(0, attempt - 1), 20)


@given(attempts)
def test_the_jitter_is_full(attempt: int) -> None:
    assert decide_delay_s(attempt, 0.0) == 0
    assert decide_delay_s(attempt, 0.25) == decide_delay_s(attempt, 0.5) / 2


def test_a_thousand_agents_do_not_come_back_together() -> None:
    rng = random.Random(7)
    delays = [decide_delay_s(5, rng.random()) for _ in range(1000)]
    busiest = max(sum(1 for delay in delays if start <= delay < start + 0.4) for start in range(4))
    assert busiest < 200, "a tenth of the interval should hold about a tenth of them"


@given(attempts, chances)
def test_a_refusal_for_good_is_retried_slowly_but_retried(attempt: int, chance: float) -> None:
    assert REFUSED_LEAST_S / 2 <= decide_refused_delay_s(attempt, -1.0, chance) <= REFUSED_MOST_S


@given(attempts, chances, st.floats(min_value=0.001, max_value=1e6))
def test_an_exit_node_that_names_a_time_is_given_it_within_reason(attempt: int, chance: float, asked: float) -> None:
    delay = decide_refused_delay_s(attempt, asked, chance)
    assert min(asked, REFUSED_MOST_S) <= delay <= 1.5 * min(asked, REFUSED_MOST_S)


def test_a_stable_minute_forgets_the_failures_before_it() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.failed(0.5)
    backoff.opened(100.0)
    assert backoff.lost(100.0 + STABLE_S, 0.5) == FIRST_BOUND_S / 2


def test_a_session_that_dies_young_keeps_the_failures_before_it() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.failed(0.5)
    backoff.opened(100.0)
    assert backoff.lost(100.0 + STABLE_S - 1, 0.5) == MOST_S / 2


@given(st.floats(min_value=0, max_value=1e7), chances)
def test_where_nobody_listens_the_agent_is_back_within_a_twentieth_of_the_time_away(
    away_s: float, chance: float
) -> None:
    delay = decide_away_delay_s(away_s, chance)
    assert 0 <= delay <= min(MOST_S, max(AWAY_LEAST_S, AWAY_SHARE * away_s))
    assert decide_away_delay_s(away_s, 0.0) == 0, "the jitter is full"


@given(st.floats(min_value=0, max_value=1e7), chances)
def test_what_drains_is_left_within_a_tenth_of_its_deadline_and_a_second(deadline_s: float, chance: float) -> None:
    assert 0 <= decide_drained_delay_s(deadline_s, chance) <= min(1.0, 0.1 * deadline_s)
    assert decide_drained_delay_s(deadline_s, 0.0) == 0, "the jitter is full"
    assert decide_drained_delay_s(60.0, 0.5) == 0.5
    assert decide_drained_delay_s(2.0, 0.5) == 0.1


def test_the_time_away_begins_with_the_loss_of_the_session_and_ends_with_the_next() -> None:
    backoff = Backoff()
    backoff.opened(0.0)
    backoff.lost(100.0, 0.5)
    assert backoff.nobody_listens(101.0, 0.5) == AWAY_LEAST_S / 2
    assert backoff.nobody_listens(200.0, 0.5) == AWAY_SHARE * 100 / 2
    backoff.opened(210.0)
    backoff.lost(300.0, 0.5)
    assert backoff.nobody_listens(301.0, 0.5) == AWAY_LEAST_S / 2


def test_an_agent_that_never_had_a_session_counts_from_its_first_try() -> None:
    backoff = Backoff()
    assert backoff.nobody_listens(50.0, 0.5) == AWAY_LEAST_S / 2
    assert backoff.nobody_listens(50.0 + 10 * AWAY_LEAST_S / AWAY_SHARE, 0.5) == 10 * AWAY_LEAST_S / 2

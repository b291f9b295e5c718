"""Kill schedules: repeatable, readable, and within their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.chaos.schedule import (
    AGENT,
    CONTROL,
    EXIT_NODE,
    KINDS,
    LONGEST_S,
    REST_S,
    Action,
    generate,
    overlapping,
    parse,
)

TARGETS = {"exit-1": EXIT_NODE, "exit-2": EXIT_NODE, "alpha": AGENT, "beta": AGENT, "control": CONTROL}

seeds = st.integers(0, 2**31)
lengths = st.floats(1.0, 120.0)


@given(seeds, lengths)
def test_the_same_seed_does_the_same_and_its_text_gives_it_back(seed: int, seconds: float) -> None:
    schedule = generate(seed, seconds, TARGETS)
    assert schedule == generate(seed, seconds, TARGETS)
    again = parse(str(schedule))
    assert (again.seed, again.actions) == (seed, schedule.actions)


@given(seeds, lengths)
def test_every_action_fits_its_target_and_has_ended_before_the_schedule_has(seed: int, seconds: float) -> None:
    for action in generate(seed, seconds, TARGETS).actions:
        assert action.kind in KINDS[TARGETS[action.target]]
        assert 0 < action.lasts_s <= LONGEST_S[action.kind] + 0.01
        assert action.at_s >= 0
        assert action.ends_s <= seconds + 0.02


@given(seeds, lengths)
def test_one_target_suffers_one_thing_at_a_time_and_rests_between(seed: int, seconds: float) -> None:
    actions = generate(seed, seconds, TARGETS).actions
    assert overlapping(actions) == []
    assert overlapping([Action(a.at_s, a.kind, a.target, a.lasts_s + REST_S - 0.02) for a in actions]) == []


def test_overlaps_are_found() -> None:
    one, two = Action(1.0, "kill", "alpha", 1.0), Action(1.5, "pause", "alpha", 1.0)
    assert overlapping([two, one, Action(1.2, "kill", "beta", 1.0)]) == [(one, two)]


def test_a_long_schedule_does_everything_to_everybody() -> None:
    done = {(action.target, action.kind) for action in generate(1, 600.0, TARGETS).actions}
    assert done == {(name, kind) for name, role in TARGETS.items() for kind in KINDS[role]}


def test_other_seeds_do_otherwise() -> None:
    assert len({generate(seed, 20.0, TARGETS).actions for seed in range(50)}) == 50


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed x seconds 4", '"seed x seconds 4" is not'),
        ("seed 1 seconds 4\n0.5 kill alpha", '"0.5 kill alpha" is not'),
        ("seed 1 seconds 4\n0.5 tickle alpha 1", "KIND one of kill"),
    ],
)
def test_what_is_no_schedule_is_told(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="is not") as told:
        parse(text)
    assert says in str(told.value)

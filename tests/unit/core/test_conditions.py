"""Conditions: set without churn, and one that tells what is wrong."""

from __future__ import annotations

import re

from edgetun_core.api.conditions import (
    MAX_MESSAGE,
    Condition,
    ConditionType,
    Reason,
    Verdict,
    decide_ready,
    find_condition,
    is_true,
    parse_timestamp,
    set_condition,
    timestamp,
)


def test_the_time_moves_with_the_status_only() -> None:
    first = set_condition([], "Ready", "False", "PoolNotReady", "wait", 1, now=1000)
    later = set_condition(first, "Ready", "False", "NoAgentConnected", "start one", 2, now=2000)
    assert later[0].last_transition_time == timestamp(1000)
    assert (later[0].reason, later[0].message, later[0].observed_generation) == ("NoAgentConnected", "start one", 2)
    turned = set_condition(later, "Ready", "True", "Ready", "", 2, now=3000)
    assert turned[0].last_transition_time == timestamp(3000)


def test_what_is_set_again_is_equal_so_that_nothing_is_written() -> None:
    once = set_condition([], "Ready", "True", "Ready", "", 1, now=1000)
    assert set_condition(once, "Ready", "True", "Ready", "", 1, now=2000) == once


def test_the_others_and_their_order_stay() -> None:
    conditions: list[Condition] = []
    for kind in ("Accepted", "PoolReady", "Ready"):
        conditions = set_condition(conditions, kind, "True", kind, "", 1, now=0)
    changed = set_condition(conditions, "PoolReady", "False", "PoolNotReady", "", 1, now=9)
    assert [condition.type for condition in changed] == ["Accepted", "PoolReady", "Ready"]
    assert changed[0] is conditions[0]
    assert is_true(changed, "Accepted")
    assert not is_true(changed, "PoolReady")
    assert not is_true(changed, "Nothing")
    assert find_condition(changed, "Nothing") is None


def test_a_message_stays_one_bounded_line() -> None:
    (condition,) = set_condition([], "Ready", "False", "InvalidSpec", "a\nb" + "x" * 5000, 1, now=0)
    assert "\n" not in condition.message
    assert len(condition.message) <= MAX_MESSAGE + 3


def test_ready_repeats_the_first_child_that_fails() -> None:
    children = [
        Verdict("True", "Accepted"),
        Verdict("Unknown", "Pending", "not looked at"),
        Verdict("False", "NoAgentConnected", "start one"),
        Verdict("False", "CertificateExpired", "renew"),
    ]
    assert decide_ready(children) == Verdict("False", "NoAgentConnected", "start one")
    assert decide_ready(children[:2]) == Verdict("Unknown", "Pending", "not looked at")
    assert decide_ready(children[:1]) == Verdict("True", "Ready")
    assert decide_ready([]) == Verdict("Unknown", "Pending")
    stored = set_condition([], "PoolReady", "False", "PoolNotReady", "wait", 1, now=0)
    assert decide_ready(stored) == Verdict("False", "PoolNotReady", "wait")


def test_times_are_read_as_they_are_written_and_with_fractions() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00Z"
    assert parse_timestamp(timestamp(1_800_000_000)) == 1_800_000_000
    assert parse_timestamp("1970-01-01T00:00:01.500000Z") == 1.5


def test_a_newer_version_may_have_written_more() -> None:
    data = {"type": "Ready", "status": "True", "reason": "Ready", "lastTransitionTime": timestamp(0), "novel": 1}
    assert Condition.model_validate(data).model_dump(by_alias=True, exclude_defaults=True) == {
        name: value for name, value in data.items() if name != "novel"
    }


def test_types_and_reasons_are_such_as_kubernetes_takes() -> None:
    for names in (ConditionType, Reason):
        words = [value for name, value in vars(names).items() if name.isupper()]
        assert len(set(words)) == len(words)
        assert all(re.fullmatch(r"[A-Z][A-Za-z]{1,60}", word) for word in words)

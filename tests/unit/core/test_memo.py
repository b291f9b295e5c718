"""Bounded memos: by entries, by weight, and by whether a key comes again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core import memo as memo_module
from edgetun_core.memo import MAX_AGE_S, SIGHTED, Memo, RecurringMemo, WeighedMemo


def test_two_generations_and_what_is_used_stays() -> None:
    memo: Memo[int, str] = Memo(2)
    for number in range(1, 4):
        memo.put(number, str(number))
    assert [memo.get(number) for number in (1, 2, 3)] == ["1", "2", "3"]
    memo.put(4, "4")
    assert memo.get(1) is not None or memo.get(2) is not None
    assert len(memo) <= 4
    memo.clear()
    assert (memo.get(4), len(memo)) == (None, 0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 400)), max_size=300))
def test_what_is_held_never_weighs_more_than_two_generations(puts: list[tuple[int, int]]) -> None:
    memo: WeighedMemo[int, int] = WeighedMemo(lambda key, weight: weight, 1000, max_entry_bytes=300)
    for key, weight in puts:
        assert memo.put(key, weight) == (weight <= 300)
        assert sum(memo.young.values()) <= 1000
        assert sum(memo._old.values()) <= 1000
        assert memo.get(key) == weight or weight > 300
    memo.clear()
    assert len(memo) == 0
    assert memo.put(1, 300)


def test_what_is_looked_up_moves_to_the_young_with_its_weight() -> None:
    memo: WeighedMemo[str, int] = WeighedMemo(lambda key, weight: weight, 100, max_entry_bytes=100)
    memo.put("a", 60)
    memo.put("b", 60)
    assert memo.get("a") == 60  # 120 would be too much: another generation begins, and b is the old one
    assert memo.get("b") == 60
    assert memo.get("a") == 60
    for key in "cd":
        memo.put(key, 60)
    assert memo.get("a") is None


def test_what_nobody_looked_up_for_two_generations_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(memo_module, "monotonic", lambda: now)
    memo: WeighedMemo[str, int] = WeighedMemo(lambda key, weight: weight, 1 << 20, max_entry_bytes=100)
    memo.put("wanted", 1)
    memo.put("not wanted", 1)
    for _ in range(3):
        now += MAX_AGE_S
        memo.put("another", 1)
        assert memo.get("wanted") == 1
    assert memo.get("not wanted") is None
    assert len(memo) <= 4
    assert memo._weight <= 2, "a generation's weight is its own"


def test_a_key_is_kept_the_second_time() -> None:
    memo: RecurringMemo[bytes, int] = RecurringMemo(lambda key, value: 1, 100, max_entry_bytes=10)
    assert not memo.remember(b"a", 1)
    assert memo.get(b"a") is None
    assert memo.remember(b"a", 2)
    assert memo.get(b"a") == 2
    memo.clear()
    assert not memo.remember(b"a", 3), "as if it had never been there"


def test_what_was_seen_once_is_forgotten_among_many_others() -> None:
    memo: RecurringMemo[int, int] = RecurringMemo(lambda key, value: 1, 1 << 20, max_entry_bytes=10)
    for number in range(2 * SIGHTED + 2):
        assert not memo.remember(number, number)
    assert not memo.remember(0, 0), "seen too long ago"
    assert memo.remember(2 * SIGHTED, 0)
    assert len(memo._sighted) <= 2 * SIGHTED

"""Who is left out, for how long, and how they come back."""

from __future__ import annotations

from edgetun_exitnode.mesh.outliers import FAILURES, FORGIVEN_S, OUT_FIRST_S, OUT_MOST_S, Outliers


def test_failures_in_a_row_put_a_node_out_and_a_success_between_does_not() -> None:
    outliers = Outliers()
    for _ in range(10):
        assert not outliers.failed("a", 0.0)
        outliers.answered("a", 0.001, 0.0)
    changed = [outliers.failed("a", 1.0) for _ in range(FAILURES)]
    assert changed == [False] * (FAILURES - 1) + [True]
    assert outliers.usable(["a", "b"]) == ["b"]
    assert outliers.out == ["a"]


def test_a_node_comes_back_only_after_its_time_and_an_answered_probe() -> None:
    outliers = Outliers()
    for _ in range(FAILURES):
        outliers.failed("a", 0.0)
    assert not outliers.answered("a", 0.001, OUT_FIRST_S - 0.1)
    assert outliers.is_out("a"), "before its time"
    outliers.failed("a", OUT_FIRST_S + 1)
    assert not outliers.answered("a", 0.001, OUT_FIRST_S + 2), "a failed probe makes it longer"
    assert outliers.answered("a", 0.001, 2 * OUT_FIRST_S + 1.1)
    assert not outliers.is_out("a")


def test_each_time_out_is_longer_up_to_a_bound_and_forgiven_after_a_while() -> None:
    outliers, now, lengths = Outliers(), 0.0, []
    for _ in range(8):
        for _ in range(FAILURES):
            outliers.failed("a", now)
        began = now
        while outliers.is_out("a"):
            now += 0.5
            outliers.answered("a", 0.001, now)
        lengths.append(now - began)
    assert lengths == sorted(lengths)
    assert lengths[0] <= OUT_FIRST_S + 0.5
    assert OUT_MOST_S <= lengths[-1] <= OUT_MOST_S + 0.5
    now += FORGIVEN_S + OUT_MOST_S
    for _ in range(FAILURES):
        outliers.failed("a", now)
    assert outliers.answered("a", 0.001, now + OUT_FIRST_S)


def test_a_node_that_became_slow_is_put_out_and_one_that_is_far_away_is_not() -> None:
    outliers = Outliers()
    for tick in range(50):
        outliers.answered("far", 0.3, float(tick))
        outliers.answered("near", 0.002, float(tick))
    assert outliers.out == []
    now = 50.0
    while not outliers.is_out("near"):
        outliers.answered("near", 0.6, now)
        now += 1.0
    assert now <= 53.0
    for _ in range(30):
        outliers.answered("near", 0.6, now)
        now += 1.0
    assert outliers.is_out("near"), "still slow"
    while outliers.is_out("near"):
        outliers.answered("near", 0.002, now)
        now += 1.0
    assert now < 100.0


def test_a_single_slow_answer_is_no_reason() -> None:
    outliers = Outliers()
    for tick in range(20):
        outliers.answered("a", 0.002, float(tick))
    assert not outliers.answered("a", 0.5, 20.0)
    assert not outliers.answered("a", 0.002, 21.0)


def test_the_last_one_is_used_all_the_same() -> None:
    outliers = Outliers()
    for node in "ab":
        for _ in range(FAILURES):
            outliers.failed(node, 0.0)
    assert outliers.usable(["a", "b"]) == ["a", "b"]
    assert outliers.usable(["a", "b", "c"]) == ["c"]

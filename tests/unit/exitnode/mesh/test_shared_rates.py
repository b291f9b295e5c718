"""One account of a visitor's rate for several nodes: how near to the limit they stay together, by simulation."""

from __future__ import annotations

import random

import pytest

from edgetun_exitnode.pipeline.limits import RateLimit

VISITOR = "192.0.2.1"


class Fleet:
    """Nodes that report to the first of them, each report taking `delay_s`; time is simulated."""

    def __init__(self, nodes: int, rate: float, burst: int, delay_s: float) -> None:
        self.nodes = [RateLimit(rate, burst) for _ in range(nodes)]
        self.delay_s = delay_s
        for node in self.nodes:
            node.share(lambda _: None)
        self.under_way: dict[int, tuple[float, dict[str, float]]] = {}

    def step(self, now: float) -> None:
        account = self.nodes[0]
        account.untold.clear()
        for number, node in enumerate(self.nodes[1:], 1):
            sent = self.under_way.get(number)
            if sent is not None and now >= sent[0]:
                del self.under_way[number]
                for visitor, given in sent[1].items():
                    node.settle(visitor, account.spend(visitor, given, now), now)
            if number not in self.under_way and node.untold:
                self.under_way[number] = now + self.delay_s, node.take_untold(500)


@pytest.mark.parametrize("nodes", [2, 5, 12])
@pytest.mark.parametrize(("rate", "burst"), [(50.0, 0), (100.0, 20), (200.0, 400)])
@pytest.mark.parametrize("asked_for", [1.2, 3.0, 10.0])
def test_a_visitor_gets_the_rate_within_a_tenth_however_the_requests_are_spread(
    nodes: int, rate: float, burst: int, asked_for: float
) -> None:
    rng = random.Random(f"{nodes} {rate} {asked_for}")
    fleet = Fleet(nodes, rate, burst, 0.004)
    given, seconds, step_s = 0, 6.0, 0.001
    due = 0.0
    for tick in range(int(seconds / step_s)):
        now = tick * step_s
        due += rate * asked_for * step_s
        while due >= 1.0:
            due -= 1.0
            given += fleet.nodes[rng.randrange(nodes)].decide(VISITOR, now) == 0.0
        fleet.step(now)
    allowed = min((burst or rate) + rate * seconds, rate * asked_for * seconds)
    assert 0.9 * allowed <= given <= 1.1 * allowed


def test_without_a_fleet_nothing_is_kept_to_be_told() -> None:
    limit = RateLimit(10.0, 5)
    assert [limit.decide(VISITOR, 0.0) == 0.0 for _ in range(6)] == [True] * 5 + [False]
    assert limit.untold == {}


def test_what_could_not_be_told_is_told_later_and_debt_has_an_end() -> None:
    limit = RateLimit(10.0, 5)
    woken: list[bool] = []
    limit.share(woken.append)
    for _ in range(3):
        limit.decide(VISITOR, 0.0)
    spent = limit.take_untold(10)
    assert spent == {VISITOR: 3.0}
    limit.decide(VISITOR, 0.0)
    limit.give_back(spent)
    assert limit.untold == {VISITOR: 4.0}
    assert woken[-1] is True
    assert limit.spend(VISITOR, 1000.0, 0.0) == -20.0
    assert limit.decide(VISITOR, 1.0) > 0.0
    assert limit.decide(VISITOR, 2.2) == 0.0

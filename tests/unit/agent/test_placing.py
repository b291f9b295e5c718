"""Watching control, and asking it anew without any session: less often while that is in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from edgetun_agent import placing as placing_module
from edgetun_agent.control_client import ControlUnreachable
from edgetun_agent.enroll import Enrollment
from edgetun_agent.placing import CUT_OFF_S, Placing, renew_while_cut_off
from edgetun_core.enrollment import EnrollRequest
from edgetun_core.pki import Trust

FAILED = ControlUnreachable("too many agents watch this server")


class Enough(Exception):
    """The test has seen what it wanted."""


async def waits_after(answers: Iterator[bool | Exception], count: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long an agent waits after each of these answers of control."""
    waits: list[float] = []

    async def watch(*_: Any) -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == count:
            raise Enough

    placing = Placing(None, EnrollRequest("laptop", ()))  # type: ignore[arg-type]
    placing._last = Enrollment((), Trust(), "", (), 60.0, 120.0, 0.0, "https://control.example", watch_s=25.0)
    monkeypatch.setattr(placing_module, "watch", watch)
    monkeypatch.setattr(placing_module, "WATCH_AGAIN_S", (10.0, 10.0))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(Enough):
        await placing.watch(lambda: None)
    return waits


async def test_a_control_that_goes_on_refusing_is_asked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await waits_after(iter([FAILED] * 5), 5, monkeypatch) == [10.0, 20.0, 40.0, 40.0, 40.0]


async def test_an_answer_ends_that_and_is_followed_by_the_next_question_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([FAILED, FAILED, False, FAILED])
    assert await waits_after(answers, 4, monkeypatch) == [10.0, 20.0, 0.0, 10.0]


async def test_an_agent_that_is_cut_off_asks_at_random_and_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[float, float]] = []
    events: list[str] = []
    connected = iter([True, False, False, False, False, False, True, False, False])

    class Chance:
        def uniform(self, least: float, most: float) -> float:
            ranges.append((least, most))
            return least

    async def sleep(_: float) -> None:
        events.append("slept")

    def is_connected() -> bool:
        answer = next(connected, None)
        if answer is None:
            raise Enough
        return answer

    monkeypatch.setattr(placing_module.random, "Random", Chance)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(Enough):
        await renew_while_cut_off(is_connected, lambda: events.append("asked"))
    least, most = CUT_OFF_S
    assert {first for first, _ in ranges} == {least}
    assert [last / most for _, last in ranges] == [1, 1, 1, 2, 4, 4, 4, 1, 1, 2]
    assert "".join(event[0] for event in events) == "sss" + "asas" + "asas" + "sssas"[1:]

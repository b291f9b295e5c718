"""Watching control: again after a failure, and less often while it goes on failing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from edgetun_agent import placing as placing_module
from edgetun_agent.control_client import ControlUnreachable
from edgetun_agent.enroll import Enrollment
from edgetun_agent.placing import Placing
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

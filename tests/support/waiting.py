"""Waiting for a condition with a deadline, in threads and in event loops. A condition that raises is not met yet."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

INTERVAL_S = 0.05


class NotInTime(AssertionError):
    """A condition was not met before its deadline."""


def _complaint(deadline_s: float, what: str, last: object) -> NotInTime:
    said = f"{type(last).__name__}: {last}" if isinstance(last, BaseException) else repr(last)
    return NotInTime(f"not within {deadline_s:g} s: {what or 'the condition'}; last seen: {said[:2000]}")


def wait_for(condition: Callable[[], T], deadline_s: float = 15, what: str = "") -> T:
    """Returns the condition's first truthy value; blocks, so not for a running event loop (there: `eventually`)."""
    end = time.monotonic() + deadline_s
    while True:
        last: object
        try:
            value = condition()
            if value:
                return value
            last = value
        except Exception as error:
            last = error
        if time.monotonic() > end:
            raise _complaint(deadline_s, what, last)
        time.sleep(INTERVAL_S)


async def eventually(condition: Callable[[], Any], deadline_s: float = 15, what: str = "") -> Any:
    """`wait_for` for an event loop. The condition may be a coroutine function."""
    end = time.monotonic() + deadline_s
    while True:
        last: object
        try:
            answer = condition()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
            last = value
        except Exception as error:
            last = error
        if time.monotonic() > end:
            raise _complaint(deadline_s, what, last)
        await asyncio.sleep(INTERVAL_S)

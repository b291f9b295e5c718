"""Who is woken by what."""

from __future__ import annotations

import asyncio

from edgetun_control.watchers import Watchers


async def waiting(watchers: Watchers, *names: str, any_of_them: bool = False) -> asyncio.Task[None]:
    task = asyncio.ensure_future(watchers.wait(None if any_of_them else names, 60.0))
    await asyncio.sleep(0)
    return task


async def woken(*tasks: asyncio.Task[None]) -> list[bool]:
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def test_a_change_wakes_those_of_its_namespaces_and_those_who_wait_for_any() -> None:
    watchers = Watchers()
    mine, both, other, anything = (
        await waiting(watchers, "a"),
        await waiting(watchers, "a", "b"),
        await waiting(watchers, "c"),
        await waiting(watchers, any_of_them=True),
    )
    assert len(watchers) == 4
    watchers.wake({"b"})
    assert await woken(mine, both, other, anything) == [False, True, False, True]
    watchers.wake({"a", "b"})
    assert await woken(mine, other) == [True, False]
    watchers.wake()
    assert await woken(other) == [True]
    assert len(watchers) == 0


async def test_whoever_goes_away_or_waited_long_enough_is_forgotten() -> None:
    watchers = Watchers()
    gone = await waiting(watchers, "a", "b")
    gone.cancel()
    await watchers.wait(("a",), 0.001)
    assert await woken(gone) == [True]
    assert len(watchers) == 0
    watchers.wake({"a"})
    watchers.wake()

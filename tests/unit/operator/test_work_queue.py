"""The queue: once each, never twice at one time, later and later while it fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from edgetun_cluster.kinds import Key
from edgetun_core.errors import ConfigError
from edgetun_operator.work import Item, Reconcile, WorkQueue
from support.waiting import eventually

A = Item("Tunnel", Key("team-a", "a"))
B = Item("Tunnel", Key("team-a", "b"))


@contextlib.asynccontextmanager
async def running(queue: WorkQueue, reconcile: Reconcile, workers: int = 2) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run(reconcile, workers))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_many_wishes_for_one_object_are_one_look() -> None:
    queue, seen = WorkQueue(coalesce_s=0.01), list[Item]()

    async def reconcile(item: Item) -> None:
        seen.append(item)

    async with running(queue, reconcile):
        for _ in range(50):
            queue.add(A)
        queue.add(B)
        await eventually(lambda: len(seen) == 2 and not len(queue), 5)
    assert sorted(seen) == [A, B]


async def test_a_wish_during_the_look_is_one_more_look_and_never_two_at_one_time() -> None:
    queue = WorkQueue(coalesce_s=0)
    at_work = 0
    looks = 0
    release = asyncio.Event()

    async def reconcile(item: Item) -> None:
        nonlocal at_work, looks
        at_work += 1
        looks += 1
        assert at_work == 1
        await release.wait()
        at_work -= 1

    async with running(queue, reconcile):
        queue.add(A)
        await eventually(lambda: at_work == 1, 5)
        for _ in range(10):
            queue.add(A)
        release.set()
        await eventually(lambda: looks == 2 and not len(queue), 5)


async def test_what_fails_is_tried_again_and_the_others_are_not_kept_waiting(caplog: object) -> None:
    queue = WorkQueue(coalesce_s=0)
    tries = 0
    done: list[Item] = []

    async def reconcile(item: Item) -> None:
        nonlocal tries
        if item == A:
            tries += 1
            if tries == 1:
                raise ConfigError("not now")
            if tries == 2:
                raise ValueError("a mistake of ours")
        done.append(item)

    async with running(queue, reconcile, workers=1):
        queue.add(A)
        queue.add(B)
        await eventually(lambda: done == [B], 5)
        assert queue.failing == 1
        await eventually(lambda: done == [B, A], 10)
    assert queue.failing == 0
    assert queue.failed == 2


async def test_a_later_look_that_was_asked_for_comes_and_a_sooner_one_goes_before_it() -> None:
    queue = WorkQueue(coalesce_s=0)
    looks = 0

    async def reconcile(item: Item) -> float | None:
        nonlocal looks
        looks += 1
        return 0.05 if looks == 1 else 3600.0

    async with running(queue, reconcile):
        queue.add(A)
        await eventually(lambda: looks == 2 and not len(queue), 5)
        queue.add(A)
        await eventually(lambda: looks == 3, 5)

"""The keeper: renews at half-life, never gives up, and is not fooled by a laptop that slept."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from edgetun_agent import credential_keeper
from edgetun_agent.credential_keeper import RETRY_FIRST_S, RETRY_MOST_S, CredentialKeeper, decide_retry_delay_s
from edgetun_agent.enroll import Enrollment
from edgetun_core.errors import UpstreamUnreachable
from edgetun_core.pki import Trust


def enrollment(name, renew_after_s=1800.0):
    return Enrollment((), Trust(), name, (), renew_after_s, 2 * renew_after_s, 0.0, "https://a")


@contextlib.asynccontextmanager
async def keeping(first, answers, **options):
    """Runs a keeper whose control gives `answers` one by one, then nothing more."""
    renewed, failed = [], []

    async def ask_again():
        if not answers:
            await asyncio.Event().wait()
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    keeper = CredentialKeeper(
        first, ask_again, on_renewed=renewed.append, on_failed=failed.append, rng=random.Random(1), **options
    )
    running = asyncio.create_task(keeper.run())
    try:
        yield keeper, renewed, failed
    finally:
        running.cancel()


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_it_renews_when_half_of_the_life_is_over():
    async with keeping(enrollment("a", 0.05), [enrollment("b")]) as (keeper, renewed, _):
        assert keeper.current().credential == "a"
        await until(lambda: renewed)
        assert keeper.current().credential == "b"


async def test_it_does_not_renew_before():
    async with keeping(enrollment("a", 1800.0), [enrollment("b")]) as (keeper, renewed, _):
        await asyncio.sleep(0.1)
        assert not renewed
        keeper.renew_soon()
        await until(lambda: renewed)


async def test_a_laptop_that_slept_renews_at_once_by_the_wall_clock(monkeypatch):
    monkeypatch.setattr(credential_keeper, "WALL_CLOCK_CHECK_S", 0.01)
    now = [1000.0]
    async with keeping(enrollment("a", 1800.0), [enrollment("b")], wall_clock=lambda: now[0]) as (keeper, renewed, _):
        await asyncio.sleep(0.05)
        assert not renewed
        now[0] += 4000.0
        assert keeper.is_expired
        await until(lambda: renewed)
        assert not keeper.is_expired


async def test_failures_are_reported_and_tried_again_while_the_old_one_stays():
    failure = UpstreamUnreachable("https://a cannot be reached")
    async with keeping(enrollment("a", 0.0), [failure, enrollment("b")]) as (keeper, renewed, failed):
        await until(lambda: failed)
        assert keeper.current().credential == "a"
        keeper.renew_soon()  # the network came back: no need to wait out the delay
        await until(lambda: renewed)
        assert failed == [failure]


async def test_a_wish_for_a_renewal_while_one_is_made_is_that_one():
    asked, answered = [], asyncio.Event()

    async def ask_again():
        asked.append(len(asked))
        await answered.wait()
        return enrollment("b")

    keeper = CredentialKeeper(enrollment("a"), ask_again)
    running = asyncio.create_task(keeper.run())
    keeper.renew_soon()
    await until(lambda: asked)
    keeper.renew_soon()
    answered.set()
    await until(lambda: keeper.current().credential == "b")
    await asyncio.sleep(0.05)
    assert asked == [0]
    keeper.renew_soon()
    await until(lambda: len(asked) == 2)
    running.cancel()


async def test_a_wish_while_a_renewal_fails_does_not_shorten_the_wait_for_the_next():
    asked = []

    async def ask_again():
        asked.append(time.monotonic())
        if len(asked) == 1:
            keeper.renew_soon()
            raise UpstreamUnreachable("https://a cannot be reached")
        return enrollment("b")

    keeper = CredentialKeeper(enrollment("a", 0.0), ask_again, rng=random.Random(1))
    running = asyncio.create_task(keeper.run())
    await until(lambda: len(asked) >= 2)
    running.cancel()
    assert asked[1] - asked[0] >= 0.9 * RETRY_FIRST_S / 4


def test_retries_are_spread_between_a_moment_and_a_minute():
    rng = random.Random(7)
    assert all(RETRY_FIRST_S / 4 <= decide_retry_delay_s(0, rng) <= RETRY_FIRST_S for _ in range(100))
    late = [decide_retry_delay_s(1000, rng) for _ in range(200)]
    assert max(late) <= RETRY_MOST_S
    assert max(late) - min(late) > RETRY_MOST_S / 2

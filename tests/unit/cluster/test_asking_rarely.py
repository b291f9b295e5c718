"""How often an idle process asks the API server: rarely when all is as it was, soon when something failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from edgetun_cluster import informer as informer_module
from edgetun_cluster import leases as leases_module
from edgetun_cluster.errors import ApiAbsent, ClusterUnreachable
from edgetun_cluster.informer import ABSENT_RETRY_S, BREAK_S, Informer
from edgetun_cluster.kinds import CERTIFICATE, Object
from edgetun_cluster.leases import RENEW_S, TRY_S, LeaderElection


class Sleeps:
    """Takes the place of a module's `asyncio.sleep`: keeps what is asked for, and ends the task after so many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, most: int) -> None:
        self.asked: list[float] = []
        sleep = asyncio.sleep

        async def instead(seconds: float) -> None:
            self.asked.append(seconds)
            if len(self.asked) == most:
                raise asyncio.CancelledError
            await sleep(0)

        monkeypatch.setattr(module.asyncio, "sleep", instead)


async def test_a_kind_that_is_not_served_is_asked_for_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        def pages(self, *_: Any, **__: Any) -> Any:
            raise ApiAbsent(404, "NotFound", "the server could not find the requested resource")

    sleeps = Sleeps(monkeypatch, informer_module, 5)
    informer: Informer[Object] = Informer(Absent(), CERTIFICATE)  # type: ignore[arg-type]
    await asyncio.wait((informer.start(),))
    assert informer.is_absent
    first, most = ABSENT_RETRY_S
    for asked, least in zip(sleeps.asked, (first, 2 * first, 4 * first, most, most), strict=True):
        assert least <= asked <= least + BREAK_S[1]


async def test_a_leader_renews_rarely_and_tries_again_soon_when_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        def __init__(self) -> None:
            self.calls = 0

        async def get(self, *_: Any) -> None:
            return None

        async def create(self, _: Any, obj: Object, **__: Any) -> Object:
            return obj

        async def replace(self, _: Any, obj: Object, **__: Any) -> Object:
            self.calls += 1
            if self.calls == 2:
                raise ClusterUnreachable("no answer within 10 s")
            return obj

    sleeps = Sleeps(monkeypatch, leases_module, 5)
    now = iter(range(100))
    election = LeaderElection(Server(), "l", "n", "me", manager="m", clock=lambda: float(next(now)) / 10)  # type: ignore[arg-type]
    election.start()
    assert election._task is not None
    await asyncio.wait((election._task,))
    assert sleeps.asked == [RENEW_S, RENEW_S, TRY_S, RENEW_S, RENEW_S]
    assert election.is_leader

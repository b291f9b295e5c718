"""An exchange that is over leaves nothing for the garbage collector: its pauses are what a busy edge would notice."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from pathlib import Path

import pytest

from edgetun_core.snapshot import CacheRule, CollapseRule
from support.origin_server import answering, response, scripted_origin
from support.whole import HOST, snapshot, whole

REQUESTS = 200


def _ours() -> Counter[str]:
    kinds = (type(thing) for thing in gc.get_objects())
    return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith("edgetun"))


@pytest.mark.parametrize("engine", ["tls", "qh3"])
@pytest.mark.parametrize("stored", [False, True], ids=["passed through", "answered from store"])
async def test_finished_exchanges_leave_no_cycles(tmp_path: Path, engine: str, stored: bool) -> None:
    answer = response(b"hello", b"Date: Sun, 06 Nov 1994 08:49:37 GMT")
    cache = CacheRule(mode="override", ttl_s=60.0) if stored else CacheRule()
    async with (
        scripted_origin(answering(answer)) as origin,
        whole(tmp_path, engine, snapshot(origin.url, cache=cache, collapse=CollapseRule())) as stands,
    ):
        visitor = await stands.visitor()
        for _ in range(20):  # memos fill, connections open
            await visitor.ask("/", host=HOST)
        await asyncio.sleep(0.05)
        gc.collect()
        gc.disable()
        try:
            before = _ours()
            for _ in range(REQUESTS):
                assert (await visitor.ask("/", host=HOST)).status == 200
            await asyncio.sleep(0.05)
            left = {name: count for name, count in (_ours() - before).items() if count > REQUESTS // 10}
        finally:
            gc.enable()
        assert left == {}
        await visitor.close()

"""What a cache hit costs with 10, 10,000 and 100,000 objects stored: CPU of the cache stage alone, one core.

python bench/cache_scale.py [--quick]

No sockets: the stage is asked as a front asks it, with heads that it has parsed. Three figures: the same 10 objects are asked for,
whatever else is stored; the same with 4 variants (Vary) of each object stored; and 1,000 objects spread over all that is stored (where
so many are), which adds what the processor pays for memory that is not in its own caches.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

from harness import Column, Row, parse_arguments, report, run_main

from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.cache.stage import CacheStage
from edgetun_exitnode.cache.store import Store

COUNTS = (10, 10_000, 100_000)
HOT, SPREAD = 10, 1_000
BODY = b"x" * 1024
VARIANTS = (b"br", b"gzip", b"zstd", b"identity")
COLUMNS = [
    Column("hot", "us per hit", 3, ratio=True, less_is_better=True),
    Column("vary", "with Vary, us", 3, ratio=True, less_is_better=True),
    Column("spread", "spread over 1,000, us", 3),
]


class Origin:
    """Answers at once; varies on Accept-Encoding when told to."""

    def __init__(self, vary: bool) -> None:
        self.fields: Fields = ((b"date", b"Tue, 14 Nov 2023 22:13:20 GMT"), (b"content-type", b"text/plain"))
        if vary:
            self.fields += ((b"vary", b"accept-encoding"),)

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        client.on_head(ResponseHead(200, self.fields), False)
        client.on_data(BODY, True)
        return CLOSED


class Visitor:
    """Takes whatever comes."""

    def on_interim(self, head: ResponseHead) -> None: ...
    def on_head(self, head: ResponseHead, end: bool) -> None: ...
    def on_data(self, data: bytes, end: bool) -> None: ...
    def on_trailers(self, fields: Fields) -> None: ...
    def on_reset(self, error: Exception) -> None: ...
    def pause_request(self) -> None: ...
    def resume_request(self) -> None: ...


class NoTimers:
    def call_later(self, delay: float, callback: Callable[[], object], /) -> NoTimers:
        return self

    def cancel(self) -> None: ...


def fill(count: int, vary: bool, asked: int) -> tuple[CacheStage, list[RequestHead]]:
    """A stage with `count` objects stored, and the heads that ask for `asked` of them."""
    stage = CacheStage(
        CacheRule(mode="override", ttl_s=3600.0),
        CollapseRule(),
        "bench/tunnel",
        Store(1 << 30),
        Origin(vary),
        time.monotonic,
        NoTimers(),
    )
    peer, visitor = Peer("192.0.2.1", 1, b"http"), Visitor()
    heads = []
    step = max(1, count // asked)
    for number in range(count):
        fields: Fields = ((b"accept-encoding", VARIANTS[number % 4]),) if vary else ()
        target = b"/%d" % (number // 4 if vary else number)
        head = RequestHead(b"GET", b"http", b"bench.test", target, fields)
        stage.open(head, peer, True, visitor)
        if number % step == 0 and len(heads) < asked:
            heads.append(head)
    assert stage.store.entry_count == count, f"{stage.store.entry_count} of {count} objects were stored"
    return stage, heads


def cost_us(stage: CacheStage, heads: list[RequestHead], hits: int) -> float:
    """CPU of one hit in microseconds: the least of five measurements, since what disturbs only adds."""
    peer, visitor, ask = Peer("192.0.2.1", 1, b"http"), Visitor(), stage.open
    for head in heads:
        ask(head, peer, True, visitor)
    best = float("inf")
    rounds = max(1, hits // len(heads))
    before = stage.stats.hits
    for _ in range(5):
        started = time.process_time()
        for _ in range(rounds):
            for head in heads:
                ask(head, peer, True, visitor)
        best = min(best, (time.process_time() - started) / (rounds * len(heads)))
    assert stage.stats.hits - before == 5 * rounds * len(heads), "every request was a hit"
    return best * 1e6


def main() -> None:
    arguments = parse_arguments(__doc__)
    hits = 20_000 if arguments.quick else 200_000
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    gc.freeze()
    rows = {count: Row(f"{count:,} objects") for count in COUNTS}
    for _ in range(arguments.repeats):
        for count, row in rows.items():
            for name, vary, asked in (("hot", False, HOT), ("vary", True, HOT), ("spread", False, SPREAD)):
                stage, heads = fill(count, vary, asked)
                row.add(**{name: cost_us(stage, heads, hits)})
                del stage, heads
    report("cache-scale", "CPU of a hit by the number of objects stored", list(rows.values()), COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

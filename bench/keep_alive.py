"""What wrk sees of 64 keep-alive visitors, and what that costs the servers: shared by the cached and the pass-through runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from harness import BenchError, Column, Row, Running, cpu_of, wrk
from peers import require

COLUMNS = [
    Column("rps", "requests/s", 0, ratio=True),
    Column("cpu", "CPU s per 100,000", 2, ratio=True, less_is_better=True),
    Column("p50", "p50 ms", 2),
    Column("p99", "p99 ms", 2),
    Column("errors", "errors"),
]


def keep_alive_run(
    arguments: argparse.Namespace, *, headers: Sequence[str] = (), body_bytes: int = 1024
) -> Callable[[Running, Row], None]:
    """Warms a subject up, then measures it for `arguments.seconds`. `headers` are sent with every request."""
    program = require("wrk")

    def one(running: Running, row: Row) -> None:
        wrk(program, running, connections=64, seconds=min(1.0, arguments.seconds), headers=headers)  # warm up
        with cpu_of(running) as spent:
            result = wrk(program, running, connections=64, seconds=arguments.seconds, headers=headers)
        if not result.requests:
            raise BenchError("it answered nothing")
        row.add(
            rps=result.rps,
            cpu=spent[0] / result.requests * 100_000,
            p50=result.p50_ms,
            p99=result.p99_ms,
            errors=result.errors,
            mb=result.rps * body_bytes / 1e6,
            mb_cpu=result.requests * body_bytes / 1e6 / spent[0],
        )

    return one

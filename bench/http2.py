"""Cached answers over HTTP/2 and TLS 1.3, 64 connections of 10 streams, one core: 1 KB and 100 KB, beside nginx, h2o and Caddy.

python bench/http2.py [--quick]
"""

from __future__ import annotations

from functools import partial

import subjects
from baselines import caddy_files, h2o_files, nginx_origin, nginx_tls
from harness import (
    BenchError,
    Column,
    Row,
    Running,
    Subject,
    cpu_of,
    h2load,
    measure,
    parse_arguments,
    report,
    run_main,
)
from peers import require

SMALL, LARGE = 1024, 100_000
COLUMNS = [
    Column("rps", "requests/s", 0, ratio=True),
    Column("cpu", "CPU s per 100,000", 2, ratio=True, less_is_better=True),
    Column("mean", "mean ms", 2),
    Column("errors", "errors"),
]
LARGE_COLUMNS = [Column("mb_cpu", "MB per CPU s", 0, ratio=True), Column("mb", "MB/s", 0, ratio=True), *COLUMNS[2:]]


def main() -> None:
    arguments = parse_arguments(__doc__)
    program = require("h2load")

    def one(running: Running, row: Row, size: int) -> None:
        warm = h2load(program, running, connections=64, streams=10, requests=6_400)
        if warm.requests < 6_400:
            raise BenchError(f"of 6,400 requests it answered {warm.requests:,}")
        count = max(6_400, round(warm.rps * arguments.seconds))
        with cpu_of(running) as spent:
            result = h2load(program, running, connections=64, streams=10, requests=count)
        row.add(
            rps=result.rps,
            cpu=spent[0] / result.requests * 100_000,
            mean=result.mean_ms,
            errors=result.errors,
            mb=result.rps * size / 1e6,
            mb_cpu=result.requests * size / 1e6 / spent[0],
        )

    for script, title, size, columns in (
        ("http2", "Cached 1 KB, HTTP/2 over TLS 1.3, 64 connections of 10 streams, one core", SMALL, COLUMNS),
        (
            "http2-100k",
            "Cached 100 KB, HTTP/2 over TLS 1.3, 64 connections of 10 streams, one core",
            LARGE,
            LARGE_COLUMNS,
        ),
    ):
        with nginx_origin(fresh_s=3600, body_bytes=size) as origin:
            the_subjects: dict[str, Subject] = {
                "edgetun": partial(subjects.http, origin, cache="1h", https=True),
                "nginx proxy_cache": partial(nginx_tls, origin, subjects.HOST, h2=True),
                "h2o (a file; it has no cache)": partial(h2o_files, subjects.HOST, size),
                "Caddy (a file; it has no cache)": partial(caddy_files, subjects.HOST, size),
            }
            rows = measure(the_subjects, partial(one, size=size), repeats=arguments.repeats, only=arguments.only)
        report(script, title, rows, columns, arguments)


if __name__ == "__main__":
    run_main(main)

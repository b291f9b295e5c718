"""Cached 1 KB, keep-alive, one core: edgetun beside nginx's proxy_cache, plain HTTP/1.1 and TLS 1.3.

python bench/cached.py [--quick]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import subjects
from baselines import nginx_cache, nginx_origin, write_certificate
from harness import BenchError, Column, Row, Running, Subject, cpu_of, measure, parse_arguments, report, run_main, wrk
from peers import require

COLUMNS = [
    Column("rps", "requests/s", 0, ratio=True),
    Column("cpu", "CPU s per 100,000", 2, ratio=True, less_is_better=True),
    Column("p50", "p50 ms", 2),
    Column("p99", "p99 ms", 2),
    Column("errors", "errors"),
]


@contextmanager
def nginx_tls(origin: Running) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        files, _ = write_certificate(Path(folder), [subjects.HOST])
        with nginx_cache(origin, files) as running:
            yield Running(running.port, running.servers, subjects.HOST, "https")


def main() -> None:
    arguments = parse_arguments(__doc__)
    program = require("wrk")

    def one(running: Running, row: Row) -> None:
        wrk(program, running, connections=64, seconds=min(1.0, arguments.seconds))
        with cpu_of(running) as spent:
            result = wrk(program, running, connections=64, seconds=arguments.seconds)
        if not result.requests:
            raise BenchError("it answered nothing")
        row.add(
            rps=result.rps,
            cpu=spent[0] / result.requests * 100_000,
            p50=result.p50_ms,
            p99=result.p99_ms,
            errors=result.errors,
        )

    with nginx_origin(fresh_s=3600) as origin:
        plain: dict[str, Subject] = {
            "edgetun": partial(subjects.http, origin, cache="1h"),
            "nginx proxy_cache": partial(nginx_cache, origin),
        }
        secure: dict[str, Subject] = {
            "edgetun": partial(subjects.http, origin, cache="1h", https=True),
            "nginx proxy_cache": partial(nginx_tls, origin),
        }
        for script, title, the_subjects in (
            ("cached", "Cached 1 KB, HTTP/1.1 keep-alive, 64 visitors, one core", plain),
            ("cached-tls", "Cached 1 KB, HTTP/1.1 keep-alive over TLS 1.3, 64 visitors, one core", secure),
        ):
            rows = measure(the_subjects, one, repeats=arguments.repeats, only=arguments.only)
            report(script, title, rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

"""Pass-through: 1 KB, nothing cached, 64 visitors, the edge and the agent together on one core.

python bench/passthrough.py [--quick] [--only frp]
"""

from __future__ import annotations

from functools import partial

import rivals
import subjects
from baselines import direct, nginx_origin, nginx_proxy
from harness import BenchError, Column, Row, Running, Subject, cpu_of, measure, parse_arguments, report, run_main, wrk
from peers import require

COLUMNS = [
    Column("rps", "requests/s", 0, ratio=True),
    Column("cpu", "CPU s per 100,000", 2, ratio=True, less_is_better=True),
    Column("p50", "p50 ms", 2),
    Column("p99", "p99 ms", 2),
    Column("errors", "errors"),
]


def the_subjects(origin: Running) -> dict[str, Subject]:
    return {
        "edgetun TLS": partial(subjects.tunnel, origin, transport="tls"),
        "edgetun QUIC (qh3)": partial(subjects.tunnel, origin, transport="quic"),
        "edgetun QUIC (aioquic)": partial(subjects.tunnel, origin, transport="quic", engine="aioquic"),
        "nginx reverse proxy (no tunnel)": partial(nginx_proxy, origin),
        "frp tcp, TLS": partial(rivals.frp, origin, kind="tcp", transport="tls"),
        "frp tcp, QUIC": partial(rivals.frp, origin, kind="tcp", transport="quic"),
        "frp http, TLS": partial(rivals.frp, origin, kind="http", transport="tls"),
        "frp http, QUIC": partial(rivals.frp, origin, kind="http", transport="quic"),
        "rathole TLS": partial(rivals.rathole, origin),
        "piko (no TLS)": partial(rivals.piko, origin),
        "direct (no hop)": partial(direct, origin),
    }


def main() -> None:
    arguments = parse_arguments(__doc__)
    program = require("wrk")

    def one(running: Running, row: Row) -> None:
        wrk(program, running, connections=64, seconds=min(1.0, arguments.seconds))  # warm up
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

    with nginx_origin() as origin:
        rows = measure(the_subjects(origin), one, repeats=arguments.repeats, only=arguments.only)
    report("passthrough", "Pass-through, 1 KB, 64 visitors, edge and agent on one core", rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

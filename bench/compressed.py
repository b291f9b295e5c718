"""A cached page of 32 KiB that is compressed for who accepts it, keep-alive, one core: edgetun beside nginx's gzip in front of its cache.

python bench/compressed.py [--quick]

nginx compresses anew for every visitor; here the compressed form is kept beside the stored one.
"""

from __future__ import annotations

import random
from functools import partial

import subjects
from baselines import nginx_cache, nginx_origin
from harness import BenchError, Row, Running, Subject, cpu_of, measure, parse_arguments, report, run_main, wrk
from keep_alive import COLUMNS
from peers import require

PLAIN = ", as it is"


def page() -> str:
    """Text that compresses to about a quarter, without quotes or dollars (it stands in nginx's configuration)."""
    rng = random.Random(7)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randrange(2, 11))) for _ in range(3000)]
    return " ".join(rng.choices(words, weights=[1 / rank for rank in range(1, 3001)], k=8000))[: 32 * 1024]


def main() -> None:
    arguments = parse_arguments(__doc__)
    program = require("wrk")

    def one(running: Running, row: Row) -> None:
        headers = () if row.subject.endswith(PLAIN) else (f"Accept-Encoding: {row.subject.split()[1]}",)
        wrk(program, running, connections=64, seconds=min(1.0, arguments.seconds), headers=headers)
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
        )

    with nginx_origin(fresh_s=3600, body=page()) as origin:
        ours: Subject = partial(subjects.http, origin, cache="1h")
        the_subjects: dict[str, Subject] = {
            "edgetun gzip": ours,
            "edgetun br": ours,
            "edgetun zstd": ours,
            f"edgetun{PLAIN}": ours,
            "nginx gzip (level 1)": partial(nginx_cache, origin, gzip_level=1),
            "nginx gzip (level 4)": partial(nginx_cache, origin, gzip_level=4),
            f"nginx{PLAIN}": partial(nginx_cache, origin),
        }
        rows = measure(the_subjects, one, repeats=arguments.repeats, only=arguments.only)
        title = "Cached 32 KiB page, compressed for the visitor, HTTP/1.1 keep-alive, 64 visitors, one core"
        report("compressed", title, rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

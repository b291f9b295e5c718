"""From the start of the process to the first answer: `edgetun http`, and the exit node alone.

python bench/startup.py [--quick]
"""

from __future__ import annotations

import time
from collections.abc import Callable

import subjects
from baselines import nginx_origin
from harness import BenchError, Column, Row, Stage, free_port, get_status, parse_arguments, report, run_main
from subjects import HOST

NOBODY = "nobody.localhost"  # a name with a tunnel would wait for an agent, as visitors do

COLUMNS = [
    Column("ready", "ready ms", 0),
    Column("worst", "worst ms", 0),
    Column("cpu", "CPU ms", 0),
    Column("rss", "RSS MB", 1),
]


def milliseconds_until(stage: Stage, command: list[str], is_ready: Callable[[], bool]) -> dict[str, float]:
    begin = time.perf_counter()
    process = stage.start("started", command)
    while not is_ready():
        if not process.is_running or time.perf_counter() - begin > 20:
            raise BenchError(f"not ready:\n{process.tail()}")
        time.sleep(0.002)
    took = (time.perf_counter() - begin) * 1000
    figures = {"ready": took, "cpu": process.cpu_s() * 1000, "rss": process.rss_bytes() / 1e6}
    process.stop()
    return figures


def main() -> None:
    arguments = parse_arguments(__doc__, repeats=10)
    http, node = Row("edgetun http, first answer from the origin"), Row("edgetun-exitnode, first answer (404)")
    with nginx_origin() as origin:
        for _ in range(arguments.repeats):
            with Stage() as stage:
                state = stage.folder / "state"
                # The development CA is made once per machine, not at every start.
                for figures in [start_http(stage, origin.port, str(state)) for _ in range(2)][1:]:
                    http.add(**figures)
            with subjects.exit_node() as (stage, command, port):
                milliseconds_until(stage, command, lambda port=port: get_status(port, NOBODY) == 404)  # type: ignore[misc]
                node.add(**milliseconds_until(stage, command, lambda port=port: get_status(port, NOBODY) == 404))  # type: ignore[misc]
    for row in (http, node):
        row.add(worst=max(row.figures["ready"]))
    report("startup", "From process start to the first answer", [http, node], COLUMNS, arguments)


def start_http(stage: Stage, origin: int, state: str) -> dict[str, float]:
    plain, secure = free_port(), free_port()
    command = subjects.http_command(origin, plain, secure, state)
    return milliseconds_until(stage, command, lambda: get_status(plain, HOST) == 200)


if __name__ == "__main__":
    run_main(main)

"""The headline: 10,000 visitors within 2 s at a page that takes a laptop 150 ms, with a time to live of 1 s.

What reaches the origin, how many are answered and how late, beside the same crowd straight at the origin and through frp.
The load generator has the client's core for itself; edge, agent and origin share the other.

    python bench/crowd.py [--visitors 10000] [--quick]
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import rivals
import subjects
from baselines import nginx_cache
from harness import (
    PYTHON,
    SERVER_CORE,
    Column,
    Row,
    Running,
    Stage,
    Subject,
    cpu_of,
    edgetun_load,
    free_port,
    get_status,
    measure,
    parse_arguments,
    report,
    run_main,
    wait_until,
)

COLUMNS = [
    Column("origin", "origin requests"),
    Column("peak", "at once"),
    Column("answered", "answered"),
    Column("errors", "errors"),
    Column("p50", "p50 ms", 1),
    Column("p99", "p99 ms", 1),
    Column("max", "max ms", 1),
    Column("elapsed", "all done s", 2),
    Column("cpu", "CPU s", 2),
]


@contextmanager
def laptop() -> Iterator[Running]:
    """The demo's origin: one process, 150 ms of work per page, no cache."""
    port = free_port()
    with Stage() as stage:
        process = stage.start("laptop", [PYTHON, "-m", "edgetun.demo_origin", str(port)], core=SERVER_CORE)
        wait_until("demo origin", lambda: get_status(port, path="/stats") == 200, [process])
        yield Running(port, (process,), origin=process)


@contextmanager
def behind(subject: Callable[[Running], AbstractContextManager[Running]] | None) -> Iterator[Running]:
    """The laptop, fresh, and the subject before it; CPU counts both, for both are on the core that answers the crowd."""
    with laptop() as origin:
        if subject is None:
            yield origin
            return
        with subject(origin) as edge:
            yield Running(edge.port, (*edge.servers, *origin.servers), edge.host, edge.scheme, origin.origin)


def stats(port: int) -> dict[str, int]:
    """What the origin counted."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(b"GET /stats HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    found: dict[str, int] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def origin_port(running: Running) -> int:
    """The port that the origin's command line names."""
    assert running.origin is not None
    return int(running.origin.arguments[-1])


def main() -> None:
    arguments = parse_arguments(__doc__, repeats=3, seconds=2, extra={"visitors": 10_000})
    visitors = str(min(arguments.visitors, 500) if arguments.quick else arguments.visitors)

    def one(running: Running, row: Row) -> None:
        port = origin_port(running)
        time.sleep(1.5)  # what was cached when the subject was asked whether it is ready has gone stale by now
        before = stats(port)["requests"]  # the subject's start asked too, to see that it was ready
        with cpu_of(running) as spent:
            result = edgetun_load(
                running, "--visitors", visitors, "--within", f"{arguments.seconds:g}s", "--timeout", "30s"
            )
        after = stats(port)
        row.add(
            origin=after["requests"] - before,
            peak=after["peak"],
            answered=result["requests"]["answered"],
            errors=result["requests"]["failed"] + sum(n for s, n in result["statuses"].items() if s >= "500"),
            p50=result["latency_ms"]["p50"],
            p99=result["latency_ms"]["p99"],
            max=result["latency_ms"]["max"],
            elapsed=result["elapsed_s"],
            cpu=spent[0],
        )

    the_subjects: dict[str, Subject] = {
        "edgetun http": partial(behind, partial(subjects.http, cache="1s")),
        "nginx, proxy_cache and lock": partial(behind, partial(nginx_cache, fresh="1s")),
        "frp http, TLS": partial(behind, partial(rivals.frp, kind="http", transport="tls")),
        "frp tcp, TLS": partial(behind, partial(rivals.frp, kind="tcp", transport="tls")),
        "the laptop alone": partial(behind, None),
    }
    rows = measure(the_subjects, one, repeats=arguments.repeats, only=arguments.only)
    title = f"The crowd: {int(visitors):,} visitors within {arguments.seconds:g} s, a page of 150 ms, TTL 1 s"
    report("crowd", title, rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

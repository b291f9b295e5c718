"""Idle visitors: what 10,000 keep-alive connections, each of which asked once, cost the exit node and the agent.

python bench/idle.py [--connections 10000] [--quick]
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from functools import partial

import rivals
import subjects
from baselines import nginx_origin, nginx_proxy
from harness import CLIENT_CORE, BenchError, Column, Row, Running, Subject, measure, parse_arguments, report, run_main

COLUMNS = [
    Column("edge", "bytes each, edge"),
    Column("agent", "bytes each, agent"),
    Column("cpu", "CPU s in 5 s of rest", 3),
]


def main() -> None:
    arguments = parse_arguments(__doc__, repeats=1, seconds=5, extra={"connections": 10_000})
    count = 500 if arguments.quick else arguments.connections
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 100:
        raise BenchError(
            f"{count} connections need {count + 100} open files, the limit is {hard}; take fewer: --connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {CLIENT_CORE})

    def one(running: Running, row: Row) -> None:
        request = f"GET / HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode()

        def ask(stack: contextlib.ExitStack) -> None:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=20))
            sock.sendall(request)
            if not sock.recv(65536).startswith(b"HTTP/1.1 200"):
                raise BenchError("a visitor was not answered 200")

        with contextlib.ExitStack() as warm:
            for _ in range(min(200, count // 5)):
                ask(warm)
        time.sleep(1.0)
        before = [process.rss_bytes() for process in running.servers]
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                ask(stack)
            time.sleep(1.0)
            grown = [process.rss_bytes() - was for process, was in zip(running.servers, before, strict=True)]
            cpu = running.cpu_s()
            time.sleep(arguments.seconds)
            row.add(edge=grown[0] / count, cpu=(running.cpu_s() - cpu) / arguments.seconds * 5)
            if len(grown) > 1:
                row.add(agent=grown[1] / count)

    with nginx_origin() as origin:
        the_subjects: dict[str, Subject] = {
            "edgetun TLS": partial(subjects.tunnel, origin, transport="tls"),
            "edgetun QUIC (qh3)": partial(subjects.tunnel, origin, transport="quic"),
            "nginx reverse proxy (no tunnel)": partial(nginx_proxy, origin),
            "frp http, TLS": partial(rivals.frp, origin, kind="http", transport="tls"),
            "frp tcp, TLS": partial(rivals.frp, origin, kind="tcp", transport="tls"),
        }
        rows = measure(the_subjects, one, repeats=arguments.repeats, only=arguments.only)
    report("idle", f"{count:,} idle visitors, plain HTTP, one request each", rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

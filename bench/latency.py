"""One visitor, one request after the other: how much later the median answer comes than straight from the origin.

python bench/latency.py [--quick]
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from functools import partial

import rivals
import subjects
from baselines import direct, nginx_origin, nginx_proxy
from harness import CLIENT_CORE, BenchError, Column, Row, Running, Subject, measure, parse_arguments, report, run_main

COLUMNS = [
    Column("added", "added p50 ms", 3, ratio=True, less_is_better=True),
    Column("p50", "p50 ms", 3),
    Column("p99", "p99 ms", 3),
]


def ask_again_and_again(running: Running, seconds: float) -> list[float]:
    """Milliseconds of each request on one connection, measured by a blocking socket: the least a client can add."""
    request = f"GET / HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode()
    took: list[float] = []
    with socket.create_connection(("127.0.0.1", running.port), timeout=5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            sock.sendall(request)
            answer = sock.recv(65536)
            head, _, body = answer.partition(b"\r\n\r\n")
            while b"\r\n\r\n" not in answer or len(body) < 1024:
                piece = sock.recv(65536)
                if not piece:
                    raise BenchError("the connection was closed")
                answer += piece
                head, _, body = answer.partition(b"\r\n\r\n")
            took.append((time.perf_counter() - begin) * 1000)
            if not head.startswith(b"HTTP/1.1 200"):
                raise BenchError(f"answered {head[:40]!r}")
    return took


def main() -> None:
    arguments = parse_arguments(__doc__, seconds=3)
    os.sched_setaffinity(0, {CLIENT_CORE})
    with nginx_origin() as origin:

        def one(running: Running, row: Row) -> None:
            ask_again_and_again(running, min(0.5, arguments.seconds))
            straight = statistics.median(ask_again_and_again(origin, min(1.0, arguments.seconds)))
            took = sorted(ask_again_and_again(running, arguments.seconds))
            p50 = statistics.median(took)
            row.add(added=max(0.0, p50 - straight), p50=p50, p99=took[int(len(took) * 0.99)])

        the_subjects: dict[str, Subject] = {
            "edgetun TLS": partial(subjects.tunnel, origin, transport="tls"),
            "edgetun QUIC (qh3)": partial(subjects.tunnel, origin, transport="quic"),
            "nginx reverse proxy (no tunnel)": partial(nginx_proxy, origin),
            "frp tcp, TLS": partial(rivals.frp, origin, kind="tcp", transport="tls"),
            "frp tcp, QUIC": partial(rivals.frp, origin, kind="tcp", transport="quic"),
            "frp http, TLS": partial(rivals.frp, origin, kind="http", transport="tls"),
            "direct (no hop)": partial(direct, origin),
        }
        rows = measure(the_subjects, one, repeats=arguments.repeats, only=arguments.only)
    report("latency", "One visitor: median latency beyond a direct request, 1 KB", rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

"""TCP and UDP tunnels: bulk, new connections per second, datagrams per second, and what each costs of the servers' CPU.

python bench/streams.py [--megabytes 256] [--quick]
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import rivals
import subjects
from baselines import bulk_origin, direct, nginx_origin
from bulk import MB, download, megabytes_per_second, upload
from harness import (
    CLIENT_CORE,
    PYTHON,
    ROOT,
    BenchError,
    Column,
    Row,
    Running,
    Stage,
    Subject,
    cpu_of,
    free_port,
    is_echoing,
    measure,
    parse_arguments,
    report,
    run_main,
    wait_until,
    wrk,
)
from peers import require

TCP_COLUMNS = [
    Column("down", "down MB/s", 0, ratio=True),
    Column("up", "up MB/s", 0, ratio=True),
    Column("cpu_gb", "CPU s per GB down", 2),
    Column("connects", "connections/s", 0, ratio=True),
    Column("us_connect", "CPU us per connection", 0, ratio=True, less_is_better=True),
]
UDP_COLUMNS = [
    Column("rate", "echoes/s", 0, ratio=True),
    Column("us_echo", "CPU us per echo", 1, ratio=True, less_is_better=True),
    Column("lost", "lost %", 2),
]
VISITORS = 8
"""Sockets that echo at one time, each a flow of its own."""
UNDERWAY = 64
"""Datagrams that each has on the way."""
SIZE = 200
UDP_SEGMENT = 103


@contextmanager
def udp_origin() -> Iterator[Running]:
    """A UDP echo on the client's core."""
    port = free_port()
    with Stage() as stage:
        process = stage.start("udp-echo", [PYTHON, str(ROOT / "bench" / "udp_echo.py"), str(port)], core=CLIENT_CORE)
        wait_until("UDP echo", lambda: is_echoing(port), [process])
        yield Running(port, (process,))


class Echoing:
    """One visitor: keeps `UNDERWAY` datagrams on the way, and takes what is silent for 0.2 s for lost."""

    def __init__(self, port: int) -> None:
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
        self._piece = bytes(SIZE)
        self._heard_at = time.perf_counter()
        self.underway = 0
        self.echoed = 0
        self.lost = 0

    def fill(self) -> None:
        wanted = UNDERWAY - self.underway
        if wanted < UNDERWAY // 4:
            return  # a few at once cost one system call
        segment = struct.pack("=H", SIZE)
        try:
            self.sock.sendmsg([self._piece] * wanted, [(socket.IPPROTO_UDP, UDP_SEGMENT, segment)])
        except BlockingIOError:
            return
        self.underway += wanted

    def read(self, now: float) -> None:
        for _ in range(UNDERWAY):
            try:
                size = len(self.sock.recv(65536))
            except BlockingIOError:
                break
            if size != SIZE:
                raise BenchError(f"a datagram of {size} bytes came back")
            self.echoed += 1
            self.underway = max(0, self.underway - 1)
            self._heard_at = now
        if self.underway and now - self._heard_at > 0.2:
            self.lost += self.underway
            self.underway = 0
            self._heard_at = now


def echo(port: int, seconds: float) -> tuple[float, float]:
    """Echoes per second, and the share that was lost."""
    visitors = [Echoing(port) for _ in range(VISITORS)]
    by_fd = {visitor.sock.fileno(): visitor for visitor in visitors}
    poll = select.epoll()
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    begin = now = time.perf_counter()
    try:
        for visitor in visitors:
            visitor.fill()
        while now - begin < seconds:
            ready = poll.poll(0.05)
            now = time.perf_counter()
            for visitor in [by_fd[fd] for fd, _ in ready] or visitors:
                visitor.read(now)
                visitor.fill()
    finally:
        poll.close()
        for visitor in visitors:
            visitor.sock.close()
    echoed = sum(visitor.echoed for visitor in visitors)
    lost = sum(visitor.lost for visitor in visitors)
    return echoed / (now - begin), lost / max(1, lost + echoed)


def main() -> None:
    arguments = parse_arguments(__doc__, repeats=3, seconds=5, extra={"megabytes": 256})
    size = (16 if arguments.quick else arguments.megabytes) * MB
    os.sched_setaffinity(0, {CLIENT_CORE})
    program = require("wrk")

    def bulk(running: Running, row: Row) -> None:
        megabytes_per_second(download, running, size // 8, 1)  # warm up
        with cpu_of(running) as spent:
            row.add(down=megabytes_per_second(download, running, size, 1))
        row.add(cpu_gb=spent[0] / size * 1e9, up=megabytes_per_second(upload, running, size, 1))

    def connects(running: Running, row: Row) -> None:
        headers = ["Connection: close"]
        wrk(program, running, connections=32, seconds=1, headers=headers)
        with cpu_of(running) as spent:
            got = wrk(program, running, connections=32, seconds=arguments.seconds, headers=headers)
        row.add(connects=got.rps, us_connect=spent[0] / max(1, got.requests) * 1e6)

    def tcp_subjects(origin: Running) -> dict[str, Subject]:
        return {
            "edgetun TLS": partial(subjects.stream, origin, transport="tls"),
            "edgetun QUIC (qh3)": partial(subjects.stream, origin, transport="quic"),
            "rathole TLS": partial(rivals.rathole, origin),
            "frp tcp, TLS": partial(rivals.frp, origin, kind="tcp", transport="tls"),
            "frp tcp, QUIC": partial(rivals.frp, origin, kind="tcp", transport="quic"),
            "direct (no hop)": partial(direct, origin),
        }

    with bulk_origin() as origin:
        rows = measure(tcp_subjects(origin), bulk, repeats=arguments.repeats, only=arguments.only)
    with nginx_origin() as origin:
        for row, other in zip(
            rows,
            measure(tcp_subjects(origin), connects, repeats=arguments.repeats, only=arguments.only),
            strict=True,
        ):
            row.figures.update(other.figures)
            row.note = row.note or other.note
    title = f"TCP tunnels: {size // MB} MB, and a connection per request of 1 KB; edge and agent on one core"
    report("streams", title, rows, TCP_COLUMNS, arguments)

    def datagrams(running: Running, row: Row) -> None:
        echo(running.port, min(1.0, arguments.seconds))
        with cpu_of(running) as spent:
            rate, lost = echo(running.port, arguments.seconds)
        row.add(rate=rate, lost=lost * 100, us_echo=spent[0] / max(1.0, rate * arguments.seconds) * 1e6)

    with udp_origin() as origin:
        udp_subjects: dict[str, Subject] = {
            "edgetun TLS": partial(subjects.stream, origin, transport="tls", kind="udp"),
            "edgetun QUIC (qh3)": partial(subjects.stream, origin, transport="quic", kind="udp"),
            "frp udp, TLS": partial(rivals.frp, origin, kind="udp", transport="tls"),
            "frp udp, QUIC": partial(rivals.frp, origin, kind="udp", transport="quic"),
            "direct (no hop)": partial(direct, origin),
        }
        rows = measure(udp_subjects, datagrams, repeats=arguments.repeats, only=arguments.only)
    title = f"UDP tunnels: {VISITORS} visitors, each with {UNDERWAY} datagrams of {SIZE} bytes on the way, echoed"
    report("streams-udp", title, rows, UDP_COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

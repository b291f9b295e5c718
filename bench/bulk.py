"""Large bodies: 256 MB down and up, over 1 connection and 8, and what 1 GB and a slow reader do to memory.

python bench/bulk.py [--megabytes 256] [--quick]
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

import rivals
import subjects
from baselines import bulk_origin, direct, nginx_proxy
from harness import (
    CLIENT_CORE,
    BenchError,
    Column,
    Row,
    Running,
    Subject,
    cpu_of,
    measure,
    parse_arguments,
    report,
    run_main,
)

MB = 1_000_000

COLUMNS = [
    Column("down1", "down MB/s", 0, ratio=True),
    Column("down8", "down, 8 streams", 0),
    Column("up1", "up MB/s", 0, ratio=True),
    Column("up8", "up, 8 streams", 0),
    Column("cpu_gb", "CPU s per GB down", 2),
    Column("grown", "RSS + MB after 1 GB", 1),
    Column("slow", "RSS + MB, slow reader", 1),
]
SPEED_COLUMNS, MEMORY_COLUMNS = COLUMNS[:5], COLUMNS[5:]


def _connect(running: Running, receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(60)
    sock.connect(("127.0.0.1", running.port))
    return sock


def _read_head(sock: socket.socket) -> bytes:
    """Reads a response's head; returns what came of the body with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(4096)
        if not piece:
            raise BenchError("closed before a response")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"answered {head[:60]!r}")
    return rest


def download(running: Running, size: int) -> None:
    with _connect(running) as sock:
        sock.sendall(f"GET /{size} HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode())
        left = size - len(_read_head(sock))
        buffer = bytearray(1024 * 1024)
        while left > 0:
            count = sock.recv_into(buffer)
            if not count:
                raise BenchError(f"broken off with {left:,} bytes to come")
            left -= count


def upload(running: Running, size: int) -> None:
    with _connect(running) as sock:
        sock.sendall(f"PUT / HTTP/1.1\r\nHost: {running.host}\r\nContent-Length: {size}\r\n\r\n".encode())
        piece = bytes(1024 * 1024)
        left = size
        while left > 0:
            part = piece if left >= len(piece) else piece[:left]
            sock.sendall(part)
            left -= len(part)
        _read_head(sock)


def megabytes_per_second(move: Callable[[Running, int], None], running: Running, size: int, streams: int) -> float:
    """The speed of `streams` connections that move `size` bytes together."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            move(running, size // streams)
        except (OSError, BenchError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(streams)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchError(str(failures[0]))
    return size / MB / (time.perf_counter() - begin)


def growth_of_slow_reader(running: Running, size: int, seconds: float) -> float:
    """How much the servers' memory grows, in MB, while a visitor reads 1 MB a second of a large body, then leaves."""
    before = running.rss_bytes()
    most = before
    with _connect(running, 64 * 1024) as sock:
        sock.sendall(f"GET /{size} HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode())
        _read_head(sock)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sock.recv(50_000)
            most = max(most, running.rss_bytes())
            time.sleep(0.05)
    return (most - before) / MB


def main() -> None:
    arguments = parse_arguments(__doc__, repeats=3, seconds=5, extra={"megabytes": 256})
    size = (16 if arguments.quick else arguments.megabytes) * MB
    os.sched_setaffinity(0, {CLIENT_CORE})

    def speed(running: Running, row: Row) -> None:
        megabytes_per_second(download, running, size // 8, 1)  # warm up
        with cpu_of(running) as spent:
            row.add(down1=megabytes_per_second(download, running, size, 1))
        row.add(cpu_gb=spent[0] / size * 1e9)
        row.add(down8=megabytes_per_second(download, running, size, 8))
        row.add(up1=megabytes_per_second(upload, running, size, 1))
        row.add(up8=megabytes_per_second(upload, running, size, 8))

    def memory(running: Running, row: Row) -> None:
        megabytes_per_second(download, running, size // 8, 1)
        megabytes_per_second(upload, running, size // 8, 1)
        row.add(slow=growth_of_slow_reader(running, 1000 * MB, arguments.seconds))
        before = running.rss_bytes()
        for process in running.servers:
            process.forget_peak()
        whole = 4 * size
        megabytes_per_second(download, running, whole, 1)
        megabytes_per_second(upload, running, whole, 1)
        row.add(grown=(sum(process.rss_bytes(peak=True) for process in running.servers) - before) / MB)

    with bulk_origin() as origin:
        the_subjects: dict[str, Subject] = {
            "edgetun TLS": partial(subjects.tunnel, origin, transport="tls"),
            "edgetun QUIC (qh3)": partial(subjects.tunnel, origin, transport="quic"),
            "frp tcp, TLS": partial(rivals.frp, origin, kind="tcp", transport="tls"),
            "frp tcp, QUIC": partial(rivals.frp, origin, kind="tcp", transport="quic"),
            "frp http, TLS": partial(rivals.frp, origin, kind="http", transport="tls"),
            "rathole TLS": partial(rivals.rathole, origin),
            "nginx reverse proxy (no tunnel)": partial(nginx_proxy, origin),
            "direct (no hop)": partial(direct, origin),
        }
        rows = measure(the_subjects, speed, repeats=arguments.repeats, only=arguments.only)
        title = f"Bulk: {size // MB} MB, edge and agent on one core"
        report("bulk", title, rows, SPEED_COLUMNS, arguments)
        tunnels = {name: the_subjects[name] for name in list(the_subjects)[:4]}
        rows = measure(tunnels, memory, repeats=1, only=arguments.only)
        title = (
            f"Memory of edge and agent together: {4 * size // MB} MB down and up, and a visitor who reads 1 MB a second"
        )
        report("bulk-memory", title, rows, MEMORY_COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

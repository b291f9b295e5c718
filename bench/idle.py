"""Idle visitors: what 10,000 keep-alive connections, each of which asked once, cost the exit node and the agent; and over TLS.

python bench/idle.py [--connections 10000] [--quick]
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import time
from functools import partial

import rivals
import subjects
from baselines import ONE_KB, nginx_cache, nginx_origin, nginx_proxy, nginx_tls
from harness import CLIENT_CORE, BenchError, Column, Row, Running, Subject, measure, parse_arguments, report, run_main

from edgetun_core.http.h2 import PREFACE, render_block
from edgetun_core.http.h2.frames import SETTINGS_ACK, build_headers, build_settings

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

    def one(running: Running, row: Row, *, h2: bool = False) -> None:
        request = f"GET / HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode()
        tls = trusting_all(h2) if running.scheme == "https" else None

        def ask(stack: contextlib.ExitStack) -> None:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=20))
            if tls is not None:
                sock = stack.enter_context(tls.wrap_socket(sock, server_hostname=running.host))
            if h2:
                ask_h2(sock, running.host)
                return
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

    alone: list[Row] = []
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

    with nginx_origin(fresh_s=3600) as origin:
        for name, subject, h2 in (
            ("edgetun, plain", partial(subjects.http, origin, cache="1h"), False),
            ("edgetun, TLS", partial(subjects.http, origin, cache="1h", https=True), False),
            ("edgetun, HTTP/2 over TLS", partial(subjects.http, origin, cache="1h", https=True), True),
            ("nginx proxy_cache, plain", partial(nginx_cache, origin), False),
            ("nginx proxy_cache, TLS", partial(nginx_tls, origin, subjects.HOST), False),
            ("nginx proxy_cache, HTTP/2 over TLS", partial(nginx_tls, origin, subjects.HOST, h2=True), True),
        ):
            alone += measure({name: subject}, partial(one, h2=h2), repeats=arguments.repeats, only=arguments.only)
    title = f"{count:,} idle visitors at an exit node alone, one cached request each"
    report("idle-tls", title, alone, [COLUMNS[0], COLUMNS[2]], arguments)


def trusting_all(h2: bool) -> ssl.SSLContext:
    """Of a visitor who takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2" if h2 else "http/1.1"])
    return context


def ask_h2(sock: socket.socket, host: str) -> None:
    """One request over HTTP/2, and the acknowledgement that is owed."""
    fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", host.encode()), (b":path", b"/")]
    sock.sendall(PREFACE + build_settings({}) + SETTINGS_ACK + build_headers(1, render_block(fields), 16_384, end=True))
    received = b""
    while len(received) < len(ONE_KB):
        piece = sock.recv(65536)
        if not piece:
            raise BenchError("a visitor was not answered over HTTP/2")
        received += piece


if __name__ == "__main__":
    run_main(main)

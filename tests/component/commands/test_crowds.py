"""What a crowd does to a process: idle and slow connections, the demo, and the load generator itself."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgetun_core.exits import ExitCode
from edgetun_core.process import raise_open_files_limit
from support.commands import Command, an_origin, run, visit
from support.requirements import missing
from support.waiting import wait_for

IDLE = 10_000
SLOW = 2_000
AT_ONCE = 500
MOST_GROWTH_BYTES = 100 * 1024 * 1024
PORTS = ("--http-port", "0", "--https-port", "-1")


@contextmanager
def connections(port: int, count: int, first: bytes) -> Iterator[list[socket.socket]]:
    """So many connections, each of which has sent `first`."""
    opened: list[socket.socket] = []
    try:
        while len(opened) < count:
            with selectors.DefaultSelector() as selector:
                for _ in range(min(AT_ONCE, count - len(opened))):
                    sock = socket.socket()
                    sock.setblocking(False)
                    opened.append(sock)
                    sock.connect_ex(("127.0.0.1", port))
                    selector.register(sock, selectors.EVENT_WRITE)
                end = time.monotonic() + 20
                while selector.get_map():
                    assert time.monotonic() < end, "connections were not taken"
                    for key, _ in selector.select(1):
                        selector.unregister(key.fileobj)
                        if first:
                            key.fileobj.send(first)  # type: ignore[union-attr]
        yield opened
    finally:
        for sock in opened:
            sock.close()


def is_open(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_ten_thousand_idle_and_two_thousand_slow_visitors_keep_nobody_from_an_answer(tmp_path: Path) -> None:
    if raise_open_files_limit() < IDLE + SLOW + 500:
        missing(f"a limit of {IDLE + SLOW + 500} open files (ulimit -Hn)")
    flags = ("--host", "shop", "--state", str(tmp_path), "--metrics", "127.0.0.1:0", *PORTS)
    with an_origin() as origin, Command("edgetun", "http", origin.url, *flags) as edge:
        port = int(edge.line(r"http://shop\.localhost:(\d+)")[1])
        admin = int(edge.line(r"metrics at http://127\.0\.0\.1:(\d+)")[1])
        assert visit(port, host="shop.localhost").status == 200
        before = edge.resident_bytes()
        slow = b"GET /slowloris HTTP/1.1\r\nHost: shop.localhost\r\nX-Slow: "
        with connections(port, IDLE, b"") as idle, connections(port, SLOW, slow) as slowly:

            def held() -> bool:
                page = visit(admin, "/metrics").body
                return any(
                    line.startswith("edgetun_visitor_connections ") and float(line.split()[1]) >= IDLE + SLOW
                    for line in page.splitlines()
                )

            wait_for(held, what="every connection is taken")
            for _ in range(3):
                for sock in slowly:
                    if is_open(sock):
                        sock.send(b"x")
                began = time.monotonic()
                assert visit(port, host="shop.localhost").status == 200
                assert time.monotonic() - began < 1.0
            assert sum(is_open(sock) for sock in idle) == IDLE
            assert edge.resident_bytes() - before < MOST_GROWTH_BYTES
        assert "/slowloris" not in origin.paths
        assert edge.stop() == ExitCode.OK


def test_the_demo_keeps_its_promise() -> None:
    demo = run("edgetun", "demo", "--visitors", "500", "--within", "1s", "--json")
    assert demo.ended() == ExitCode.OK, demo.said
    told = json.loads(demo.out)
    assert told["kept"]
    assert told["through_edgetun"]["origin_requests"] <= told["allowed_origin_requests"]
    assert told["directly"]["origin_requests"] == 500


def test_load_counts_what_visitors_met_and_says_by_its_exit_code_how_it_went() -> None:
    with an_origin() as origin:
        flags = ("--visitors", "50", "--within", "100ms", "--json")
        done = run("edgetun", "load", f"{origin.url}/page", *flags)
        assert done.ended() == ExitCode.OK, done.said
        assert len(origin.paths) == 50
        assert json.loads(done.out)
        url = origin.url
    assert run("edgetun", "load", url, *flags).ended() == ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("http://192.0.2.1/",), "--i-own-this-host"),
        (("ftp://localhost/",), "http"),
        ((), "URL is missing"),
        (("http://localhost/", "--rate", "10"), "--duration"),
        (("http://localhost/", "--header", "nonsense"), "Name: value"),
        (("http://localhost/", "--connect", "nowhere"), "HOST:PORT"),
        (("http://localhost/", "--body", "@/nonexistent"), "/nonexistent"),
        (("https://localhost/", "--cacert", "/nonexistent"), "/nonexistent"),
        (("http://localhost/", "--visitors", "0"), "--visitors"),
    ],
)
def test_load_refuses_wrong_input_and_other_peoples_servers(argv: tuple[str, ...], says: str) -> None:
    done = run("edgetun", "load", *argv)
    assert done.ended() == ExitCode.USAGE, done.said
    assert says in done.err
    assert "Traceback" not in done.err

"""`edgetun http` over HTTP/3, as a process: a cached page, and without it by a flag."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from support.commands import Command, an_origin, visit
from support.h3_client import h3_visitor


def started(origin: str, state: Path, *flags: str) -> Command:
    ports = ("--http-port", "-1", "--https-port", "0")
    return Command("edgetun", "http", origin, "--host", "shop", "--state", str(state), *ports, *flags)


def test_the_command_serves_http3_on_its_https_port_and_counts_it(tmp_path: Path) -> None:
    with (
        an_origin() as origin,
        started(origin.url, tmp_path, "--cache", "1m", "--metrics", "127.0.0.1:0") as edge,
    ):
        port = int(edge.line(r"https://shop\.localhost:(\d+)")[1])
        metrics = int(edge.line(r"metrics at http://127\.0\.0\.1:(\d+)/metrics")[1])

        async def ask() -> None:
            async with h3_visitor(port, server_name="shop.localhost") as visitor:
                for _ in range(5):
                    answer = await visitor.ask("/page", host=f"shop.localhost:{port}")
                    assert (answer.status, bytes(answer.body)) == (200, b"origin /page")

        asyncio.run(ask())
        assert origin.paths.count("/page") == 1
        said = visit(metrics, "/metrics").body
        assert "edgetun_http3_requests_total 5.0" in said
        assert "edgetun_http3_connections_total 1.0" in said


def test_no_http3_leaves_the_udp_port_to_others(tmp_path: Path) -> None:
    with an_origin() as origin, started(origin.url, tmp_path, "--no-http3") as edge:
        port = int(edge.line(r"https://shop\.localhost:(\d+)")[1])
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", port))

        async def ask() -> None:
            async with asyncio.timeout(1.0), h3_visitor(port, server_name="shop.localhost"):
                pass

        with pytest.raises((TimeoutError, ConnectionError)):
            asyncio.run(ask())

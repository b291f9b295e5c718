"""edgetun, each way that a benchmark runs it. The only file here that knows its commands."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import BenchError, Process, Running, Stage, free_port, get_status, is_listening, wait_until

BIN = Path(sys.executable).parent
HOST = "bench.localhost"


def _command(name: str) -> str:
    return str(BIN / name)


@contextmanager
def http(origin: Running, *, cache: str = "", https: bool = False) -> Iterator[Running]:
    """`edgetun http PORT`: exit node and origin client in one process."""
    plain, secure = free_port(), free_port()
    with Stage() as stage:
        command = [
            _command("edgetun"), "http", str(origin.port), "--host", HOST, "--http-port", str(plain),
            "--https-port", str(secure) if https else "-1", "--state", str(stage.folder / "state"), "--quiet",
        ]  # fmt: skip
        process = stage.start("edgetun-http", command + (["--cache", cache] if cache else []))
        wait_until("edgetun http", lambda: get_status(plain, HOST) == 200, [process])
        yield Running(secure if https else plain, (process,), host=HOST, scheme="https" if https else "http")


@contextmanager
def tunnel(origin: Running, *, transport: str, engine: str = "qh3") -> Iterator[Running]:
    """`edgetun serve` and `edgetun-agent`, two processes on one core; `transport` is tls or quic."""
    plain, tunnel_port = free_port(), free_port()
    with Stage() as stage:
        state = str(stage.folder / "state")
        node = stage.start(
            "edgetun-serve",
            [
                _command("edgetun"), "serve", "--listen", "127.0.0.1", "--http-port", str(plain), "--https-port", "-1",
                "--tunnel-port", str(tunnel_port), "--state", state, "--public-host", "127.0.0.1",
                "--quic-engine", engine if transport == "quic" else "none", "--quiet",
            ],
        )  # fmt: skip
        wait_until("edgetun serve", lambda: is_listening(plain) and is_listening(tunnel_port), [node])
        agent = stage.start(
            "edgetun-agent",
            [
                _command("edgetun-agent"), "--cluster-token", _token(stage, state, tunnel_port),
                "--origin", f"http://127.0.0.1:{origin.port}", "--host", HOST,
            ],
        )  # fmt: skip
        path = "/1" if origin.servers[0].name == "bulk-origin" else "/"
        wait_until("edgetun tunnel", lambda: get_status(plain, HOST, path) == 200, [node, agent])
        yield Running(plain, (node, agent), host=HOST)


def _token(stage: Stage, state: str, tunnel_port: int) -> str:
    """Makes a cluster token as a person would, and reads it from what is printed."""
    process = stage.start("token", [_command("edgetun"), "token", "create", "--state", state])
    wait_until("edgetun token create", lambda: not process.is_running)
    found = re.search(r"edgetun_[A-Za-z0-9_-]+", process.log.read_text())
    if found is None:
        raise BenchError(f"edgetun token create printed no token (port {tunnel_port}):\n{process.tail()}")
    return found[0]


@contextmanager
def exit_node() -> Iterator[tuple[Stage, list[str], int]]:
    """The command of `edgetun-exitnode` with nothing to serve, for measuring its start; its plain port."""
    port = free_port()
    with Stage() as stage:
        snapshot = stage.folder / "snapshot"
        done = os.spawnv(os.P_WAIT, _command("edgetun"), ["edgetun", "compile", "-o", str(snapshot)])
        if done:
            raise BenchError("edgetun compile failed")
        yield (
            stage,
            [
                _command("edgetun-exitnode"), "--snapshot", str(snapshot), "--state", str(stage.folder / "state"),
                "--http-port", str(port), "--https-port", "-1", "--tunnel-port", "-1", "--listen", "127.0.0.1", "--quiet",
            ],
            port,
        )  # fmt: skip


def processes(running: Running) -> dict[str, Process]:
    """The servers by what they are: exit node, agent."""
    return {"exit node" if i == 0 else "agent": process for i, process in enumerate(running.servers)}

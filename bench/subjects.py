"""edgetun, each way that a benchmark runs it. The only file here that knows its commands."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import HERE, BenchError, Running, Site, Stage, free_port, get_status, is_echoing, is_listening, wait_until

BIN = Path(sys.executable).parent
HOST = "bench.localhost"

MANIFEST = """apiVersion: edgetun.dev/v1alpha1
kind: Tunnel
metadata:
  name: bench
spec:
  hostnames: [bench.localhost]
  origin:
    url: http://127.0.0.1:9
"""


def _command(name: str) -> str:
    return str(BIN / name)


def http_command(origin: int, plain: int, secure: int, state: str) -> list[str]:
    """`edgetun http` on these ports; -1 is none."""
    return [
        _command("edgetun"), "http", str(origin), "--host", HOST, "--http-port", str(plain), "--https-port", str(secure),
        "--state", state, "--quiet",
    ]  # fmt: skip


@contextmanager
def http(origin: Running, *, cache: str = "", https: bool = False) -> Iterator[Running]:
    """`edgetun http PORT`: exit node and origin client in one process."""
    plain, secure = free_port(), free_port() if https else -1
    with Stage() as stage:
        command = http_command(origin.port, plain, secure, str(stage.folder / "state"))
        process = stage.start("edgetun-http", command + (["--cache", cache] if cache else []))
        wait_until("edgetun http", lambda: get_status(plain, HOST) == 200, [process])
        yield Running(secure if https else plain, (process,), host=HOST, scheme="https" if https else "http")


@contextmanager
def tunnel(origin: Running, *, transport: str, engine: str = "qh3", site: Site = HERE) -> Iterator[Running]:
    """`edgetun serve` and `edgetun-agent`, two processes on one core; `transport` is tls, quic or auto."""
    plain, tunnel_port = free_port(), free_port()
    with Stage() as stage:
        state = str(stage.folder / "state")
        node = stage.start(
            "edgetun-serve",
            [
                _command("edgetun"), "serve", "--listen", site.listen, "--http-port", str(plain), "--https-port", "-1",
                "--tunnel-port", str(tunnel_port), "--state", state, "--public-host", site.address,
                "--quic-engine", "none" if transport == "tls" else engine, "--quiet",
            ],
        )  # fmt: skip
        wait_until("edgetun serve", lambda: is_listening(plain) and is_listening(tunnel_port), [node])
        agent = stage.start(
            "edgetun-agent",
            [
                *site.to_agent, _command("edgetun-agent"), "--origin", f"http://127.0.0.1:{origin.port}", "--host", HOST,
                "--transport", transport, "--engine", engine, "--state", str(stage.folder / "agent"), "--quiet",
            ],
            core=site.agent_core,
            env={"EDGETUN_CLUSTER_TOKEN": _token(state)},
        )  # fmt: skip
        path = "/1" if origin.servers[0].name == "bulk-origin" else "/"
        wait_until("edgetun tunnel", lambda: get_status(plain, HOST, path) == 200, [node, agent])
        yield Running(plain, (node, agent), host=HOST, agents_port=tunnel_port)


@contextmanager
def stream(origin: Running, *, transport: str, kind: str = "tcp", engine: str = "qh3") -> Iterator[Running]:
    """The same for a TCP or UDP tunnel by a port; a TCP one to an HTTP origin, so that the same clients can be used."""
    port, tunnel_port, plain = free_port(), free_port(), free_port()
    with Stage() as stage:
        state = str(stage.folder / "state")
        node = stage.start(
            "edgetun-serve",
            [
                _command("edgetun"), "serve", "--listen", "127.0.0.1", "--http-port", str(plain), "--https-port", "-1",
                "--tunnel-port", str(tunnel_port), "--state", state, "--public-host", "127.0.0.1",
                f"--{kind}-ports", str(port), "--quic-engine", engine if transport == "quic" else "none", "--quiet",
            ],
        )  # fmt: skip
        wait_until("edgetun serve", lambda: is_listening(plain) and is_listening(tunnel_port), [node])
        agent = stage.start(
            "edgetun-agent",
            [
                _command("edgetun-agent"), "--origin", f"{kind}://127.0.0.1:{origin.port}", "--port", str(port),
                "--transport", transport, "--engine", engine, "--state", str(stage.folder / "agent"), "--quiet",
            ],
            env={"EDGETUN_CLUSTER_TOKEN": _token(state)},
        )  # fmt: skip
        path = "/1" if origin.servers[0].name == "bulk-origin" else "/"
        if kind == "tcp":
            wait_until("edgetun tunnel", lambda: get_status(port, path=path) == 200, [node, agent])
        else:
            wait_until("edgetun tunnel", lambda: is_echoing(port), [node, agent])
        yield Running(port, (node, agent))


def _token(state: str) -> str:
    """Makes a cluster token as a person would, and reads it from what is printed."""
    command = [_command("edgetun"), "token", "create", "--state", state]
    for _ in range(20):  # the server writes down where it is a moment after its ports are open
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"edgetun_[A-Za-z0-9_-]{16,}", done.stdout)
        if found is not None:
            return found[0]
        time.sleep(0.1)
    raise BenchError(f"edgetun token create printed no token: {done.stderr.strip()}")


@contextmanager
def exit_node() -> Iterator[tuple[Stage, list[str], int]]:
    """The command of `edgetun-exitnode` with one tunnel and no agent, for measuring its start; and its plain port."""
    port = free_port()
    with Stage() as stage:
        snapshot = str(stage.folder / "snapshot")
        manifest = stage.write("tunnel.yaml", MANIFEST)
        done = subprocess.run(
            [_command("edgetun"), "compile", "-f", manifest, "-o", snapshot],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"edgetun compile failed: {done.stderr.strip()}")
        command = [
            _command("edgetun-exitnode"), "--snapshot", snapshot, "--state", str(stage.folder / "state"),
            "--http-port", str(port), "--https-port", "-1", "--tunnel-port", "-1", "--listen", "127.0.0.1", "--quiet",
        ]  # fmt: skip
        yield stage, command, port

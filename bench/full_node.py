"""A full exit node at rest: the memory of one with 1,000 agents and 10,000 idle visitors, and what each of them costs.

Agents are sessions of the agents' own code in one process (`light_agents.py`), each with a tunnel of its own. Visitors are keep-alive
connections that have asked once, all names under one wildcard certificate: over TLS, every second one HTTP/2, or over plain HTTP, as behind a load balancer that ends TLS.

python bench/full_node.py [--agents 1000] [--visitors 10000] [--quick]
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import (
    CLIENT_CORE,
    PYTHON,
    BenchError,
    Column,
    Process,
    Row,
    Running,
    Stage,
    Subject,
    free_port,
    is_listening,
    measure,
    parse_arguments,
    report,
    run_main,
    wait_until,
)
from idle import ask_h2, trusting_all
from light_agents import KEY, service
from subjects import BIN

from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import OriginRule, RouteRule, Snapshot, TunnelRule, encode_snapshot

HERE = Path(__file__).resolve().parent
COLUMNS = [
    Column("empty", "empty, MB", 1),
    Column("agent", "KB per agent"),
    Column("http1", "KB per visitor, HTTP/1.1", 1),
    Column("http2", "KB per visitor, HTTP/2", 1),
    Column("whole", "all, MB", 1),
    Column("cpu", "CPU s in 5 s of rest", 3),
]


DOMAIN = "tunnel.localhost"


@dataclass(frozen=True, slots=True)
class Node(Running):
    """An exit node whose agents have not come yet."""

    stage: Stage | None = None
    engine: str = ""
    plain_port: int = 0
    is_plain: bool = False
    """Visitors come without TLS."""
    tunnel_port: int = 0


@contextmanager
def node(engine: str, agents: int, *, is_plain: bool = False) -> Iterator[Node]:
    """An exit node with a tunnel for each agent."""
    plain, secure, tunnel = free_port(), free_port(), free_port()
    with Stage() as stage:
        tunnels = tuple(
            TunnelRule(service(n), (f"t{n}.{DOMAIN}",), (OriginRule("main", "http://127.0.0.1:9"),), (RouteRule(),))
            for n in range(agents)
        )
        ordered = tuple(sorted(tunnels, key=lambda rule: rule.id))
        snapshot = stage.folder / "snapshot"
        snapshot.write_bytes(encode_snapshot(Snapshot(1, "bench", "here", ordered, (KEY.public,))))
        (stage.folder / "ca.pem").write_bytes(DevelopmentCA(stage.folder / "state" / "ca").ca_pem)
        certificate, key = stage.folder / "cert.pem", stage.folder / "key.pem"
        subprocess.run(
            [
                "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", f"/CN={DOMAIN}", "-addext", f"subjectAltName=DNS:*.{DOMAIN}",
                "-keyout", str(key), "-out", str(certificate),
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
        process = stage.start(
            "edgetun-exitnode",
            [
                str(BIN / "edgetun-exitnode"), "--snapshot", str(snapshot), "--state", str(stage.folder / "state"),
                "--listen", "127.0.0.1", "--http-port", str(plain), "--https-port", str(secure), "--tunnel-port", str(tunnel),
                "--certificate", f"{certificate}:{key}", "--quic-engine", "none" if engine == "tls" else engine, "--quiet",
            ],
        )  # fmt: skip
        wait_until("edgetun-exitnode", lambda: is_listening(secure) and is_listening(tunnel), [process])
        yield Node(
            secure,
            (process,),
            scheme="https",
            stage=stage,
            engine=engine,
            plain_port=plain,
            is_plain=is_plain,
            tunnel_port=tunnel,
        )


def bring_agents(node: Node, count: int) -> Process:
    assert node.stage is not None
    folder = node.stage.folder
    process = node.stage.start(
        "light-agents",
        [PYTHON, str(HERE / "light_agents.py"), str(folder), node.engine, str(node.tunnel_port), str(count)],
        core=CLIENT_CORE,
    )
    wait_until("the agents", (folder / "up").exists, [*node.servers, process], 120)
    return process


def main() -> None:
    arguments = parse_arguments(__doc__, repeats=1, seconds=5, extra={"agents": 1000, "visitors": 10_000})
    agents, visitors = arguments.agents, arguments.visitors
    if arguments.quick:
        agents, visitors = min(agents, 50), min(visitors, 400)
    half = visitors // 2
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(visitors + 100, visitors + 2 * agents + 100)
    if hard < needed:
        raise BenchError(f"{needed} open files are needed, the limit is {hard}; take fewer: --visitors, --agents")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {CLIENT_CORE})
    contexts = {h2: trusting_all(h2) for h2 in (False, True)}

    def ask(running: Node, stack: contextlib.ExitStack, number: int, h2: bool) -> None:
        name = f"t{number % agents}.{DOMAIN}"
        port = running.plain_port if running.is_plain else running.port
        sock: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        stack.enter_context(sock)
        if not running.is_plain:
            sock = stack.enter_context(contexts[h2].wrap_socket(sock, server_hostname=name))
        if h2:
            ask_h2(sock, name)
            return
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
        received = sock.recv(65536)
        if not received.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"a visitor was answered {received!r}")

    def one(running: Running, row: Row) -> None:
        assert isinstance(running, Node)
        (server,) = running.servers
        with contextlib.ExitStack() as warm:  # what the first of everything costs is not theirs: 404 and a certificate
            tls = warm.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=20))
            warm.enter_context(contexts[False].wrap_socket(tls, server_hostname=f"warm.{DOMAIN}"))
        time.sleep(0.5)
        empty = server.rss_bytes()
        light = bring_agents(running, agents)
        time.sleep(1.0)
        with_agents = server.rss_bytes()
        row.add(empty=empty / 1e6, agent=(with_agents - empty) / agents / 1e3)
        with contextlib.ExitStack() as stack:
            before = with_agents
            kinds = (
                [(False, "http1", visitors)] if running.is_plain else [(False, "http1", half), (True, "http2", half)]
            )
            for h2, figure, count in kinds:
                for number in range(count):
                    ask(running, stack, number, h2)
                time.sleep(0.5)
                now = server.rss_bytes()
                row.add(**{figure: (now - before) / count / 1e3})
                before = now
            cpu = server.cpu_s()
            time.sleep(arguments.seconds)
            row.add(whole=server.rss_bytes() / 1e6, cpu=(server.cpu_s() - cpu) / arguments.seconds * 5)
            if not light.is_running:
                raise BenchError(f"agents did not stay:\n{light.tail()}")
        light.stop()
        (running.stage.folder / "up").unlink()  # type: ignore[union-attr] # measured again when others disturbed it

    subjects: dict[str, Subject] = {
        "agents over TLS": partial(node, "tls", agents),
        "agents over QUIC (qh3)": partial(node, "qh3", agents),
        "agents over TLS, visitors without TLS": partial(node, "tls", agents, is_plain=True),
    }
    rows = measure(subjects, one, repeats=arguments.repeats, only=arguments.only, tries=1)
    title = f"Memory of an exit node with {agents:,} agents and {visitors:,} idle visitors"
    report("full-node", title, rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

"""TCP and UDP tunnels as people use them: Redis, SSH and DNS behind `edgetun tcp`, `udp` and `up`, and `edgetun serve` with an agent."""

from __future__ import annotations

import hashlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.query
import pytest

from edgetun_core.exits import ExitCode
from support.commands import Command, run
from support.daemons import a_dns_server, a_redis, an_sshd, program
from support.serving import Server
from support.streams import free_port
from support.waiting import wait_for

MANIFEST = """apiVersion: edgetun.dev/v1alpha1
kind: Tunnel
metadata: {{name: redis}}
spec:
  tcp: {{port: {port}}}
  origin: {{url: "tcp://localhost:{redis}"}}
"""


def redis(port: int, *words: str) -> str:
    done = subprocess.run(
        [program("redis-cli", "redis-server"), "-h", "127.0.0.1", "-p", str(port), *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with a_redis(tmp_path_factory.mktemp("redis")) as port:
        yield port


def test_redis_behind_edgetun_tcp(database: int, tmp_path: Path) -> None:
    metrics = free_port()
    with Command(
        "edgetun", "tcp", str(database), "--metrics", f"127.0.0.1:{metrics}", "--state", str(tmp_path)
    ) as edge:
        port = int(edge.line(r"tcp://127\.0\.0\.1:(\d+) -> tcp://localhost:\d+")[1])
        edge.line("ready in")
        assert redis(port, "SET", "greeting", "hello") == "OK"
        assert redis(port, "GET", "greeting") == "hello"
        value = "x" * 1_000_000
        with socket.create_connection(("127.0.0.1", port), 20) as sock:
            sock.sendall(f"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$1000000\r\n{value}\r\nGET big\r\n".encode())
            with sock.makefile("rb") as stream:
                assert stream.readline() == b"+OK\r\n"
                assert stream.readline() == b"$1000000\r\n"
                assert stream.read(1_000_000) == value.encode()
        edge.line(r"TCP 127\.0\.0\.1:\d+ 200 ")  # the list of connections
        said = _metrics(metrics)
        assert 'edgetun_stream_connections_total{tunnel="local/tcp"} 3.0' in said
        assert edge.stop() == ExitCode.OK
        assert "Traceback" not in edge.said


def _metrics(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as stream:
            return stream.read().decode()


def test_ssh_behind_edgetun_tcp(tmp_path: Path) -> None:
    with (
        an_sshd(tmp_path) as sshd,
        Command("edgetun", "tcp", f"127.0.0.1:{sshd.port}", "--port", str(free_port())) as edge,
    ):
        port = int(edge.line(r"tcp://127\.0\.0\.1:(\d+) -> ")[1])
        edge.line("ready in")
        # Standard input ends before the answer begins: half-close, in the middle of an encrypted session.
        done = subprocess.run(
            sshd.command(port, "sha256sum"), input=b"x" * 300_000, capture_output=True, timeout=40, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[0].decode() == hashlib.sha256(b"x" * 300_000).hexdigest()
        failing = subprocess.run(sshd.command(port, "exit 7"), capture_output=True, timeout=40, check=False)
        assert failing.returncode == 7
        assert edge.stop() == ExitCode.OK


def test_a_port_that_is_taken_is_said_at_once(database: int) -> None:
    with run("edgetun", "tcp", "5432", "--port", str(database)) as refused:
        assert refused.ended() == ExitCode.PORT_TAKEN
        assert f"127.0.0.1:{database} is taken by another program; choose another port with --port" in refused.err
    for wrong, text in (
        (("http://localhost:3000",), "not a tcp:// URL"),
        (("0",), "no server has port 0"),
        (("5432", "--trusted-proxy", "here"), "is not a network"),
    ):
        with run("edgetun", "tcp", *wrong) as refused:
            assert refused.ended() == ExitCode.USAGE, refused.said
            assert text in refused.err


def test_manifests_serve_tcp_and_follow_their_files(database: int, tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    file = tmp_path / "tunnel.yaml"
    file.write_text(MANIFEST.format(port=first, redis=database))
    with Command("edgetun", "up", "-f", str(file), "--http-port", "0", "--https-port", "-1") as edge:
        edge.line(rf"tcp://127\.0\.0\.1:{first} -> tcp://localhost:{database}")
        edge.line("ready in")
        assert redis(first, "PING") == "PONG"
        file.write_text(MANIFEST.format(port=second, redis=database))
        wait_for(lambda: redis(second, "PING") == "PONG")
        assert "refused" in redis(first, "PING").lower()
        assert edge.stop() == ExitCode.OK


def test_an_agent_gets_a_port_of_the_server_and_keeps_it(server: Server, database: int, tmp_path: Path) -> None:
    token = server.token()
    flags = ("--origin", f"tcp://localhost:{database}", "--transport", "tls")
    ports = []
    for _ in range(2):
        with server.agent(token, tmp_path / "a", *flags) as agent:
            ports.append(int(agent.line(r"tcp://127\.0\.0\.1:(\d+) -> tcp://localhost:")[1]))
            agent.line("ready in")
            wait_for(lambda: redis(ports[-1], "PING") == "PONG")
            agent.line(r"TCP 127\.0\.0\.1:\d+ 200 ")
            assert agent.stop() == ExitCode.OK
    assert ports[0] == ports[1]
    with server.agent(token, tmp_path / "b", *flags[:2], "--port", "81") as refused:
        assert refused.ended() == ExitCode.REFUSED
        assert "does not give TCP port 81 away" in refused.err
    with server.agent(server.token(), tmp_path / "c", *flags[:2], "--port", str(ports[0])) as refused:
        assert refused.ended() == ExitCode.REFUSED
        assert f"TCP port {ports[0]} is taken by another tunnel" in refused.err


def look_up(port: int, name: str, kind: str = "A") -> dns.message.Message:
    """One question over UDP, asked again when there is no answer, as resolvers do."""
    question = dns.message.make_query(name, kind, use_edns=0, payload=4096)
    for _ in range(9):
        try:
            return dns.query.udp(question, "127.0.0.1", timeout=2, port=port)
        except dns.exception.Timeout:
            continue
    raise AssertionError(f"no answer about {name}")


def test_dns_behind_edgetun_udp(tmp_path: Path) -> None:
    metrics = free_port()
    with (
        a_dns_server(tmp_path) as server_port,
        Command(
            "edgetun",
            "udp",
            str(server_port),
            "--idle",
            "1s",
            "--metrics",
            f"127.0.0.1:{metrics}",
            "--state",
            str(tmp_path),
        ) as edge,
    ):
        port = int(edge.line(r"udp://127\.0\.0\.1:(\d+) -> udp://localhost:\d+")[1])
        edge.line("ready in")
        assert "192.0.2.7" in look_up(port, "shop.example.com").to_text()
        long = look_up(port, "long.example.com", "TXT")
        assert not long.flags & dns.flags.TC
        assert len(long.to_wire()) > 2400
        assert 'edgetun_stream_datagrams_in_total{tunnel="local/udp"}' in _metrics(metrics)
        edge.line(r"UDP 127\.0\.0\.1:\d+ 200 ")  # a flow that was silent for its time is over, and in the list
        assert edge.stop() == ExitCode.OK
        assert "Traceback" not in edge.said


def test_dns_behind_an_agent(server: Server, tmp_path: Path) -> None:
    with (
        a_dns_server(tmp_path) as server_port,
        server.agent(
            server.token(), tmp_path / "a", "--origin", f"udp://localhost:{server_port}", "--transport", "quic"
        ) as agent,
    ):
        port = int(agent.line(r"udp://127\.0\.0\.1:(\d+) -> udp://localhost:")[1])
        agent.line("ready in")
        assert "192.0.2.7" in look_up(port, "shop.example.com").to_text()
        assert len(look_up(port, "long.example.com", "TXT").to_wire()) > 2400
        assert agent.stop() == ExitCode.OK

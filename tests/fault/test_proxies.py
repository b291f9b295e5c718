"""Agents that reach the outside by nothing but a proxy: real proxies, in a network that has no other way."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetun_core.exits import ExitCode
from support.commands import Command, run
from support.impairment.packet_path import PacketPath, packet_path, what_is_missing_for_packets
from support.requirements import missing
from support.waiting import wait_for

BEHIND = "10.99.0.1"
"""The server's address: beyond the proxy, with no route to it from the agent's network."""
PAGE = "import http.client,sys;c=http.client.HTTPConnection(sys.argv[1],int(sys.argv[2]),timeout=10);c.request('GET','/',headers={'Host':sys.argv[3]});print(c.getresponse().read().decode())"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def network() -> Iterator[PacketPath]:
    reason = what_is_missing_for_packets()
    if reason:
        missing(reason)
    with packet_path() as path:
        for arguments in (
            ("addr", "add", f"{BEHIND}/32", "dev", "lo"),
            ("link", "set", "lo", "up"),
        ):
            subprocess.run(["ip", "-n", path.near.namespace, *arguments], check=True, timeout=10)
        yield path


@pytest.fixture(scope="module")
def server(network: PacketPath, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, Path]]:
    state = tmp_path_factory.mktemp("server")
    flags = ("--listen", BEHIND, "--public-host", BEHIND, "--https-port", "-1", "--http-port", "8080")
    with Command("edgetun", "serve", "--state", str(state), *flags, within=network.near.enter) as command:
        command.line("ready in")
        yield command, state


@contextlib.contextmanager
def a_proxy(network: PacketPath, kind: str, folder: Path) -> Iterator[str]:
    """A real proxy at the near end, which wants a user and a password; its URL."""
    program = {"http": "tinyproxy", "socks5": "microsocks"}[kind]
    if shutil.which(program) is None:
        missing(f"{program} is not installed")
    address = network.near.address
    if kind == "http":
        settings = folder / "tinyproxy.conf"
        settings.write_text(f"Port 3128\nListen {address}\nBasicAuth me secret-word\nTimeout 600\nMaxClients 100\n")
        argv = [program, "-d", "-c", str(settings)]
        port = 3128
    else:
        argv = [program, "-i", address, "-p", "1080", "-u", "me", "-P", "secret-word"]
        port = 1080
    process = subprocess.Popen([*network.near.enter, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        probe = f"import socket;socket.create_connection(('{address}',{port}),1)"
        wait_for(
            lambda: (
                subprocess.run(
                    [*network.far.enter, "python3", "-c", probe], check=False, capture_output=True, timeout=10
                ).returncode
                == 0
            )
        )
        yield f"{kind}://me:secret-word@{address}:{port}"
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def an_origin_at(network: PacketPath) -> Iterator[str]:
    """A local server beside the agent."""
    serve = (
        "import http.server\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "  def do_GET(self):\n"
        "    self.send_response(200);self.send_header('Content-Length','6');self.end_headers();self.wfile.write(b'laptop')\n"
        "  def log_message(self,*a):pass\n"
        "s=http.server.ThreadingHTTPServer(('127.0.0.1',0),H);print(s.server_address[1],flush=True);s.serve_forever()\n"
    )
    process = subprocess.Popen([*network.far.enter, "python3", "-c", serve], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def a_token(state: Path) -> str:
    made = run("edgetun", "token", "create", "--state", str(state))
    assert made.ended() == 0, made.said
    return made.out.strip()


def ask(network: PacketPath, host: str) -> str:
    """A visitor beside the server."""
    return subprocess.run(
        [*network.near.enter, "python3", "-c", PAGE, BEHIND, "8080", host],
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    ).stdout.strip()


@pytest.mark.parametrize("kind", ["http", "socks5"])
@pytest.mark.parametrize("by", ["flag", "environment"])
def test_an_agent_registers_and_serves_through_a_proxy_alone(network, server, tmp_path, kind, by) -> None:
    _, state = server
    token = a_token(state)
    host = f"{kind}-{by}"
    with a_proxy(network, kind, tmp_path) as url, an_origin_at(network) as origin:
        flags, environ = (["--proxy", url], {}) if by == "flag" else ([], {"HTTPS_PROXY": url})
        with Command(
            "edgetun-agent",
            *("--state", str(tmp_path / "agent"), "--origin", origin, "--host", host, *flags),
            environ={"EDGETUN_CLUSTER_TOKEN": token, **environ},
            within=network.far.enter,
        ) as agent:
            agent.line("ready in", 40)
            assert agent.line(r"connected to \S+ over (\S+)")[1] == "tls"
            assert ask(network, f"{host}.localhost") == "laptop"
            assert "secret-word" not in agent.said
            assert "secret-word" not in Path(f"/proc/{agent.process.pid}/cmdline").read_text()
            assert agent.stop() == ExitCode.OK


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://me:wrong-word@10.77.0.1:3128", "proxy http://10.77.0.1:3128 does not connect to"),
        ("http://10.77.0.1:9", "proxy http://10.77.0.1:9 cannot be reached"),
    ],
)
def test_a_proxy_that_refuses_or_is_not_there_is_told(network, server, tmp_path, url, says) -> None:
    _, state = server
    with (
        a_proxy(network, "http", tmp_path),
        Command(
            "edgetun-agent",
            *("--state", str(tmp_path / "agent"), "--origin", "3000", "--proxy", url),
            environ={"EDGETUN_CLUSTER_TOKEN": a_token(state)},
            within=network.far.enter,
        ) as agent,
    ):
        assert agent.ended(60) == ExitCode.UNREACHABLE
        assert says in agent.said
        assert "wrong-word" not in agent.said
        assert "--proxy" in agent.err


def test_without_the_proxy_there_is_no_way(network, server, tmp_path) -> None:
    """The promise above is worth something only if this holds."""
    _, state = server
    with Command(
        "edgetun-agent",
        *("--state", str(tmp_path / "agent"), "--origin", "3000"),
        environ={"EDGETUN_CLUSTER_TOKEN": a_token(state)},
        within=network.far.enter,
    ) as agent:
        assert agent.ended(60) == ExitCode.UNREACHABLE

"""`edgetun-agent` as people run it: a process of its own, its exit codes, and the whole way to a real server."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgetun_core.credentials import ClusterToken
from edgetun_core.exits import ExitCode
from support.origin_server import ScriptedConnection, answering, response, scripted_origin

DEADLINE_S = 20.0

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the loop that counts is the process's own


class Running:
    """A process whose output can be waited for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""

    async def line(self, pattern: str) -> re.Match[str]:
        """The first line that matches, past or to come."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = re.search(pattern, self.output)
                if found is not None:
                    return found
                piece = await self.process.stderr.readline()
                if not piece:
                    pytest.fail(f"ended without {pattern!r}:\n{self.output}")
                self.output += piece.decode()

    async def ended(self) -> int:
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            self.output += (await self.process.stderr.read()).decode()
            return await self.process.wait()


@asynccontextmanager
async def running(module: str, *argv: str, **environ: str) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | environ,
    )
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def a_token(url: str) -> str:
    return ClusterToken((url,), "laptop", bytes(32)).format()


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ((), ExitCode.USAGE, "--cluster-token is missing"),
        (("--cluster-token", "nonsense"), ExitCode.REFUSED, "not a cluster token"),
        (("--cluster-token", "TOKEN", "--host", "shop"), ExitCode.USAGE, "give --origin"),
        (("--cluster-token", "TOKEN", "--origin", "ftp://x"), ExitCode.USAGE, "unix://"),
        (("--cluster-token", "TOKEN", "--sessions", "0"), ExitCode.USAGE, "too small"),
        (("--cluster-token", "TOKEN", "--origin", "3000"), ExitCode.UNREACHABLE, "cannot be reached"),
    ],
)
async def test_exit_codes_say_what_kind_of_failure_it_was(
    argv: tuple[str, ...], code: ExitCode, says: str, tmp_path: Path
) -> None:
    token = a_token("https://127.0.0.1:1")
    given = [token if word == "TOKEN" else word for word in argv]
    async with running("edgetun_agent.main", "--state", str(tmp_path), *given) as agent:
        assert await agent.ended() == code
    assert says in agent.output
    assert agent.output.startswith("error: ")
    assert "Traceback" not in agent.output
    assert token not in agent.output


async def create_token(state: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edgetun.cli", "token", "create", "--state", str(state)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    return out.decode().strip()


async def get(port: int, host: str, path: str = "/") -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        answer = await reader.read(-1)
        writer.close()
        return answer


@pytest.mark.timeout(90)
async def test_a_local_server_is_reached_through_a_server_and_an_agent(tmp_path: Path) -> None:
    serve = ["--listen", "127.0.0.1", "--http-port", "0", "--https-port", "-1", "--tunnel-port", "0"]
    state = tmp_path / "server"
    async with (
        scripted_origin(answering(response(b"from the laptop", b"cache-control: no-store"))) as origin,
        running("edgetun.cli", "serve", "--state", str(state), *serve) as server,
    ):
        port = int((await server.line(r"http on 127\.0\.0\.1:(\d+)"))[1])
        await server.line(r"ready in")
        token = await create_token(state)
        flags = [
            "--origin",
            origin.url,
            "--host",
            "shop",
            "--state",
            str(tmp_path / "agent"),
            "--metrics",
            "127.0.0.1:0",
        ]
        async with running("edgetun_agent.main", *flags, EDGETUN_CLUSTER_TOKEN=token) as agent:
            await agent.line(rf"http://shop\.localhost:{port} -> " + re.escape(origin.url))
            admin = int((await agent.line(r"metrics at http://127\.0\.0\.1:(\d+)"))[1])
            assert (await get(port, "shop.localhost", "/a?key=secret")).endswith(b"from the laptop")
            await agent.line(r"GET /a\?key=… 200")
            assert b'"ready": true' in await get(admin, "localhost", "/readyz")
            assert b"edgetun_agent_sessions" in await get(admin, "localhost", "/metrics")
            agent.process.send_signal(signal.SIGINT)
            assert await agent.ended() == ExitCode.OK
            assert "stopping" in agent.output
            assert token[20:60] not in agent.output
        async with running("edgetun_agent.main", *flags, "--host", "shop", EDGETUN_CLUSTER_TOKEN=token) as again:
            await again.line(r"ready in")
            again.process.send_signal(signal.SIGTERM)
            assert await again.ended() == ExitCode.OK


async def test_a_signal_while_it_enrolls_is_no_failure(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def never(connection: ScriptedConnection) -> None:
        asked.set()
        await connection.closed()

    async with scripted_origin(never) as silent:
        token = a_token(silent.url.replace("http:", "https:"))
        async with running("edgetun_agent.main", "--cluster-token", token, "--state", str(tmp_path)) as agent:
            async with asyncio.timeout(DEADLINE_S):
                await asked.wait()
            agent.process.send_signal(signal.SIGINT)
            assert await agent.ended() == ExitCode.OK

"""`edgetun-exitnode` as a process of its own, following the control of a test."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from edgetun_core.enrollment import Endpoint
from edgetun_core.fleet_identity import inner_name
from support.following import TOKEN, Control

ADDRESS = "127.0.0.1"


class NodeProcess:
    """What a test holds: `http` is the visitors' port, `endpoint` the agents'."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, http: int, endpoint: Endpoint) -> None:
        self.process, self.name, self.http, self.endpoint = process, f"pool/here/{name}", http, endpoint

    def stop(self) -> None:
        """It stands still: whoever is connected waits."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Gone without a word."""
        self.process.kill()
        await self.process.wait()


def _fill(folder: Path, control: Control) -> None:
    folder.mkdir(parents=True)
    (folder / "token").write_text(TOKEN)
    (folder / "ca.pem").write_bytes(control.ca.ca_pem)


@asynccontextmanager
async def node_process(control: Control, folder: Path, name: str) -> AsyncIterator[NodeProcess]:
    """Starts one and waits until it takes visitors and agents; ends it."""
    _fill(folder, control)
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "edgetun-exitnode",
        *("--control", control.url, "--control-ca", str(folder / "ca.pem")),
        *("--control-token-file", str(folder / "token"), "--pool", "pool", "--region", "here", "--name", name),
        *("--state", str(folder / "state"), "--listen", ADDRESS, "--http-port", "0", "--https-port", "-1"),
        *("--tunnel-port", "0", "--relay-host", ADDRESS, "--relay-port", "0", "--quic-engine", "none", "--drain", "1s"),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    said = ""
    reading: asyncio.Task[bytes] | None = None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while (agents := re.search(r"agents on \S+ TCP (\d+)", said)) is None:
                line = await process.stderr.readline()
                assert line, f"{name} ended: {said}"
                said += line.decode()
        reading = asyncio.create_task(process.stderr.read())
        http = re.search(r"http on \S+:(\d+)", said)
        assert http is not None, said
        endpoint = Endpoint(ADDRESS, int(agents[1]), 0, name, inner_name("pool", "here"))
        yield NodeProcess(process, name, int(http[1]), endpoint)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        if reading is not None:
            await reading
        await process.wait()

"""`edgetun demo`: a real local server, an exit node in front of it, a crowd; then what happened, in figures.

Server and exit node run as processes of their own, started as a person would start them; this process is the crowd.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from edgetun.load import run_load
from edgetun.load_plan import Crowd, LoadPlan
from edgetun.load_report import render_report
from edgetun.load_result import LoadResult
from edgetun.settings import DemoSettings
from edgetun_core.errors import EdgetunError
from edgetun_core.exits import ExitCode
from edgetun_core.process import raise_open_files_limit, run_loop
from edgetun_core.quantities import format_duration

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
VISITOR_TIMEOUT_S = 60.0
_URL = re.compile(rb"http://[a-z0-9.:]+")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one crowd met, and what of it reached the local server (`peak`: how much of that at one time)."""

    plan: LoadPlan
    crowd: LoadResult
    origin_requests: int
    peak: int


def run(settings: DemoSettings) -> int:
    """Exit code 0 when every visitor was answered and the server was asked as rarely as the cache promises."""
    raise_open_files_limit()
    through, direct = run_loop(_run(settings))
    allowed = most_origin_requests(settings, through.crowd.arriving_s)
    is_kept = through.crowd.is_clean and through.origin_requests <= allowed
    if settings.json:
        outcome = {"through_edgetun": _as_json(through), "allowed_origin_requests": allowed, "kept": is_kept}
        print(json.dumps(outcome | ({"directly": _as_json(direct)} if direct is not None else {}), indent=2))
    else:
        _print(through, direct, allowed, is_kept)
    return ExitCode.OK if is_kept else ExitCode.FAILURE


def most_origin_requests(settings: DemoSettings, arriving_s: float) -> int:
    """One request per freshness lifetime that begins while visitors ask; without a cache there is no such promise.

    On a machine too busy to let everybody in on time the last visitor arrives later than planned (`arriving_s`).
    """
    if not settings.cache_s:
        return settings.visitors
    return max(1, -int(-max(settings.within_s, arriving_s) // settings.cache_s))


async def _run(settings: DemoSettings) -> tuple[Outcome, Outcome | None]:
    crowd = Crowd(settings.visitors, settings.within_s)
    async with _process(["-m", "edgetun.demo_origin"], "stdout") as origin_url:
        _say(settings, f"local server at {origin_url} (150 ms of work a page)")
        with tempfile.TemporaryDirectory(prefix="edgetun-demo-") as state:
            command = ["-m", "edgetun.cli", "http", origin_url, "--host", "demo", "--state", state]
            command += ["--http-port", "0", "--https-port", "-1", "--cache", format_duration(settings.cache_s)]
            _say(settings, f"edgetun http {origin_url} --host demo --cache {format_duration(settings.cache_s)}")
            async with _process(command, "stderr") as edge_url:
                _say(
                    settings,
                    f"{settings.visitors:,} visitors within {format_duration(settings.within_s)} -> {edge_url}",
                )
                through = await _send(f"{edge_url}/", crowd, origin_url)
        if not settings.direct:
            return through, None
        _say(settings, f"the same crowd straight to the local server -> {origin_url}")
        return through, await _send(f"{origin_url}/", crowd, origin_url)


async def _send(url: str, crowd: Crowd, origin_url: str) -> Outcome:
    before, _ = await _stats(origin_url)
    plan = LoadPlan(url, crowd, timeout_s=VISITOR_TIMEOUT_S)
    result = await run_load(plan)
    after, peak = await _stats(origin_url)
    return Outcome(plan, result, after - before, peak)


async def _stats(origin_url: str) -> tuple[int, int]:
    """How many requests the server has counted so far, and how many of them at one time."""
    host, _, port = origin_url.removeprefix("http://").partition(":")
    async with asyncio.timeout(START_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /stats HTTP/1.1\r\nHost: origin\r\nConnection: close\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        stats = json.loads(await reader.readexactly(length))
        writer.close()
    return int(stats["requests"]), int(stats["peak"])


@asynccontextmanager
async def _process(arguments: Sequence[str], speaks: str) -> AsyncIterator[str]:
    """A process of this very Python; yields the URL that it prints first, and ends it in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdout=asyncio.subprocess.PIPE if speaks == "stdout" else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE if speaks == "stderr" else None,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    output = process.stdout or process.stderr
    assert output is not None
    draining: asyncio.Task[None] | None = None
    try:
        yield await _read_url(output)
    finally:
        draining = asyncio.create_task(_drain(output))
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        draining.cancel()
        with suppress(asyncio.CancelledError):
            await draining


async def _read_url(output: asyncio.StreamReader) -> str:
    said: list[str] = []
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while line := await output.readline():
                if match := _URL.search(line):
                    return match[0].decode()
                said.append(line.decode(errors="replace").strip())
    except TimeoutError:
        said.append(f"nothing more within {START_TIMEOUT_S:g} s")
    raise EdgetunError("the demo could not start a part of itself: " + ("; ".join(said) or "it said nothing"))


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass


def _say(settings: DemoSettings, line: str) -> None:
    if not settings.json:
        sys.stderr.write(f"  {line}\n")


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "origin_requests": outcome.origin_requests,
        "origin_peak": outcome.peak,
        "visitors": outcome.crowd.as_json(),
    }


def _print(through: Outcome, direct: Outcome | None, allowed: int, is_kept: bool) -> None:
    console = Console(soft_wrap=False)
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    console.print()
    console.print(Rule("through edgetun", characters="-" if ascii_only else "─"))
    console.print(render_report(through.plan, through.crowd, width=console.width, ascii_only=ascii_only))
    if direct is not None:
        console.print(Rule("straight to the local server", characters="-" if ascii_only else "─"))
        console.print(render_report(direct.plan, direct.crowd, width=console.width, ascii_only=ascii_only))
    console.print(Rule("what reached the local server", characters="-" if ascii_only else "─"))
    answered = through.crowd.answered
    style = "bold green" if is_kept else "bold red"
    line = Text(f"{answered:,} visitors were answered; the local server saw ")
    line.append(_requests(through.origin_requests), style)
    console.print(line)
    console.print(f"(at most {_requests(allowed)}: one per freshness lifetime that begins while visitors arrive)")
    if direct is not None:
        console.print(
            f"without edgetun it saw {_requests(direct.origin_requests)}, {direct.peak:,} of them at one time"
        )
    if not is_kept:
        console.print(Text("the promise was not kept", "bold red"))


def _requests(count: int) -> str:
    return f"{count:,} request" + ("" if count == 1 else "s")

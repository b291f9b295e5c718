"""`edgetun load`: runs the plan of the flags, shows it on a terminal, prints the report, says by the exit code how it went."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from rich.console import Console
from rich.live import Live

from edgetun.load import run_load
from edgetun.load_plan import LoadPlan, read_trust
from edgetun.load_report import render_live, render_report
from edgetun.load_result import LoadResult
from edgetun.load_settings import LoadSettings, parse_connect, plan_from_settings
from edgetun.settings import default_state_dir
from edgetun_core.exits import ExitCode

_DRAWS_PER_SECOND = 5


def run(settings: LoadSettings) -> int:
    """Exit code 0 when every visitor was answered and nobody by a 5xx, 1 when not, 130 when interrupted."""
    plan = plan_from_settings(settings)
    plan = replace(plan, trust_pem=_trust(settings))
    console = Console(stderr=True)
    seen = LoadResult(url=plan.url)

    def note(result: LoadResult) -> None:
        nonlocal seen
        seen = result

    was_interrupted = False
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(200_000, 50, 100)  # a full collection over ten thousand visitors is a pause that they would feel
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            if console.is_terminal and not settings.quiet and not settings.json:
                runner.run(_shown(plan, console, note))
            else:
                runner.run(run_load(plan, note))
    except KeyboardInterrupt:
        was_interrupted = True
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    if settings.json:
        print(json.dumps({**seen.as_json(), "interrupted": was_interrupted}, indent=2))
    else:
        out = Console(soft_wrap=False)
        out.print(render_report(plan, seen, width=out.width, ascii_only=not out.encoding.startswith("utf")))
    if was_interrupted:
        return 130
    return ExitCode.OK if seen.is_clean else ExitCode.FAILURE


async def _shown(plan: LoadPlan, console: Console, note: Callable[[LoadResult], None]) -> LoadResult:
    """Draws from the loop's own ticks: a drawing thread would take the interpreter from the visitors at any moment."""
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw(result: LoadResult) -> None:
            note(result)
            live.update(render_live(plan, result), refresh=True)

        return await run_load(plan, draw, progress_every_s=1 / _DRAWS_PER_SECOND)


def _trust(settings: LoadSettings) -> str:
    """The text of `--cacert`; for `*.localhost`, the development CA of `edgetun http` when there is one."""
    if settings.cacert is not None:
        return read_trust(str(settings.cacert))
    parts = urlsplit(settings.url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme != "https" or settings.insecure or not (host == "localhost" or host.endswith(".localhost")):
        return ""
    authority = default_state_dir() / "ca" / "ca.pem"
    if not authority.exists():
        # `edgetun http` makes its authority when the first visitor speaks TLS.
        _shake_hands(parse_connect(settings.connect) or ("127.0.0.1", parts.port or 443), host)
    return read_trust(str(authority)) if authority.exists() else ""


def _shake_hands(address: tuple[str, int], host: str) -> None:
    """One handshake without a request or a look at the certificate; whatever fails here will fail in the run, and be told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(address, timeout=3) as sock, context.wrap_socket(sock, server_hostname=host):
            pass
    except OSError:
        pass


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    if sys.platform == "win32":
        return asyncio.SelectorEventLoop
    import uvloop

    return uvloop.new_event_loop

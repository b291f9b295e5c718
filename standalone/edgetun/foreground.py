"""What a command in the foreground does the same way each time: logs or a display, metrics, Ctrl-C.

On a terminal it shows a live display; otherwise, or with `--json` or `--quiet`, log lines. The admin listener starts after the
process is ready, so that it costs no start-up time.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from edgetun.settings import default_state_dir
from edgetun_agent.observe import RecentRequests
from edgetun_agent.serve import Origins
from edgetun_core.logs import setup_logging
from edgetun_core.process import StopSignals, parse_host_port, raise_open_files_limit, seconds_since_start, settle
from edgetun_exitnode.node import ExitNode

log = logging.getLogger("edgetun")


class ForegroundSettings(Protocol):
    """The settings that every command in the foreground has."""

    @property
    def json(self) -> bool: ...
    @property
    def quiet(self) -> bool: ...
    @property
    def log_level(self) -> str: ...


class Foreground:
    """One command's face: what it announces, shows and logs until it is stopped."""

    def __init__(self, signals: StopSignals, is_live: bool) -> None:
        self.signals = signals
        self.is_live = is_live
        self.started = time.monotonic()

    def announce(self, urls: Sequence[tuple[str, str]]) -> None:
        """Says where visitors find what."""
        for url, target in urls:
            log.info("%s -> %s", url, target)
        log.info("ready in %.2f s; Ctrl-C to stop", seconds_since_start(self.started))

    async def serve(
        self,
        node: ExitNode,
        urls: Callable[[], Sequence[tuple[str, str]]],
        *,
        recent: RecentRequests | None = None,
        origins: Origins | None = None,
        metrics: str = "",
        state: Path | None = None,
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Shows what happens until somebody asks to stop."""
        if not self.is_live:
            self.announce(urls())
        settle()
        admin = None
        if metrics:
            from edgetun.measures import start_node_admin

            host, port = parse_host_port(metrics, "--metrics")
            admin = start_node_admin(host, port, node, origins, state or default_state_dir())
            log.info("metrics at http://%s:%d/metrics", host, admin.port)
        watcher = asyncio.create_task(self._show(node, urls, recent, origins, notes), name="display")
        stopping = asyncio.create_task(self.signals.wait(), name="stop signal")
        try:
            # The display has no end of its own: when it is done before the signal, it failed, and that must be seen.
            await asyncio.wait((watcher, stopping), return_when=asyncio.FIRST_COMPLETED)
            if watcher.done():
                watcher.result()
        finally:
            for task in (watcher, stopping):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            if admin is not None:
                admin.close()
        log.info("stopping: requests in flight may end; Ctrl-C again to stop at once")

    async def _show(
        self,
        node: ExitNode,
        urls: Callable[[], Sequence[tuple[str, str]]],
        recent: RecentRequests | None,
        origins: Origins | None,
        notes: Callable[[], Sequence[str]],
    ) -> None:
        if self.is_live:
            from edgetun.screen import run_screen

            await run_screen(node, urls, recent, origins, notes)
            return
        from edgetun.log_lines import run_log_lines

        await run_log_lines(node, recent)


@asynccontextmanager
async def foreground(settings: ForegroundSettings) -> AsyncIterator[Foreground]:
    """Sets up logging, signals and limits for a command, and takes them down again."""
    is_live = sys.stdout.isatty() and sys.stderr.isatty() and not settings.json and not settings.quiet
    setup_logging(json=settings.json, quiet=settings.quiet or is_live, level=settings.log_level)
    raise_open_files_limit()
    yield Foreground(StopSignals(), is_live)

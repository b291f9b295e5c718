"""A live display in the foreground: a state is gathered and drawn twice a second, and the log's warnings stand in the picture."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live

from edgetun_core.terminal.display import DisplayState, render

EVERY_S = 0.5
RATES = 60


class Warnings(logging.Handler):
    """Keeps the last warnings for the display, which owns the terminal while it runs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=3)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line in self.lines:
            self.lines.remove(line)
        self.lines.append(line)


class Rates:
    """Requests per second of the last moments, from a count that only grows."""

    def __init__(self, total: int) -> None:
        self.started = time.monotonic()
        self._rates: deque[float] = deque(maxlen=RATES)
        self._total = total
        self._at = self.started
        # What ended carries monotonic seconds; people read the clock on the wall.
        self._wall_offset = time.time() - time.monotonic()

    def note(self, total: int) -> Sequence[float]:
        """Takes the count of this moment; the rates, oldest first."""
        now = time.monotonic()
        if now > self._at:
            self._rates.append((total - self._total) / (now - self._at))
        self._total, self._at = total, now
        return tuple(self._rates)

    def clock(self, at: float) -> str:
        """Monotonic seconds as `12:34:56` on the wall."""
        return time.strftime("%H:%M:%S", time.localtime(at + self._wall_offset))


async def show(gather: Callable[[Sequence[str]], DisplayState]) -> None:
    """Draws until it is cancelled. `gather` is given the last warnings, and called on the event loop.

    What it made is written by a thread: a terminal that takes nothing (Ctrl-S, a slow line) must not hold up who is served.
    """
    warnings = Warnings()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [warnings]
    console = Console()
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                width, height = console.size
                state = gather(tuple(warnings.lines))
                picture = render(state, width=width, height=height, ascii_only=ascii_only)
                await asyncio.to_thread(live.update, picture, refresh=True)
                await asyncio.sleep(EVERY_S)
    finally:
        root.handlers = handlers

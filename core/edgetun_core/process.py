"""What every long-running process does the same way: the event loop, the signals, the admin listener's address.

The first SIGINT or SIGTERM asks for a drain, the second ends the process at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from edgetun_core.errors import ConfigError

T = TypeVar("T")


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on uvloop where it is installed, else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


class StopSignals:
    """Waits for SIGINT or SIGTERM; made inside the loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._caught, number)

    def _caught(self, number: int) -> None:
        if self._event.is_set():
            os._exit(128 + number)
        self._event.set()

    def stop(self) -> None:
        """The same as a signal, from inside."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        """Returns when the process is asked to stop."""
        await self._event.wait()


def seconds_since_start(fallback: float) -> float:
    """How long this process has run, its imports included; `fallback` is the monotonic time of a start known otherwise."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - fallback


def parse_host_port(text: str, flag: str) -> tuple[str, int]:
    """Reads HOST:PORT; raises ConfigError that names the flag."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f'{flag}: "{text}" is not HOST:PORT', remedy="write it as 127.0.0.1:9090")
    return host, int(port)


def raise_open_files_limit() -> int:
    """Raises the soft limit of open files to the hard one, as a server of many connections needs; returns what holds then."""
    if sys.platform == "win32":
        return 0
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        return soft  # some systems refuse "unlimited"; what was there must do
    return hard


_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 16 * 1024 * 1024


def settle() -> None:
    """After a process's start, once: what was made so far stays, so the garbage collector need not look at it again.

    Collections become rare too (finished exchanges leave no cycles), and glibc keeps up to 16 MiB of freed memory instead of
    giving the buffer of every large read back to the kernel (worth 15 % of bulk throughput).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):  # another C library has other ways
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)

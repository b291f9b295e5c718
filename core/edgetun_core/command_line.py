"""Takes secrets out of the command line that every user of a machine can read with `ps`."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable


def hide_arguments(secrets: Iterable[str]) -> bool:
    """Overwrites each secret in this process's own argument memory (Linux); True when none of them stands there any more.

    It is seen until then, for the milliseconds of a start: an environment variable or a file never is.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # proc(5): arg_start and arg_end
        with open("/proc/self/cmdline", "rb") as file:
            line = file.read()
    except (OSError, ValueError, IndexError):
        return False
    if not 0 < start < end or ctypes.string_at(start, end - start) != line:
        return False
    for secret in filter(None, secrets):
        needle = secret.encode()
        at = line.find(needle)
        while at >= 0:
            ctypes.memset(start + at, ord("x"), len(needle))
            at = line.find(needle, at + len(needle))
    return True

"""Child processes that end when their standard input does."""

from __future__ import annotations

import subprocess
from typing import Any


def end_child(process: subprocess.Popen[Any], timeout_s: float = 5) -> None:
    """Closes the child's standard input and waits for its end; kills one that does not end in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()

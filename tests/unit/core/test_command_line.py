"""A secret on the command line is out of sight of other users."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import sys
from edgetun_core.command_line import hide_arguments
print(hide_arguments([sys.argv[2], ""]))
print(open("/proc/self/cmdline").read().split(chr(0))[-4:])
print(sys.argv)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="arguments can be overwritten on Linux only")
def test_a_secret_argument_is_overwritten_wherever_it_stands_and_nothing_else() -> None:
    argv = ["--token", "hunter2", "--again=hunter2-and-more"]
    done = subprocess.run([sys.executable, "-c", LOOK, *argv], capture_output=True, text=True, check=True)
    hidden, shown, known = done.stdout.splitlines()
    assert hidden == "True"
    assert shown == "['--token', 'xxxxxxx', '--again=xxxxxxx-and-more', '']"
    assert known == str(["-c", *argv])

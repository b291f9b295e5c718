"""What people see on a terminal: `edgetun serve` and `edgetun-agent` on pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.commands import MODULES, a_free_port, an_origin, run, visit
from support.waiting import wait_for

DEADLINE_S = 30.0


class Terminal:
    """A command on a terminal of 110 by 30; `text` is all that it wrote, without the codes that move and colour."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self._raw = b""

    @property
    def text(self) -> str:
        while select.select([self._master], [], [], 0)[0]:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            self._raw = (self._raw + piece)[-1_000_000:]
        return re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|\(B|[=>])", "", self._raw.decode(errors="replace"))

    def shows(self, pattern: str) -> re.Match[str]:
        """The first match in what was or will be written."""

        def look() -> re.Match[str]:
            found = re.search(pattern, text := self.text)
            assert found is not None, text[-1000:]
            return found

        return wait_for(look, DEADLINE_S, pattern)

    def stop(self) -> int:
        """Ctrl-C as the terminal sends it, and the exit code."""
        os.write(self._master, b"\x03")
        end = time.monotonic() + DEADLINE_S
        while self.process.poll() is None and time.monotonic() < end:
            _ = self.text  # a full terminal would hold the process up
            time.sleep(0.02)
        return self.process.wait(1)


@contextmanager
def on_a_terminal(program: str, *argv: str, environ: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGETUN_")}
    process = subprocess.Popen(
        (sys.executable, "-m", MODULES[program], *argv),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**kept, "HOME": "/nonexistent", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **(environ or {})},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_server_and_agent_show_sessions_requests_and_trouble(tmp_path: Path) -> None:
    port = a_free_port()
    ports = ("--http-port", str(port), "--https-port", "-1", "--tunnel-port", "0")
    with (
        an_origin("laptop") as origin,
        on_a_terminal("edgetun", "serve", "--state", str(tmp_path / "s"), "--listen", "127.0.0.1", *ports) as server,
    ):
        server.shows(r"no agent is connected; make a token")
        token = run("edgetun", "token", "create", "--state", str(tmp_path / "s")).out.strip()
        with on_a_terminal(
            "edgetun-agent",
            *("--state", str(tmp_path / "a"), "--origin", origin.url, "--host", "seen"),
            environ={"EDGETUN_CLUSTER_TOKEN": token},
        ) as agent:
            # meanwhile nobody reads the server's terminal, which is soon full: it serves on
            agent.shows(rf"http://seen\.localhost:{port}\s+→\s+{re.escape(origin.url)}")
            agent.shows(r"session\s+● serve\s+connected\s+quic")
            agent.shows(r"origin\s+● \S+\s+answers")
            server.shows(r"session\s+● \S+\s+connected\s+quic")
            assert visit(port, "/basket?token=secret-word", host="seen.localhost").status == 200
            agent.shows(r"GET\s+/basket\?token=…\s+200")
            agent.shows(r"1 in all")
            assert server.stop() == 0
            agent.shows(r"no exit node\s+lost")
            agent.shows(r"warning\s+not connected")
            assert agent.stop() == 0
            for told in (agent.text, server.text):
                assert token not in told
                assert "secret-word" not in told

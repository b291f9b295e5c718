"""edgetun's commands as people run them: processes of their own, whose every line is kept, and visitors to ask them with."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE_S = 20.0

MODULES = {
    "edgetun": "edgetun.cli",
    "edgetun-agent": "edgetun_agent.main",
    "edgetun-control": "edgetun_control.main",
    "edgetun-exitnode": "edgetun_exitnode.main",
}


class Command:
    """A command that runs. Both of its outputs are read as they come; `said` is all of them.

    `within` stands before it, as to run it in a network namespace.
    """

    def __init__(
        self,
        program: str,
        *argv: str,
        environ: Mapping[str, str] | None = None,
        stdin: str = "",
        within: Sequence[str] = (),
    ) -> None:
        self.argv = (program, *argv)
        home = {"HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent", "PYTHONUNBUFFERED": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGETUN_")}
        self.process = subprocess.Popen(
            (*within, sys.executable, "-m", MODULES[program], *argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**kept, **home, **(environ or {})},
        )
        self._out: list[str] = []
        self._err: list[str] = []
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self._out), (self.process.stderr, self._err))
        ]
        for reader in self._readers:
            reader.start()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(stdin.encode())
            self.process.stdin.close()
        except BrokenPipeError:
            pass

    def _read(self, stream: object, lines: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            with self._changed:
                lines.append(line.decode(errors="replace"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def out(self) -> str:
        return "".join(self._out)

    @property
    def err(self) -> str:
        return "".join(self._err)

    @property
    def said(self) -> str:
        return self.out + self.err

    def line(self, pattern: str, deadline_s: float = DEADLINE_S) -> re.Match[str]:
        """The first match in what was or will be said."""
        end = time.monotonic() + deadline_s
        with self._changed:
            while (found := re.search(pattern, self.said)) is None:
                left = end - time.monotonic()
                is_over = self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers)
                if left <= 0 or is_over:
                    raise AssertionError(f"{' '.join(self.argv[:2])} never said {pattern!r}; it said:\n{self.said}")
                self._changed.wait(min(left, 0.1))
        return found

    def signal(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit code, once it has ended and everything it said is read."""
        code = self.process.wait(deadline_s)
        for reader in self._readers:
            reader.join(deadline_s)
        return code

    def stop(self, deadline_s: float = DEADLINE_S) -> int:
        """Ctrl-C, and the exit code."""
        self.signal()
        return self.ended(deadline_s)

    def resident_bytes(self) -> int:
        """Memory that it holds now (Linux)."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(DEADLINE_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def run(program: str, *argv: str, environ: Mapping[str, str] | None = None, stdin: str = "") -> Command:
    """A command that ends by itself, ended."""
    with Command(program, *argv, environ=environ, stdin=stdin) as command:
        command.ended()
        return command


class Origin:
    """A local server. `/slow` takes `slow_s`; everything else answers at once with its name."""

    def __init__(self, name: str, port: int, slow_s: float) -> None:
        self.paths: list[str] = []
        origin = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                origin.paths.append(self.path)
                if self.path == "/slow":
                    time.sleep(slow_s)
                body = f"{name} {self.path}".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with suppress(ConnectionError):
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Answer)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"


@contextmanager
def an_origin(name: str = "origin", port: int = 0, slow_s: float = 2.0) -> Iterator[Origin]:
    """Serves on loopback."""
    origin = Origin(name, port, slow_s)
    thread = threading.Thread(target=origin.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        origin.server.shutdown()
        origin.server.server_close()
        thread.join()


class Page:
    """What a visitor got."""

    def __init__(self, status: int, fields: Mapping[str, str], body: str) -> None:
        self.status = status
        self.fields = fields
        self.body = body

    def __repr__(self) -> str:
        return f"{self.status} {self.body[:300]!r}"


def visit(
    port: int, path: str = "/", *, host: str = "localhost", tls: ssl.SSLContext | None = None, **fields: str
) -> Page:
    """One GET on a connection of its own; with `tls`, `host` is the server name too."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as plain:
        sock = plain if tls is None else tls.wrap_socket(plain, server_hostname=host)
        with sock:
            lines = {"Host": host, "Connection": "close", **fields}
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            sock.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
            response = http.client.HTTPResponse(sock)
            response.begin()
            body = response.read().decode()
            response.close()
            return Page(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


def a_free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

"""Visitors who notice everything, and an origin for them: ordinary requests without end, an event stream, an upload that takes its time.

Everything blocks and runs on threads; each failure is kept with its time, so that a test can say what was cut and when.
"""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

EVENT_EVERY_S = 0.25


class _Answer(BaseHTTPRequestHandler):
    """`/events?n=20` streams events; `POST` is answered with the digest of what came; the rest with its path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        where = urlsplit(self.path)
        if where.path != "/events":
            self._whole(f"laptop {self.path}".encode())
            return
        count = int(parse_qs(where.query)["n"][0])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(ConnectionError):
            for number in range(count):
                self._chunk(f"data: {number}\n\n".encode())
                time.sleep(EVENT_EVERY_S)
            self._chunk(b"")

    def do_POST(self) -> None:
        digest = hashlib.sha256()
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            digest.update(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self._whole(digest.hexdigest().encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _whole(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def a_live_origin() -> Iterator[str]:
    """Serves on loopback; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Visitors:
    """Threads that ask until they are told to stop. `failures`: what was not answered whole and with 200."""

    def __init__(self, host: str, addresses: Sequence[tuple[str, int]], each_s: float = 0.1) -> None:
        self._host, self._addresses, self._each_s = host, tuple(addresses), each_s
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self.answered: dict[tuple[str, int], int] = dict.fromkeys(self._addresses, 0)
        self.failures: list[str] = []
        self.results: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        for address in self._addresses:
            self._start(lambda address=address: self._ask_on(address))  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(90)

    def stop(self) -> None:
        """Lets every stream and upload end, and everybody go home; raises `AssertionError` with whatever was cut."""
        for wait in self.results:
            wait()
        self.__exit__()
        assert not any(thread.is_alive() for thread in self._threads), "a visitor waits for ever"
        assert not self.failures, f"{len(self.failures)} visits were cut:\n" + "\n".join(self.failures[:20])
        assert all(self.answered.values()), self.answered

    def fail(self, what: str) -> None:
        with self._lock:
            self.failures.append(f"{time.monotonic() - self._began:.1f} s: {what}")

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _ask_on(self, address: tuple[str, int]) -> None:
        count = 0
        while not self._is_over.is_set():
            count += 1
            path = f"/{address[1]}/{count}"
            try:
                connection = http.client.HTTPConnection(*address, timeout=20)
                with closing(connection):
                    connection.request("GET", path, headers={"Host": self._host})
                    answer = connection.getresponse()
                    body = answer.read()
                if answer.status != 200 or body != f"laptop {path}".encode():
                    self.fail(f"{address[1]}: {answer.status} {body[:200]!r}")
                else:
                    self.answered[address] += 1
            except (OSError, http.client.HTTPException) as error:
                self.fail(f"{address[1]}: {type(error).__name__} {error}")
            self._is_over.wait(self._each_s)

    def follow_events(self, address: tuple[str, int], seconds: float) -> None:
        """An event stream of that length, which must come whole and in order."""
        count = int(seconds / EVENT_EVERY_S)

        def work() -> None:
            try:
                connection = http.client.HTTPConnection(*address, timeout=30)
                with closing(connection):
                    connection.request("GET", f"/events?n={count}", headers={"Host": self._host})
                    answer = connection.getresponse()
                    body = answer.read()
                wanted = b"".join(b"data: %d\n\n" % number for number in range(count))
                if answer.status != 200 or body != wanted:
                    self.fail(f"events at {address[1]}: {answer.status}, {len(body)} of {len(wanted)} bytes")
            except (OSError, http.client.HTTPException) as error:
                self.fail(f"events at {address[1]}: {type(error).__name__} {error}")

        thread = self._start(work)
        self.results.append(lambda: thread.join(seconds + 60))

    def upload(self, address: tuple[str, int], seconds: float) -> None:
        """A POST whose body takes that long."""
        pieces = [b"%d" % number * 1000 for number in range(int(seconds * 2))]

        def body() -> Iterator[bytes]:
            for piece in pieces:
                yield piece
                time.sleep(0.5)

        def work() -> None:
            try:
                connection = http.client.HTTPConnection(*address, timeout=seconds + 30)
                with closing(connection):
                    fields = {"Host": self._host, "Transfer-Encoding": "chunked"}
                    connection.request("POST", "/upload", body(), fields, encode_chunked=True)
                    answer = connection.getresponse()
                    said = answer.read()
                if answer.status != 200 or said != hashlib.sha256(b"".join(pieces)).hexdigest().encode():
                    self.fail(f"upload at {address[1]}: {answer.status} {said[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.fail(f"upload at {address[1]}: {type(error).__name__} {error}")

        thread = self._start(work)
        self.results.append(lambda: thread.join(seconds + 60))

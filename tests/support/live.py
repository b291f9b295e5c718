"""Visitors who notice everything, and an origin for them: ordinary requests without end, and what takes its time: an event stream, an
upload, a download, a WebSocket.

Everything blocks and runs on threads; each failure is kept with its time, so that a test can say what was cut and when.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

EVENT_EVERY_S = 0.25
PIECE_BYTES = 256 * 1024
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TEXT, _CLOSE = 0x81, 0x88


def piece_of(number: int) -> bytes:
    """A piece of a download, unlike every other."""
    return hashlib.sha256(b"%d" % number).digest() * (PIECE_BYTES // 32)


def websocket_frame(kind: int, payload: bytes, mask: bytes = b"") -> bytes:
    """A whole message of up to 125 bytes (RFC 6455 §5.2); visitors mask theirs."""
    data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) if mask else payload
    return bytes((kind, len(payload) | (0x80 if mask else 0))) + mask + data


def read_websocket_frame(stream: io.BufferedIOBase) -> tuple[int, bytes]:
    """Kind and payload of the next message, which is a short one. Raises EOFError at the end of the stream."""
    head = stream.read(2)
    if len(head) < 2:
        raise EOFError("the connection ended without a close frame")
    mask = stream.read(4) if head[1] & 0x80 else bytes(4)
    return head[0], bytes(byte ^ mask[at % 4] for at, byte in enumerate(stream.read(head[1] & 0x7F)))


class _Answer(BaseHTTPRequestHandler):
    """`/events?n=20` streams events, `/large?n=40&s=10` sends 40 pieces within 10 s, an upgrade to WebSocket is an echo; `POST` is answered
    with the digest of what came; the rest with its path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        where = urlsplit(self.path)
        if "websocket" in self.headers.get("Upgrade", ""):
            self._echo()
            return
        if where.path == "/large":
            query = parse_qs(where.query)
            self._large(int(query["n"][0]), float(query["s"][0]))
            return
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

    def _large(self, count: int, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(count * PIECE_BYTES))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        begin = time.monotonic()
        with suppress(ConnectionError):
            for number in range(count):
                self.wfile.write(piece_of(number))
                time.sleep(max(0.0, begin + seconds * (number + 1) / count - time.monotonic()))

    def _echo(self) -> None:
        accept = base64.b64encode(hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + _WEBSOCKET_GUID).digest())
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.send_header("Sec-WebSocket-Accept", accept.decode())
        self.end_headers()
        self.close_connection = True
        with suppress(ConnectionError, EOFError):
            while True:
                kind, payload = read_websocket_frame(self.rfile)
                self.wfile.write(websocket_frame(kind, payload))
                if kind == _CLOSE:
                    return

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

    def _last(self, what: str, address: tuple[str, int], seconds: float, work: Callable[[], None]) -> None:
        """Does what takes so long, on a thread that `stop` waits for; whatever breaks it off is a failure."""

        def guarded() -> None:
            try:
                work()
            except (OSError, EOFError, http.client.HTTPException, AssertionError) as error:
                self.fail(f"{what} at {address[1]}: {type(error).__name__} {error}")

        thread = self._start(guarded)
        self.results.append(lambda: thread.join(seconds + 60))

    def follow_events(self, address: tuple[str, int], seconds: float) -> None:
        """An event stream of that length, which must come whole and in order."""
        count = int(seconds / EVENT_EVERY_S)

        def work() -> None:
            connection = http.client.HTTPConnection(*address, timeout=30)
            with closing(connection):
                connection.request("GET", f"/events?n={count}", headers={"Host": self._host})
                answer = connection.getresponse()
                body = answer.read()
            wanted = b"".join(b"data: %d\n\n" % number for number in range(count))
            assert (answer.status, body) == (200, wanted), f"{answer.status}, {len(body)} of {len(wanted)} bytes"

        self._last("events", address, seconds, work)

    def upload(self, address: tuple[str, int], seconds: float) -> None:
        """A POST whose body takes that long."""
        pieces = [b"%d" % number * 1000 for number in range(int(seconds * 2))]

        def body() -> Iterator[bytes]:
            for piece in pieces:
                yield piece
                time.sleep(0.5)

        def work() -> None:
            connection = http.client.HTTPConnection(*address, timeout=seconds + 30)
            with closing(connection):
                fields = {"Host": self._host, "Transfer-Encoding": "chunked"}
                connection.request("POST", "/upload", body(), fields, encode_chunked=True)
                answer = connection.getresponse()
                said = answer.read()
            wanted = hashlib.sha256(b"".join(pieces)).hexdigest().encode()
            assert (answer.status, said) == (200, wanted), f"{answer.status} {said[:200]!r}"

        self._last("upload", address, seconds, work)

    def download(self, address: tuple[str, int], size_bytes: int, seconds: float) -> None:
        """A response of that size, which the origin sends over that time."""
        count = size_bytes // PIECE_BYTES

        def work() -> None:
            connection = http.client.HTTPConnection(*address, timeout=30)
            with closing(connection):
                connection.request("GET", f"/large?n={count}&s={seconds:g}", headers={"Host": self._host})
                answer = connection.getresponse()
                assert answer.status == 200, answer.status
                for number in range(count):
                    assert answer.read(PIECE_BYTES) == piece_of(number), f"{number} of {count} pieces were right"
                assert not answer.read(1), "more than was asked for"

        self._last("download", address, seconds, work)

    def converse(self, address: tuple[str, int], seconds: float) -> None:
        """A WebSocket on which something is said and echoed four times a second, until the visitor closes it."""

        def work() -> None:
            with socket.create_connection(address, timeout=30) as sock, sock.makefile("rb") as stream:
                key = base64.b64encode(os.urandom(16)).decode()
                fields = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}"
                sock.sendall(f"GET /echo HTTP/1.1\r\nHost: {self._host}\r\n{fields}\r\n\r\n".encode())
                status = stream.readline()
                while stream.readline() not in (b"\r\n", b""):
                    pass
                assert status.startswith(b"HTTP/1.1 101 "), status

                def echoed(kind: int, said: bytes) -> None:
                    sock.sendall(websocket_frame(kind, said, os.urandom(4)))
                    heard = read_websocket_frame(stream)
                    assert heard == (kind, said), f"said {said!r}, heard {heard}"

                end = time.monotonic() + seconds
                number = 0
                while time.monotonic() < end:
                    echoed(_TEXT, b"word %d" % number)
                    number += 1
                    time.sleep(EVENT_EVERY_S)
                echoed(_CLOSE, b"\x03\xe8")

        self._last("WebSocket", address, seconds, work)

"""The cache before Python's own http.server, which states no lifetime, knows Last-Modified, and answers 304 without any validator."""

from __future__ import annotations

import functools
import http.client
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.commands import Command

PORTS = ("--http-port", "0", "--https-port", "-1")


class FileHandler(SimpleHTTPRequestHandler):
    statuses: list[int]

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.statuses.append(int(code))


@contextmanager
def a_file_server(folder: Path) -> Iterator[tuple[str, list[int]]]:
    statuses: list[int] = []
    handler = type("Handler", (FileHandler,), {"statuses": statuses})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", statuses
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(port: int, path: str, **fields: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        connection.request("GET", path, headers={"Host": "files.localhost", **names})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_a_file_is_sent_up_once_and_confirmed_afterwards_until_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    file = folder / "page.bin"
    file.write_bytes(b"first" * 50_000)
    with (
        a_file_server(folder) as (url, statuses),
        Command("edgetun", "http", url, "--host", "files", "--state", str(tmp_path / "state"), *PORTS) as edge,
    ):
        port = int(edge.line(r"http://files\.localhost:(\d+)")[1])
        for number in range(3):
            status, fields, body = get(port, "/page.bin", Accept_Encoding="identity")
            assert (status, body) == (200, b"first" * 50_000)
            if number:
                assert "fwd=stale; fwd-status=304" in fields["cache-status"]
        assert statuses.count(200) <= 2, "and where the edge asked for a sign of life"
        assert statuses.count(304) == 2
        status, fields, body = get(port, "/page.bin", Range="bytes=5-9", Accept_Encoding="identity")
        assert (status, body) == (206, b"first")
        status, _, body = get(port, "/page.bin", If_Modified_Since=fields["last-modified"])
        assert (status, body) == (304, b"")
        with ThreadPoolExecutor(8) as pool:
            many = list(pool.map(lambda _: get(port, "/page.bin", Accept_Encoding="identity"), range(16)))
        assert all(body == b"first" * 50_000 for _, _, body in many)
        file.write_bytes(b"second")
        new = file.stat().st_mtime + 10
        os.utime(file, (new, new))
        assert get(port, "/page.bin")[2] == b"second"
        file.unlink()
        assert get(port, "/page.bin")[0] == 404

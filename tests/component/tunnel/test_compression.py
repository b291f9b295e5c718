"""Compression from a real visitor's socket to a real origin's, over a session and without."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from edgetun_core.snapshot import CacheRule, CollapseRule, CompressionRule
from support.codings import Decoder, decode
from support.origin_server import ScriptedConnection, answering, response, scripted_origin
from support.requirements import missing
from support.whole import HOST, IN_PROCESS, snapshot, whole

TEXT = b"".join(b"line %d of a page that is worth compressing\n" % number for number in range(4000))
CURL_FEATURES = {"gzip": b"libz", "br": b"brotli", "zstd": b"zstd"}
BROWSER = "Accept-Encoding: gzip, deflate, br, zstd"


@pytest.mark.parametrize("engine", ["tls", "qh3", IN_PROCESS])
async def test_a_page_arrives_compressed_and_whole_in_every_coding(tmp_path: Path, engine: str) -> None:
    page = response(TEXT, b"Content-Type: text/html", b'ETag: "v1"')
    async with (
        scripted_origin(answering(page, page, page, page)) as origin,
        whole(tmp_path, engine, snapshot(origin.url)) as stands,
    ):
        visitor = await stands.visitor()
        for coding in (b"gzip", b"br", b"zstd"):
            answer = await visitor.ask("/", f"Accept-Encoding: {coding.decode()}", host=HOST)
            assert answer.fields["content-encoding"] == coding.decode()
            assert answer.fields["etag"] == 'W/"v1"'
            assert len(answer.body) < len(TEXT) / 5
            assert decode(coding, answer.body) == TEXT
        answer = await visitor.ask("/", host=HOST)
        assert answer.body == TEXT
        assert answer.fields["vary"] == "accept-encoding"
        assert "content-encoding" not in answer.fields
        await visitor.close()


@pytest.mark.parametrize("engine", ["tls", IN_PROCESS])
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_an_event_reaches_the_visitor_before_the_next_one_is_sent(
    tmp_path: Path, engine: str, coding: str
) -> None:
    """The origin sends an event only when the visitor has decoded the one before: whatever is held back hangs here."""
    seen = asyncio.Semaphore(0)

    async def script(connection: ScriptedConnection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(5):
            event = b"data: %d\n\n" % number
            await connection.send(b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.wait_for(seen.acquire(), 10)
        await connection.send(b"0\r\n\r\n")

    rule = CompressionRule(types=("text/event-stream",))
    async with (
        scripted_origin(script) as origin,
        whole(tmp_path, engine, snapshot(origin.url, compression=rule)) as stands,
    ):
        visitor = await stands.visitor()
        visitor.send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {coding}\r\n\r\n".encode())
        assert (await visitor.head()).fields["content-encoding"] == coding
        decoder = Decoder(coding.encode())
        for number in range(5):
            event = b""
            while not event.endswith(b"\n\n"):
                size = int((await visitor.reader.readline()).strip(), 16)
                event += decoder.feed((await visitor.reader.readexactly(size + 2))[:-2])
            assert event == b"data: %d\n\n" % number
            seen.release()
        await visitor.close()


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_curl_reads_what_is_compressed(tmp_path: Path, coding: str, version: str) -> None:
    program = shutil.which("curl")
    if program is None:
        missing("there is no curl; apt-get install curl")
    asked = await asyncio.create_subprocess_exec(program, "--version", stdout=asyncio.subprocess.PIPE)
    if CURL_FEATURES[coding] not in (await asked.communicate())[0]:
        missing(f"this curl does not read {coding}; the one of Debian 12 and later does")
    page = response(TEXT, b"Content-Type: text/html")
    async with (
        scripted_origin(answering(page)) as origin,
        whole(tmp_path, IN_PROCESS, snapshot(origin.url)) as stands,
    ):
        command = [program, "--silent", "--show-error", "--max-time", "30", "--compressed", version]
        command += ["-H", f"Host: {HOST}", "-H", f"Accept-Encoding: {coding}", "-w", "%{size_download}"]
        command += ["-o", str(tmp_path / "page"), f"http://127.0.0.1:{stands.port}/"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err
        assert (tmp_path / "page").read_bytes() == TEXT
        assert int(out) < len(TEXT) / 5


async def test_a_crowd_costs_the_origin_one_request_and_the_edge_one_compression(tmp_path: Path) -> None:
    page = response(TEXT, b"Content-Type: text/html")
    async with (
        scripted_origin(answering(page, page)) as origin,
        whole(
            tmp_path,
            IN_PROCESS,
            snapshot(origin.url, cache=CacheRule(mode="override", ttl_s=60), collapse=CollapseRule()),
        ) as stands,
    ):
        visitors = [await stands.visitor() for _ in range(30)]
        answers = await asyncio.gather(*(visitor.ask("/", BROWSER, host=HOST) for visitor in visitors))
        assert {decode(b"zstd", answer.body) for answer in answers} == {TEXT}
        encodings = stands.node.compressor.encodings
        assert len(encodings) == 1
        again = await visitors[0].ask("/", BROWSER, host=HOST)
        assert decode(b"zstd", again.body) == TEXT
        assert len(encodings) == 1
        assert origin.connections == 1
        assert stands.node.compressor.encoders.live_bytes == 0
        for visitor in visitors:
            await visitor.close()

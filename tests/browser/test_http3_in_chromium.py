"""A page, an event stream, a download, an upload and a WebSocket in headless Chromium, over HTTP/3 through a whole edge.

The page reports what it saw, its protocol among it, by a POST to the origin; no driver is needed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edgetun.local_edge import LocalEdge
from edgetun.quick import quick_snapshot
from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import OriginRule
from support.requirements import missing

HOST = "shop.localhost"
DOWNLOAD_BYTES = 10_000_000
UPLOAD_BYTES = 1_000_000

PAGE = """<!doctype html><title>edgetun</title><script>
async function run() {
  const seen = {page: performance.getEntriesByType('navigation')[0].nextHopProtocol};
  const name = path => new URL(path, location).href;
  const protocol = path => performance.getEntriesByName(name(path)).at(-1)?.nextHopProtocol;
  const download = await (await fetch('/download', {cache: 'no-store'})).arrayBuffer();
  seen.download = [download.byteLength, protocol('/download')];
  const upload = await fetch('/upload', {method: 'POST', body: new Uint8Array(UPLOAD_BYTES)});
  seen.upload = [await upload.text(), protocol('/upload')];
  seen.events = await new Promise(resolve => {
    const got = [], source = new EventSource('/events');
    source.onmessage = event => { got.push(event.data); if (got.length == 3) { source.close(); resolve(got); } };
    source.onerror = () => resolve(got.concat('error'));
  });
  const gone = new AbortController();
  const never = fetch('/never', {signal: gone.signal}).catch(error => error.name);
  await fetch('/asked');
  gone.abort();
  seen.aborted = await never;
  seen.socket = await new Promise(resolve => {
    const socket = new WebSocket('wss://' + location.host + '/socket');
    socket.onopen = () => socket.send('hello');
    socket.onmessage = event => { resolve(event.data); socket.close(); };
    socket.onerror = () => resolve('error');
  });
  return seen;
}
run().catch(error => ({error: String(error)})).then(seen => fetch('/report', {method: 'POST', body: JSON.stringify(seen)}));
</script>""".replace("UPLOAD_BYTES", str(UPLOAD_BYTES))


class Origin:
    """The local server behind the edge."""

    def __init__(self) -> None:
        self.report: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.never_asked = asyncio.Event()
        self.never_cancelled = asyncio.Event()
        self.port = 0

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def download(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(DOWNLOAD_BYTES), content_type="application/octet-stream")

    async def upload(self, request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
        await response.prepare(request)
        for number in range(3):
            await response.write(b"data: %d\n\n" % number)
            await asyncio.sleep(0.05)
        await asyncio.sleep(30)
        return response

    async def never(self, request: web.Request) -> web.Response:
        self.never_asked.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.never_cancelled.set()
            raise
        return web.Response()

    async def asked(self, request: web.Request) -> web.Response:
        await asyncio.wait_for(self.never_asked.wait(), 30)
        return web.Response(headers={"cache-control": "no-store"})

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str("echo " + message.data)
        return socket

    async def reported(self, request: web.Request) -> web.Response:
        if not self.report.done():
            self.report.set_result(await request.json())
        return web.Response()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Origin]:
        app = web.Application(client_max_size=2 * UPLOAD_BYTES)
        app.add_routes([
            web.get("/", self.page), web.get("/download", self.download), web.post("/upload", self.upload),
            web.get("/events", self.events), web.get("/never", self.never), web.get("/asked", self.asked),
            web.get("/socket", self.socket), web.post("/report", self.reported),
        ])  # fmt: skip
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()


def fingerprint(ca: DevelopmentCA) -> str:
    """What Chromium is told to believe: the hash of the certificate's public key."""
    certificate = x509.load_pem_x509_certificate(ca.identity((HOST,)).cert_pem)
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(key).digest()).decode()


@asynccontextmanager
async def chromium(url: str, port: int, believed: str, folder: Path) -> AsyncIterator[Path]:
    program = shutil.which("chromium")
    if program is None:
        missing("Chromium (apt-get install chromium)")
    log = folder / "chromium.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
            ),
            *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr"),
            *(f"--user-data-dir={folder / 'profile'}", f"--host-resolver-rules=MAP {HOST} 127.0.0.1"),
            *(f"--origin-to-force-quic-on={HOST}:{port}", f"--ignore-certificate-errors-spki-list={believed}"),
            *("--remote-debugging-port=0", url),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield log
    finally:
        os.killpg(process.pid, 9)
        await process.wait()


async def test_a_page_and_all_that_it_does_comes_by_http3(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with Origin().running() as origin:
        snapshot = quick_snapshot(
            OriginRule("default", f"http://127.0.0.1:{origin.port}"), HOST, cache_s=0.0, collapse=True
        )
        edge = LocalEdge(snapshot)
        try:
            await edge.listen("127.0.0.1", -1, 0, state)
            ca = DevelopmentCA(state / "ca")
            url = f"https://{HOST}:{edge.https_port}/"
            async with chromium(url, edge.https_port, fingerprint(ca), tmp_path) as log:
                try:
                    seen = await asyncio.wait_for(asyncio.shield(origin.report), 60)
                except TimeoutError:
                    raise AssertionError(
                        f"the page did not report:\n{log.read_text(errors='replace')[-3000:]}"
                    ) from None
            assert seen == {
                "page": "h3",
                "download": [DOWNLOAD_BYTES, "h3"],
                "upload": [str(UPLOAD_BYTES), "h3"],
                "events": ["0", "1", "2"],
                "aborted": "AbortError",
                "socket": "echo hello",
            }
            await asyncio.wait_for(origin.never_cancelled.wait(), 20)
            counters = edge.node.context.counters
            assert counters.http3_requests >= 5
            assert counters.http3_connections >= 1
        finally:
            await edge.close()

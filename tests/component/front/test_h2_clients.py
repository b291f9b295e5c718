"""HTTP/2 with the clients that people use: curl, nghttp and h2load, over TLS and in the clear."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgetun_core.http.message import ResponseHead
from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontContext, FrontLimits
from edgetun_exitnode.front.servers import Front, serve_http, serve_https
from support.handlers import Asked, ScriptedHandler, echo, hello
from support.requirements import missing

PACKAGES = {"curl": "curl", "nghttp": "nghttp2-client", "h2load": "nghttp2-client"}


def need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        missing(f"there is no {program}; apt-get install {PACKAGES[program]}")
    return found


async def run(program: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """What a program says; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        need(program),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(40):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, (out, err)
    return out


def large(asked: Asked) -> None:
    asked.answer(200, bytes(range(256)) * 8_192)


def hints(asked: Asked) -> None:
    asked.client.on_interim(ResponseHead(103, ((b"link", b"</style.css>; rel=preload"),)))
    asked.begin(200)
    asked.client.on_data(b"body", False)
    asked.client.on_trailers(((b"x-sum", b"42"),))


@pytest.fixture
async def fronts(tmp_path: Path) -> AsyncIterator[tuple[Front, Front]]:
    """A plain and a TLS front with one handler."""
    handler = ScriptedHandler(hello, large=large, echo=echo, hints=hints)
    context = FrontContext(handler, FrontLimits(sweep_s=0.2))
    plain = await serve_http(context, "127.0.0.1", 0)
    store = CertificateStore(development=DevelopmentCA(tmp_path / "ca"))
    secure = await serve_https(context, "127.0.0.1", 0, store)
    yield plain, secure
    for front in (plain, secure):
        await front.drain(0.0)


def urls(fronts: tuple[Front, Front], path: str) -> list[str]:
    plain, secure = fronts
    return [f"http://localhost:{plain.port}{path}", f"https://localhost:{secure.port}{path}"]


CURL = ("-sS", "-4", "--insecure", "--max-time", "30")


@pytest.mark.parametrize("secure", [False, True], ids=["clear", "TLS"])
async def test_curl_gets_and_posts_over_http2(fronts, secure: bool, tmp_path: Path):
    flag = "--http2" if secure else "--http2-prior-knowledge"
    get, post = (urls(fronts, path)[secure] for path in ("/large", "/echo"))
    out = await run("curl", *CURL, flag, "-o", str(tmp_path / "got"), "-w", "%{http_version} %{http_code}", get)
    assert out == b"2 200"
    assert (tmp_path / "got").read_bytes() == bytes(range(256)) * 8_192
    body = b"b" * 3_000_000
    out = await run("curl", *CURL, flag, "-T", "-", "-X", "POST", post, stdin=body)
    assert out == body


async def test_curl_gets_many_at_once_over_one_connection(fronts, tmp_path: Path):
    """Over TLS alone: with prior knowledge curl 7.88 breaks off parallel transfers, from any server."""
    many = urls(fronts, "/page/[1-60]")[1]
    parallel = ("-Z", "--parallel-max", "30")
    out = await run("curl", *CURL, "--http2", *parallel, "-o", str(tmp_path / "#1"), "-w", "%{http_version}", many)
    assert out == b"2" * 60
    for number in range(1, 61):
        assert (tmp_path / str(number)).read_bytes() == b"hello /page/%d" % number
    assert fronts[1].counters.h2_connections <= 30


async def test_curl_sees_early_hints_and_trailers(fronts):
    out = await run("curl", *CURL, "--http2", "-i", urls(fronts, "/hints")[1])
    assert out.index(b"HTTP/2 103") < out.index(b"HTTP/2 200")
    assert b"x-sum: 42" in out


async def test_without_http2_curl_speaks_http1_on_the_same_ports(fronts):
    for url in urls(fronts, "/"):
        assert await run("curl", *CURL, "--http1.1", "-w", "%{http_version}", url) == b"hello /1.1"


@pytest.mark.parametrize("secure", [False, True], ids=["clear", "TLS"])
async def test_nghttp_gets_pages_with_priorities_and_trailers(fronts, secure: bool):
    targets = [urls(fronts, path)[secure] for path in ("/large", "/a", "/hints")]
    out = await run("nghttp", "--no-verify-peer", "-v", "--trailer", "x: y", "-H", "priority: u=1, i", *targets)
    assert out.count(b":status: 200") == 3
    assert b"GOAWAY frame" in out
    assert b"error_code=NO_ERROR" in out
    assert b"RST_STREAM" not in out
    out = await run("nghttp", "--no-verify-peer", "--hexdump", "--no-dep", "-n", targets[1])
    assert out is not None


@pytest.mark.parametrize("secure", [False, True], ids=["clear", "TLS"])
async def test_h2load_with_many_streams_sees_no_failure(fronts, secure: bool):
    out = await run("h2load", "-n", "4000", "-c", "20", "-m", "20", urls(fronts, "/")[secure])
    assert b"4000 succeeded, 0 failed, 0 errored, 0 timeout" in out
    assert fronts[secure].counters.responses[2] == 4000
    out = await run("h2load", "-n", "40", "-c", "2", "-m", "10", "-w", "14", "-W", "15", urls(fronts, "/large")[secure])
    assert b"40 succeeded, 0 failed" in out

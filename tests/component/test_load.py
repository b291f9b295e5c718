"""The load generator against real sockets: servers that behave, and every way in which one can misbehave."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import uvloop

from edgetun import load_plan
from edgetun.cli import main
from edgetun.load import allow_open_files, run_load
from edgetun.load_plan import ClosedLoop, Crowd, LoadPlan, OpenLoop
from edgetun.load_result import LoadResult
from edgetun_core.errors import ConfigError, UpstreamUnreachable
from edgetun_core.pki import DevelopmentCA

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nCache-Status: edgetun; hit\r\n\r\nhello"


def on_every_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs the test once on asyncio's loop and once on uvloop, whose sockets and clock differ."""

    @pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    @functools.wraps(test)
    def run(loop: Callable[[], asyncio.AbstractEventLoop], **given: object) -> None:
        async def whole() -> None:
            await test(**given)

        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(whole())

    parameters = inspect.signature(test).parameters.values()
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("loop", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters]
    )
    return run


@asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that calls `answer` for every request head it reads, until that closes; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                await reader.readuntil(b"\r\n\r\n")
                await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, backlog=1000)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def saying(response: bytes, *, close: bool = False) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response)
        if close:
            writer.close()

    return answer


async def load(port: int, arrivals: Crowd | ClosedLoop | OpenLoop, scheme: str = "http", **more: object) -> LoadResult:
    return await run_load(LoadPlan(f"{scheme}://shop.localhost:{port}/", arrivals, **more))  # type: ignore[arg-type]


@on_every_loop
async def test_every_visitor_of_a_crowd_is_answered_on_a_connection_of_its_own_and_stays() -> None:
    async with serving(saying(HELLO)) as port:
        result = await load(port, Crowd(300, 0.1))
    assert result.is_clean
    assert (result.started, result.answered, result.statuses) == (300, 300, {200: 300})
    assert (result.connections, result.peak_open, result.open) == (300, 300, 0)
    assert (result.distinct_bodies, result.body_bytes, result.cache) == (1, 1500, {"hit": 300})
    assert result.latency.count == result.connecting.count == 300
    assert 0.09 <= result.arriving_s <= result.elapsed_s


@on_every_loop
async def test_visitors_who_need_not_stay_leave_when_they_are_answered() -> None:
    """The server answers a visitor only when the one before has left."""
    turn = asyncio.Lock()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with turn:
            writer.write(HELLO)
            assert await reader.readuntil(b"\r\n\r\n")
            writer.write(HELLO)
            assert await reader.read() == b""
            writer.close()

    async with serving(answer) as port:
        leaving = await load(port, Crowd(20, 0, requests=2, hold=False))
        staying = await load(port, Crowd(2, 0, requests=2), timeout_s=0.3)
    assert leaving.is_clean
    assert (leaving.answered, leaving.connections) == (40, 20)
    assert staying.errors["timeout"] == 2


@on_every_loop
async def test_a_closed_loop_uses_its_connections_again() -> None:
    async with serving(saying(HELLO)) as port:
        result = await load(port, ClosedLoop(4, 0.2))
    assert result.is_clean
    assert result.answered > 8
    assert (result.connections, result.peak_asking) == (4, 4)


@on_every_loop
async def test_a_closed_loop_dials_again_when_the_server_closes_after_each_answer() -> None:
    response = HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with serving(saying(response, close=True)) as port:
        result = await load(port, ClosedLoop(2, 0.2))
    assert result.is_clean
    assert result.connections == result.answered > 2


@on_every_loop
async def test_the_latency_of_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """One connection and a server that stalls once: those who had to wait their turn are late, and it must show."""
    stalls = [0.4]

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if stalls:
            await asyncio.sleep(stalls.pop())
        writer.write(HELLO)

    async with serving(answer) as port:
        result = await load(port, OpenLoop(100, 1, 0.5))
    assert result.is_clean
    assert result.answered == 50
    assert result.peak_asking == 1
    assert result.latency.percentile(50) > 100_000


@on_every_loop
async def test_bodies_and_statuses_are_told_apart() -> None:
    responses = iter([b"a", b"b", b"a", b"c"])

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = next(responses)
        status = b"503 Sorry" if body == b"c" else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n%b\r\n0\r\n\r\n" % (status, body))

    async with serving(answer) as port:
        result = await load(port, Crowd(1, 0, requests=4))
    assert result.statuses == {200: 3, 503: 1}
    assert sorted(result.bodies.values()) == [1, 2]
    assert not result.is_clean


async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HELLO[:-1])


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (hang, "timeout"),
        (reset, "reset"),
        (saying(HELLO[:-1], close=True), "cut short"),
        (saying(b"", close=True), "cut short"),
        (saying(b"220 smtp ready\r\n"), "bad response"),
        (saying(HELLO + b"HTTP/1.1 200 OK\r\n\r\n"), "bad response"),
    ],
    ids=["hangs", "resets", "breaks off", "says nothing", "is no web server", "says too much"],
)
@on_every_loop
async def test_what_a_server_does_wrong_is_counted_by_kind(answer: Answer, kind: str) -> None:
    async with serving(answer) as port:
        result = await load(port, Crowd(3, 0), timeout_s=0.3)
    assert result.errors == {kind: 3}
    assert result.examples[kind]
    assert (result.answered, result.asking, result.open) == (0, 0, 0)


@on_every_loop
async def test_a_server_that_goes_away_in_the_middle_is_refused_connections_and_the_run_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        plan = LoadPlan(f"http://localhost:{port}/", ClosedLoop(8, 30))
        running = asyncio.ensure_future(run_load(plan))
        probe, _ = await asyncio.get_running_loop().run_in_executor(None, listener.accept)
        probe.close()
    result = await asyncio.wait_for(running, 20)
    assert set(result.errors) <= {"refused", "reset", "cut short"}
    assert result.errors["refused"] >= 900


@on_every_loop
async def test_nothing_there_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UpstreamUnreachable, match=r"nothing answers at .*is the server running"):
        await load(port, Crowd(1))


@on_every_loop
async def test_a_host_that_is_not_this_machine_wants_its_owners_word() -> None:
    plan = LoadPlan("http://192.0.2.1/", Crowd(1))
    with pytest.raises(ConfigError, match="--i-own-this-host"):
        await load_plan.resolve(plan)
    async with serving(saying(HELLO)) as port:
        result = await run_load(LoadPlan("http://192.0.2.1/", Crowd(1), connect=("127.0.0.1", port)))
    assert result.is_clean


def test_too_few_open_files_are_noticed_before_the_start() -> None:
    with (
        patch("resource.getrlimit", return_value=(256, 1024)),
        patch("resource.setrlimit") as raised,
    ):
        allow_open_files(900)
        raised.assert_called_once_with(7, (1024, 1024))
        with pytest.raises(ConfigError, match=r"ulimit -n 10064.*take 960"):
            allow_open_files(10_000)


@on_every_loop
async def test_visitors_speak_tls_verify_it_and_send_the_server_name(tmp_path: Path) -> None:
    ca = DevelopmentCA(tmp_path)
    names: list[str | None] = []
    context = ca.identity(["shop.localhost"]).ssl_context(["http/1.1"])
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    async with serving(saying(HELLO), context) as port:
        trusting = await load(port, Crowd(20, 0.1, requests=2), "https", trust_pem=ca.ca_pem.decode())
        careless = await load(port, Crowd(1), "https", insecure=True)
        suspicious = await load(port, Crowd(2), "https")
    assert trusting.is_clean
    assert (trusting.answered, trusting.connections) == (40, 20)
    assert careless.is_clean
    assert suspicious.errors == {"certificate": 2}
    assert set(names) == {"shop.localhost"}


@on_every_loop
async def test_a_large_body_goes_up_and_a_large_one_comes_down_over_tls(tmp_path: Path) -> None:
    size = 3_000_000
    ca = DevelopmentCA(tmp_path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + got)
        await writer.drain()
        writer.close()

    async with serving(answer, ca.identity(["shop.localhost"]).ssl_context(["http/1.1"])) as port:
        result = await load(port, Crowd(2, 0), "https", method="POST", body=bytes(size), trust_pem=ca.ca_pem.decode())
    assert result.errors == {}
    assert (result.answered, result.body_bytes, result.distinct_bodies) == (2, 2 * size, 1)


@on_every_loop
async def test_tls_that_ends_without_a_goodbye_does_not_complete_a_body(tmp_path: Path) -> None:
    ca = DevelopmentCA(tmp_path)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await writer.drain()
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as plain:
            plain.shutdown(socket.SHUT_WR)

    async with serving(answer, ca.identity(["shop.localhost"]).ssl_context(["http/1.1"])) as port:
        result = await load(port, Crowd(1), "https", insecure=True, timeout_s=5)
    assert result.errors == {"cut short": 1}


@on_every_loop
async def test_cancelling_closes_every_connection() -> None:
    left = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.set()
        writer.close()

    async with serving(answer) as port:
        seen = asyncio.Event()
        plan = LoadPlan(f"http://localhost:{port}/", Crowd(1))
        running = asyncio.ensure_future(
            run_load(plan, lambda result: result.asking and seen.set(), progress_every_s=0.01)  # type: ignore[arg-type,func-returns-value]
        )
        await asyncio.wait_for(seen.wait(), 5)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.wait_for(left.wait(), 5)


@on_every_loop
async def test_a_listener_that_fails_ends_the_run_with_its_error() -> None:
    def burst(_: LoadResult) -> None:
        raise ValueError("cannot draw")

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with serving(saying(HELLO)) as port:
        with pytest.raises(ValueError, match="cannot draw"):
            await run_load(LoadPlan(f"http://localhost:{port}/", ClosedLoop(1, 5)), burst)


async def run_command(*arguments: str) -> int:
    return await asyncio.get_running_loop().run_in_executor(None, main, ["load", *arguments])


async def test_the_command_prints_json_and_exits_with_0_when_all_went_well(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(saying(HELLO)) as port:
        code = await run_command(f"http://localhost:{port}/", "--visitors", "5", "--within", "0s", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["requests"]["answered"] == 5
    assert printed["interrupted"] is False


async def test_the_command_exits_with_1_when_somebody_got_a_server_error(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(saying(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")) as port:
        code = await run_command(f"http://localhost:{port}/", "--visitors", "1", "--within", "0s")
    assert code == 1
    assert "1 500" in capsys.readouterr().out


async def test_the_command_exits_with_2_and_one_line_when_it_cannot_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run_command("gopher://localhost/") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'gopher://localhost/' is not an http or https URL")
    assert len(error.splitlines()) == 1


async def test_the_command_trusts_the_development_ca_of_edgetun_http_even_before_it_was_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server makes its authority and certificate at the first handshake, as `edgetun http` does."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    ca = DevelopmentCA(tmp_path / "edgetun" / "ca")
    waiting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def choose(sock: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        sock.context = ca.identity([name or ""]).ssl_context(["http/1.1"])

    waiting.sni_callback = choose
    async with serving(saying(HELLO), waiting) as port:
        assert await run_command(f"https://shop.localhost:{port}/", "--visitors", "3", "--within", "0s") == 0
        assert await run_command(f"https://shop.localhost:{port}/", "--visitors", "3", "--within", "0s") == 0
    assert "3 of 3" in capsys.readouterr().out

"""HTTPS: certificates by server name, reload, misdirected requests, versions, tickets, slow and broken handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgetun_core.errors import Cancelled, ConfigError
from edgetun_core.http.message import ResponseHead
from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontContext
from edgetun_exitnode.front.servers import serve_https
from edgetun_exitnode.front.tls import TlsFront
from support.handlers import ScriptedHandler, wait
from support.visitors import Visitor, until

from .conftest import QUICK, Connect

StartTls = Callable[..., Awaitable[TlsFront]]
Visit = Callable[[TlsFront, DevelopmentCA, str], Awaitable[Visitor]]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA(tmp_path_factory.mktemp("ca"))


def write_pair(ca: DevelopmentCA, folder: Path, stem: str, *names: str) -> tuple[Path, Path]:
    cert_pem, key_pem = ca.issue(names)
    pair = folder / f"{stem}.pem", folder / f"{stem}.key"
    pair[0].write_bytes(cert_pem)
    pair[1].write_bytes(key_pem)
    return pair


@pytest.fixture
def pairs(ca: DevelopmentCA, tmp_path: Path) -> list[tuple[Path, Path]]:
    return [
        write_pair(ca, tmp_path, "shop", "shop.example", "www.shop.example"),
        write_pair(ca, tmp_path, "wild", "*.team.example", "team.example"),
    ]


@pytest.fixture
async def start_tls() -> AsyncIterator[StartTls]:
    fronts: list[TlsFront] = []

    async def start(store: CertificateStore, handler: ScriptedHandler | None = None, **limits: object) -> TlsFront:
        context = FrontContext(handler or ScriptedHandler(), replace(QUICK, **limits))  # type: ignore[arg-type]
        front = await serve_https(context, "127.0.0.1", 0, store)
        assert isinstance(front, TlsFront)
        fronts.append(front)
        return front

    yield start
    for front in fronts:
        await front.drain(0.0)
        assert not front.connections
        assert front.counters.connections_open == 0


def client(ca: DevelopmentCA) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca.ca_pem.decode())
    context.set_alpn_protocols(["http/1.1"])
    return context


@pytest.fixture
def visit(connect: Connect) -> Visit:
    async def to(front: TlsFront, ca: DevelopmentCA, name: str) -> Visitor:
        return await connect(front.port, tls=client(ca), server_name=name)

    return to


def shown(visitor: Visitor) -> set[str]:
    certificate = visitor.writer.get_extra_info("peercert")
    return {name for _, name in certificate["subjectAltName"]}


async def test_the_certificate_is_chosen_by_server_name(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], visit: Visit
) -> None:
    handler = ScriptedHandler()
    front = await start_tls(CertificateStore(pairs), handler)
    for name, expected in (
        ("shop.example", "shop.example"),
        ("WWW.shop.example", "shop.example"),
        ("a.team.example", "*.team.example"),
        ("team.example", "*.team.example"),
    ):
        visitor = await visit(front, ca, name)
        assert expected in shown(visitor)
        assert visitor.writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert visitor.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert (await visitor.ask("/x", host=name)).body == b"hello /x"
        peer = handler.asked[-1].peer
        assert (peer.sni, peer.scheme, peer.address) == (name.lower(), b"https", "127.0.0.1")
        assert handler.asked[-1].head.scheme == b"https"
        await visitor.close()


async def test_tls_1_2_is_spoken_and_1_1_is_not(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], connect: Connect
) -> None:
    front = await start_tls(CertificateStore(pairs))
    old = client(ca)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    visitor = await connect(front.port, tls=old, server_name="shop.example")
    assert visitor.writer.get_extra_info("ssl_object").version() == "TLSv1.2"
    assert (await visitor.ask(host="shop.example")).status == 200
    await visitor.close()


@pytest.mark.parametrize("name", ["other.example", "a.b.team.example"])
async def test_an_unknown_name_ends_the_handshake_or_gets_the_default(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], name: str, visit: Visit
) -> None:
    front = await start_tls(CertificateStore(pairs))
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized"):
        await visit(front, ca, name)
    await until(lambda: front.counters.tls_handshake_failures == 1)
    lenient = await start_tls(CertificateStore(pairs, default_for_unknown=True))
    with pytest.raises(ssl.SSLCertVerificationError):
        await visit(lenient, ca, name)


async def test_a_request_for_a_host_that_the_certificate_does_not_cover_is_misdirected(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], visit: Visit
) -> None:
    handler = ScriptedHandler()
    front = await start_tls(CertificateStore(pairs), handler)
    for sni, host, status in (
        ("shop.example", "shop.example:8443", 200),
        ("shop.example", "www.shop.example", 200),
        ("shop.example", "team.example", 421),
        ("shop.example", "other.example", 421),
        ("a.team.example", "b.team.example", 200),
        ("a.team.example", "shop.example", 421),
        ("shop.example", "[::1]:8443", 421),
    ):
        before = len(handler.asked)
        visitor = await visit(front, ca, sni)
        assert (await visitor.ask(host=sni)).status == 200
        assert (await visitor.ask(host=host)).status == status
        assert len(handler.asked) == before + (2 if status == 200 else 1)
        await visitor.close()


async def test_without_a_server_name_any_host_may_be_asked_for(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], connect: Connect
) -> None:
    front = await start_tls(CertificateStore(pairs))
    nameless = client(ca)
    nameless.check_hostname = False
    visitor = await connect(front.port, tls=nameless, server_name="")
    assert "shop.example" in shown(visitor)
    assert (await visitor.ask(host="team.example")).status == 200
    await visitor.close()


async def test_a_replaced_certificate_is_shown_from_the_next_handshake_on(
    start_tls: StartTls,
    ca: DevelopmentCA,
    pairs: list[tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visit: Visit,
) -> None:
    monkeypatch.setattr("edgetun_exitnode.front.tls._RELOAD_EVERY_S", 0.05)
    store = CertificateStore(pairs)
    front = await start_tls(store)
    before = await visit(front, ca, "shop.example")
    serial = before.writer.get_extra_info("peercert")["serialNumber"]
    cert_pem, key_pem = ca.issue(("shop.example", "new.shop.example"))
    for file, content in zip(pairs[0], (cert_pem, key_pem), strict=True):
        new = tmp_path / "new"
        new.write_bytes(content)
        os.replace(new, file)
    async with asyncio.timeout(5.0):
        while True:
            visitor = await visit(front, ca, "shop.example")
            if visitor.writer.get_extra_info("peercert")["serialNumber"] != serial:
                break
            await visitor.close()
    assert "new.shop.example" in shown(visitor)
    assert (await before.ask(host="shop.example")).status == 200  # the connection that stood goes on
    await visitor.close()
    await before.close()


def test_a_broken_file_keeps_the_old_certificate_and_says_so(ca: DevelopmentCA, pairs: list[tuple[Path, Path]]) -> None:
    store = CertificateStore(pairs)
    pairs[0][0].write_text("nonsense")
    (problem,) = store.reload_changed()
    assert "the old certificate stays" in problem
    assert str(pairs[0][0]) in problem
    assert store.reload_changed() == []  # said once
    assert store.covers_both("shop.example", "www.shop.example")
    pairs[0][0].unlink()
    assert len(store.reload()) == 1


def test_missing_files_and_no_certificate_at_all_are_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        CertificateStore([(tmp_path / "nothing.pem", tmp_path / "nothing.key")])
    with pytest.raises(ConfigError, match="needs a certificate"):
        CertificateStore()


async def test_the_development_ca_makes_certificates_for_names_it_may(
    start_tls: StartTls, ca: DevelopmentCA, visit: Visit, connect: Connect
) -> None:
    front = await start_tls(CertificateStore(development=ca, may_issue=lambda name: name.endswith(".dev.example")))
    for name in ("shop.dev.example", "localhost"):
        for _ in range(2):
            visitor = await visit(front, ca, name)
            assert name in shown(visitor)
            assert (await visitor.ask(host=name)).status == 200
            await visitor.close()
    for name in ("evil.example", "-x.dev.example"):
        with pytest.raises(ssl.SSLError):
            await visit(front, ca, name)
    by_address = await connect(front.port, tls=client(ca), server_name="127.0.0.1")
    assert (await by_address.ask(host=f"127.0.0.1:{front.port}")).status == 200
    await by_address.close()


async def test_sessions_are_resumed_also_after_a_reload(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]]
) -> None:
    store = CertificateStore(pairs)
    front = await start_tls(store)
    context = client(ca)

    def once(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        sock = socket.create_connection(("127.0.0.1", front.port), timeout=5.0)
        with context.wrap_socket(sock, server_hostname="shop.example", session=session) as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
            while tls.recv(4096):
                pass
            return bool(tls.session_reused), tls.session

    _, session = await asyncio.to_thread(once, None)
    store.reload()
    reused, _ = await asyncio.to_thread(once, session)
    assert reused


async def test_silent_handshakes_end_at_their_deadline_and_hold_nobody_up(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], visit: Visit, connect: Connect
) -> None:
    front = await start_tls(CertificateStore(pairs), tls_handshake_s=0.3)
    silent = [await connect(front.port) for _ in range(50)]
    visitor = await visit(front, ca, "shop.example")
    assert (await visitor.ask(host="shop.example")).status == 200
    for other in silent:
        await other.rest()
    await until(lambda: front.counters.tls_handshake_failures == 50)
    await visitor.close()


async def test_handshakes_beyond_half_the_places_give_way(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], visit: Visit, connect: Connect
) -> None:
    front = await start_tls(CertificateStore(pairs), max_connections=4)
    silent = [await connect(front.port) for _ in range(4)]
    visitor = await visit(front, ca, "shop.example")
    assert (await visitor.ask(host="shop.example")).status == 200
    assert front.counters.connections_evicted == 1
    await visitor.close()
    for other in silent:
        other.leave()


async def test_plain_http_on_the_tls_port_ends_the_handshake(
    start_tls: StartTls, pairs: list[tuple[Path, Path]], connect: Connect
) -> None:
    front = await start_tls(CertificateStore(pairs))
    visitor = await connect(front.port)
    visitor.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    await visitor.rest()
    await until(lambda: front.counters.tls_handshake_failures == 1)


async def test_streaming_leaving_and_upgrades_work_over_tls(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], visit: Visit
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_tls(CertificateStore(pairs), handler)
    visitor = await visit(front, ca, "shop.example")
    visitor.send(b"POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 300000\r\n\r\n", b"x" * 300_000)
    asked = await handler.request(0)
    await asked.until(lambda asked: asked.ended)
    asked.begin(200)
    assert (await visitor.head()).status == 200
    visitor.leave()
    await asked.until(lambda asked: isinstance(asked.error, Cancelled))

    visitor = await visit(front, ca, "shop.example")
    visitor.send(
        b"GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    asked = await handler.request(1)
    asked.client.on_head(ResponseHead(101, ()), False)
    assert (await visitor.head()).status == 101
    visitor.send(b"ping")
    await asked.until(lambda asked: bytes(asked.body) == b"ping")
    asked.client.on_data(b"pong", True)
    assert await visitor.rest() == b"pong"
    await visitor.close()
    await until(lambda: not front.connections)


async def test_a_slow_reader_over_tls_pauses_the_answering_side(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], connect: Connect
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_tls(CertificateStore(pairs), handler)
    visitor = await connect(front.port, tls=client(ca), server_name="shop.example", buffer_bytes=1024)
    visitor.send(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    asked = await handler.request()
    asked.begin(200)
    sent = 0
    while not asked.is_paused:
        asked.client.on_data(b"x" * 16_384, False)
        sent += 16_384
        assert sent < 64 * 1024 * 1024
        await asyncio.sleep(0)
    (connection,) = front.connections
    assert connection.transport.get_write_buffer_size() <= front.limits.write_buffer_bytes + 64 * 1024
    reading = asyncio.create_task(visitor.answer())
    await asked.until(lambda asked: not asked.is_paused)
    asked.client.on_data(b"", True)
    assert len((await reading).body) == sent
    await visitor.close()


async def test_a_body_not_read_to_its_end_is_answered_and_closed_over_tls(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], visit: Visit
) -> None:
    front = await start_tls(CertificateStore(pairs), ScriptedHandler(lambda asked: asked.answer(413, b"too much")))
    visitor = await visit(front, ca, "shop.example")
    visitor.send(b"POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 100000000\r\n\r\n", b"x" * 100_000)
    answer = await visitor.answer()
    assert (answer.status, answer.body) == (413, b"too much")
    assert await visitor.is_closed()
    await visitor.close()
    await until(lambda: not front.connections)


async def test_drain_over_tls(
    start_tls: StartTls, ca: DevelopmentCA, pairs: list[tuple[Path, Path]], visit: Visit, connect: Connect
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_tls(CertificateStore(pairs), handler)
    silent = await connect(front.port)
    visitor = await visit(front, ca, "shop.example")
    visitor.send(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    asked = await handler.request()
    draining = asyncio.create_task(front.drain(1.0))
    await asyncio.sleep(0)
    asked.answer(200, b"done")
    answer = await visitor.answer()
    assert (answer.body, answer.fields["connection"]) == (b"done", "close")
    assert await visitor.is_closed()
    await asyncio.wait_for(draining, 3.0)
    await silent.rest()
    await visitor.close()


# The transport (tls_transport.py).


async def test_a_body_over_tls_waits_while_the_handler_does_and_arrives_whole(
    ca: DevelopmentCA, pairs: list[tuple[Path, Path]], start_tls: StartTls, visit: Visit
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_tls(CertificateStore(pairs), handler)
    visitor = await visit(front, ca, "shop.example")
    visitor.send(b"POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 20000000\r\n\r\n")
    asked = await handler.request()
    asked.client.pause_request()
    body = os.urandom(1_000_000) * 20
    visitor.send(body)
    await asyncio.sleep(0.2)
    assert len(asked.body) <= 512 * 1024  # at most what one read had under way
    for _ in range(5):
        asked.client.resume_request()
        await asyncio.sleep(0.01)
        asked.client.pause_request()
    asked.client.resume_request()
    await asked.until(lambda asked: asked.ended, 20.0)
    assert bytes(asked.body) == body
    asked.answer(200, b"done")
    assert (await visitor.answer()).body == b"done"


async def test_a_visitor_who_closes_in_order_cancels_what_it_waits_for(
    ca: DevelopmentCA, pairs: list[tuple[Path, Path]], start_tls: StartTls, visit: Visit
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_tls(CertificateStore(pairs), handler)
    visitor = await visit(front, ca, "shop.example")
    visitor.send(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    asked = await handler.request()
    visitor.writer.close()  # close_notify first
    await asked.until(lambda asked: isinstance(asked.error, Cancelled))
    await until(lambda: not front.connections)


async def test_a_broken_record_ends_its_connection_alone(
    ca: DevelopmentCA, pairs: list[tuple[Path, Path]], start_tls: StartTls, visit: Visit
) -> None:
    handler = ScriptedHandler(wait)
    front = await start_tls(CertificateStore(pairs), handler)
    broken, sound = await visit(front, ca, "shop.example"), await visit(front, ca, "shop.example")
    for visitor in (broken, sound):
        visitor.send(b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    await handler.request(1)
    os.write(broken.writer.get_extra_info("socket").fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
    await until(lambda: len(front.connections) == 1)
    failed = [asked for asked in handler.asked if asked.error is not None]
    assert len(failed) == 1
    (left,) = [asked for asked in handler.asked if asked.error is None]
    left.answer(200, b"fine")
    assert (await sound.answer()).body == b"fine"


async def test_a_request_that_comes_with_the_handshakes_end_is_answered_and_the_end_said_in_order(
    ca: DevelopmentCA, pairs: list[tuple[Path, Path]], start_tls: StartTls
) -> None:
    front = await start_tls(CertificateStore(pairs))

    def ask() -> tuple[bytes, bool]:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client(ca).wrap_bio(incoming, outgoing, server_hostname="shop.example")
        with socket.create_connection(("127.0.0.1", front.port), 10) as sock:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    if outgoing.pending:
                        sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65536))
            tls.write(b"GET /early HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
            sock.sendall(outgoing.read())  # Finished and the request in one segment
            received = b""
            while data := sock.recv(65536):
                incoming.write(data)
            try:
                while data := tls.read(65536):
                    received += data
            except ssl.SSLZeroReturnError:
                return received, True
            except ssl.SSLError:
                return received, False
            return received, True

    received, was_ended = await asyncio.to_thread(ask)
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert received.endswith(b"hello /early")
    assert was_ended

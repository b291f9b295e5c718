"""QUIC below HTTP/3 as a visitor meets it: Retry, a changed address, early data, limits on connections, time-outs."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import SessionTicket

from edgetun_core.http.h3_frames import H3_NO_ERROR
from edgetun_core.pki import DevelopmentCA
from edgetun_core.transport.quic_retry import ResetTokens, RetryTokens
from edgetun_core.transport.udp import bind_udp
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontContext
from edgetun_exitnode.front.h3_front import H3Front
from support.h3_client import H3Visitor, h3_visitor
from support.handlers import Asked, ScriptedHandler, echo, wait
from support.impairment import Impairment
from support.impairment.udp_path import udp_path
from support.visitors import until

from .h3_fixtures import StartH3, h3_ca, start_h3

__all__ = ["h3_ca", "start_h3"]


async def test_under_load_a_visitor_proves_its_address_first(start_h3: StartH3) -> None:
    front = await start_h3(retry_from=0)
    async with h3_visitor(front.port) as visitor:
        assert (await visitor.ask()).status == 200
    assert front.retries_sent == 1


async def test_below_that_nobody_is_asked(start_h3: StartH3) -> None:
    front = await start_h3()
    async with h3_visitor(front.port, token=os.urandom(60)) as visitor:  # as another server might have given it
        assert (await visitor.ask()).status == 200
    assert front.retries_sent == 0


async def test_a_made_up_token_opens_nothing_under_load(start_h3: StartH3) -> None:
    front = await start_h3(retry_from=0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0), h3_visitor(front.port, token=os.urandom(60)):
            pass
    assert front.retries_sent == 0
    assert front.half_open == 0


async def test_nodes_with_the_same_certificate_take_each_others_tokens(
    start_h3: StartH3, h3_ca: DevelopmentCA, tmp_path: Path
) -> None:
    folder = tmp_path
    cert, key = h3_ca.issue(["shop.example"])
    (folder / "a.pem").write_bytes(cert)
    (folder / "a.key").write_bytes(key)
    stores = [CertificateStore([(folder / "a.pem", folder / "a.key")]) for _ in range(2)]
    secrets = {store.shared_secret() for store in stores}
    assert secrets == {key}
    here, there = (RetryTokens(store.shared_secret()) for store in stores)
    address = ("192.0.2.1", 1234)
    token = here.make(address, b"original", b"8 bytes.", 1000.0)
    assert there.open(address, token, 1001.0) == (b"original", b"8 bytes.")
    assert there.open(("192.0.2.1", 1235), token, 1001.0) is None
    assert there.open(address, token, 1020.0) is None
    assert there.open(address, bytes((token[0] ^ 1,)) + token[1:], 1001.0) is None
    assert RetryTokens().open(address, token, 1001.0) is None
    there.renew(b"a newer key")
    assert there.open(address, token, 1001.0) is not None  # the key before still opens


async def test_a_download_goes_on_when_the_visitors_address_changes(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler)
    async with udp_path(front.port) as path, h3_visitor(path.port) as visitor:
        sid = visitor.open()
        asked = await handler.request()
        asked.begin(200, (b"content-length", b"3000000"))
        asked.client.on_data(bytes(1_000_000), False)
        await visitor.until(lambda: sid in visitor.answers and len(visitor.answers[sid].body) > 100_000)
        before = asked.peer
        await path.rebind()
        asked.client.on_data(bytes(1_000_000), False)
        asked.client.on_data(bytes(1_000_000), True)
        assert len((await visitor.answer(sid)).body) == 3_000_000
        assert (await _next(visitor, handler)).peer.port != before.port
    assert front.counters.quic_migrations == 1


async def _next(visitor: H3Visitor, handler: ScriptedHandler) -> Asked:
    count = len(handler.asked)
    visitor.open()
    return await handler.request(count)


async def test_early_data_carries_safe_requests_and_a_ticket_is_good_once(start_h3: StartH3) -> None:
    handler = ScriptedHandler()
    front = await start_h3(handler)
    tickets: list[SessionTicket] = []
    async with h3_visitor(front.port, tickets=tickets.append) as visitor:
        await visitor.ask("/first")
        await visitor.until(lambda: tickets)
    assert handler.asked[0].head.get(b"early-data") is None

    async with h3_visitor(front.port, session_ticket=tickets[0], wait_connected=False) as visitor:
        safe, unsafe = visitor.open("GET", "/early"), visitor.open("POST", "/early")
        assert (await visitor.answer(safe)).body == b"hello /early"
        refused = await visitor.answer(unsafe)
        assert refused.status == 425
        await visitor.until(lambda: visitor.handshake)
        assert visitor.handshake is not None
        assert (visitor.handshake.session_resumed, visitor.handshake.early_data_accepted) == (True, True)
        assert (await visitor.ask("/later", method="POST")).status == 200
    early, later = handler.asked[1:]
    assert early.head.get(b"early-data") == b"1"
    assert later.head.get(b"early-data") is None
    assert front.counters.early_data_requests == 2
    assert front.counters.early_data_refused == 1

    # Whoever sends the same first flight again gets a full handshake, and nothing of it is taken early.
    async with h3_visitor(front.port, session_ticket=tickets[0]) as visitor:
        assert visitor.handshake is not None
        assert not visitor.handshake.session_resumed
        assert (await visitor.ask("/again")).status == 200
    assert front.counters.early_data_requests == 2


async def test_a_ticket_is_good_for_its_own_server_name_only(start_h3: StartH3) -> None:
    front = await start_h3()
    tickets: list[SessionTicket] = []
    async with h3_visitor(front.port, tickets=tickets.append) as visitor:
        await visitor.ask("/first")
        await visitor.until(lambda: tickets)
    ticket = tickets[0]
    ticket.server_name = "other.example"
    async with h3_visitor(front.port, server_name="other.example", session_ticket=ticket) as visitor:
        assert visitor.handshake is not None
        assert not visitor.handshake.session_resumed
        assert (await visitor.ask(host="other.example")).status == 200


async def test_an_idle_connection_is_closed_and_one_with_a_request_is_kept(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler, keep_alive_s=2.0)
    async with h3_visitor(front.port, idle_timeout=30) as idle, h3_visitor(front.port, idle_timeout=30) as waits:
        sid = waits.open()
        asked = await handler.request()
        assert await idle.close_code() in (H3_NO_ERROR, QuicErrorCode.INTERNAL_ERROR)
        await asyncio.sleep(2.5)  # more than the idle time: our pings keep it
        asked.answer(200, b"late")
        assert (await waits.answer(sid)).body == b"late"


async def test_a_full_front_puts_out_who_is_idle_and_else_answers_nobody_new(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler, max_connections=2)
    async with h3_visitor(front.port) as first, h3_visitor(front.port) as second:
        sid = first.open()
        asked = await handler.request()
        await until(lambda: front.now > next(iter(front.connections)).active, 10)
        await asyncio.sleep(0.2)
        async with h3_visitor(front.port) as third:
            assert await second.close_code() == H3_NO_ERROR
            other = third.open()
            await handler.request(1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0), h3_visitor(front.port):
                    pass
            await asyncio.sleep(0.3)  # its farewell was read and not answered either, while nobody was idle
            handler.asked[1].answer(200, b"third")
            assert (await third.answer(other)).body == b"third"
        asked.answer(200, b"first")
        assert (await first.answer(sid)).body == b"first"
    assert front.counters.connections_evicted == 1
    assert front.counters.connections_refused >= 1


async def test_connections_of_one_address_are_bounded(start_h3: StartH3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetun_exitnode.front.addresses.address_key", lambda address: address)
    front = await start_h3(max_connections_per_address=1)
    async with h3_visitor(front.port) as visitor:
        assert (await visitor.ask()).status == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0), h3_visitor(front.port):
                pass
    assert front.counters.connections_refused >= 1


async def test_garbage_and_other_versions_do_no_harm(start_h3: StartH3) -> None:
    front = await start_h3()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect(("127.0.0.1", front.port))
        for size in (1, 7, 20, 1200, 1500):
            sock.send(os.urandom(size))
        for first in (0xC0, 0xD0, 0xE0, 0xF0, 0xFF):
            sock.send(bytes((first,)) + b"\x00\x00\x00\x01" + os.urandom(1400))
        sock.send(b"\xc0\x00\x00\x00\x01" + b"\xff" * 1300)
        sock.send(b"\xc0\x1a\x2a\x3a\x4a\x08destinat\x06source" + bytes(1200))
        answer = b""
        while answer[5:21] != b"\x06source\x08destinat":  # garbage may look like packets that are answered, too
            answer = await asyncio.to_thread(sock.recv, 2000)
        assert answer[1:5] == bytes(4)  # version negotiation
        assert answer.endswith(b"\x00\x00\x00\x01")
    async with h3_visitor(front.port) as visitor:
        assert (await visitor.ask()).status == 200
    assert len(front.connections) <= 1


async def test_bodies_come_whole_both_ways_through_loss_delay_and_reordering(start_h3: StartH3) -> None:
    front = await start_h3(ScriptedHandler(echo))
    weather = Impairment(loss=0.03, delay_s=0.01, jitter_s=0.005, reorder=0.05)
    body = os.urandom(300_000)
    async with udp_path(front.port, weather, seed=7) as path, h3_visitor(path.port) as visitor:
        visitor.timeout_s = 60
        answer = await visitor.ask("/", method="POST", body=body)
        assert bytes(answer.body) == body
        assert path.up.lost
        assert path.down.lost


async def test_a_connection_whose_node_is_gone_is_ended_at_once_by_its_successor(
    h3_ca: DevelopmentCA, tmp_path: Path
) -> None:
    cert, key = h3_ca.issue(["shop.example"])
    pair = tmp_path / "a.pem", tmp_path / "a.key"
    pair[0].write_bytes(cert)
    pair[1].write_bytes(key)

    def serve(port: int) -> H3Front:
        return H3Front(
            FrontContext(ScriptedHandler()), bind_udp(socket.AF_INET, ("127.0.0.1", port)), CertificateStore([pair])
        )

    first = serve(0)
    async with h3_visitor(first.port, idle_timeout=60) as visitor:
        assert (await visitor.ask()).status == 200
        first._close_socket()  # as a process that is killed: no goodbye
        first.close()
        second = serve(first.port)
        try:
            visitor._quic.send_ping(1)
            visitor.transmit()
            await until(lambda: second.resets_sent > 0, 20)
            tokens = ResetTokens(key)
            assert tokens.packet(b"12345678", 40) is not None
            assert tokens.packet(b"12345678", 21) is None  # never as large as what it answers
            # What the visitor was given for the id it sends to is what the successor sends.
            given = visitor._quic._peer_cid
            assert given.stateless_reset_token == tokens.token(given.cid)
        finally:
            second.close()


async def test_what_trips_the_library_ends_one_connection_and_is_told_once(
    start_h3: StartH3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    front = await start_h3()

    def trip(*_: object) -> None:
        raise RuntimeError("tripped")

    for _ in range(3):
        async with h3_visitor(front.port) as visitor:
            (connection,) = [it for it in front.connections if it.is_established]
            monkeypatch.setattr(type(connection), "_update_peer", trip)
            connection._moved = True
            visitor.open()
            await visitor.close_code()
            monkeypatch.undo()
            await until(lambda: not front.connections, 10)
    assert sum("could not go on" in record.message for record in caplog.records) == 1
    async with h3_visitor(front.port) as visitor:
        assert (await visitor.ask()).status == 200

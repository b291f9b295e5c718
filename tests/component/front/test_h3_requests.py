"""HTTP/3 requests and responses by aioquic's client: bodies, trailers, 1xx, cancelling, certificates, flow, going away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgetun_core.errors import Cancelled, UpstreamBroken
from edgetun_core.http.h3_frames import H3_INTERNAL_ERROR, H3_NO_ERROR
from edgetun_core.http.message import ResponseHead
from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.h3 import MAX_HELD_BYTES, MAX_QUEUED_BYTES
from edgetun_exitnode.front.h3_output import HAND_BYTES
from support.h3_client import h3_visitor
from support.handlers import Asked, ScriptedHandler, echo, hello, wait
from support.visitors import until

from .h3_fixtures import StartH3, h3_ca, start_h3

__all__ = ["h3_ca", "start_h3"]


async def test_a_request_is_answered_and_its_peer_is_known(start_h3: StartH3, h3_ca: DevelopmentCA) -> None:
    handler = ScriptedHandler()
    front = await start_h3(handler)
    async with h3_visitor(front.port, ca_pem=h3_ca.ca_pem) as visitor:
        for _ in range(3):  # the second and third are known by their bytes
            answer = await visitor.ask("/x?y", ("cookie", "a=1"), ("cookie", "b=2"), ("x-more", "1"))
            assert (answer.status, answer.body) == (200, b"hello /x?y")
            assert answer.fields["content-length"] == "10"
            assert "GMT" in answer.fields["date"]
    head, peer = handler.asked[0].head, handler.asked[0].peer
    assert (head.method, head.scheme, head.authority, head.target) == (b"GET", b"https", b"shop.example", b"/x?y")
    assert head.fields == ((b"cookie", b"a=1; b=2"), (b"x-more", b"1"))
    assert (peer.version, peer.scheme, peer.sni, peer.address) == (b"3", b"https", "shop.example", "127.0.0.1")
    assert peer.local == ("127.0.0.1", front.port)
    assert handler.asked[1].head is handler.asked[2].head
    assert front.counters.http3_requests == 3
    assert front.counters.responses[2] == 3


@pytest.mark.parametrize("size", [1, 20_000, 3_000_000])
async def test_bodies_go_both_ways_whole(start_h3: StartH3, size: int) -> None:
    handler = ScriptedHandler(echo)
    front = await start_h3(handler)
    body = bytes(range(256)) * (size // 256 + 1)
    async with h3_visitor(front.port) as visitor:
        answer = await visitor.ask("/", ("content-length", str(len(body))), method="POST", body=body)
    assert answer.status == 200
    assert answer.body == body


async def test_a_response_of_unknown_length_with_1xx_and_trailers(start_h3: StartH3) -> None:
    def script(asked: Asked) -> None:
        asked.client.on_interim(ResponseHead(103, ((b"link", b"</a.css>"),)))
        asked.begin(200, (b"trailer", b"x-sum"))
        asked.client.on_data(b"one", False)
        asked.client.on_data(b"two", False)
        asked.client.on_trailers(((b"x-sum", b"6"),))

    front = await start_h3(ScriptedHandler(script))
    async with h3_visitor(front.port) as visitor:
        answer = await visitor.ask()
    assert answer.interim == [103]
    assert (answer.status, answer.body, answer.trailers) == (200, b"onetwo", {"x-sum": "6"})


async def test_request_trailers_reach_the_origin(start_h3: StartH3) -> None:
    handler = ScriptedHandler(echo)
    front = await start_h3(handler)
    async with h3_visitor(front.port) as visitor:
        sid = visitor.open("POST", end=False)
        visitor.send(sid, b"abc")
        visitor.h3.send_headers(sid, [(b"x-sum", b"3"), (b"content-length", b"3")], end_stream=True)
        visitor.transmit()
        answer = await visitor.answer(sid)
    assert answer.body == b"abc"
    assert answer.fields["x-trailer-x-sum"] == "3"
    assert handler.asked[0].trailers == ((b"x-sum", b"3"),)  # framing fields do not belong there


async def test_head_and_304_have_no_body(start_h3: StartH3) -> None:
    def not_modified(asked: Asked) -> None:
        asked.client.on_head(ResponseHead(304, ((b"etag", b'"a"'), (b"content-length", b"9"))), True)

    front = await start_h3(ScriptedHandler(hello, same=not_modified))
    async with h3_visitor(front.port) as visitor:
        head = await visitor.ask("/abc", method="HEAD")
        assert (head.status, head.body, head.fields["content-length"]) == (200, b"", "10")
        same = await visitor.ask("/same")
        assert (same.status, same.body) == (304, b"")


async def test_an_event_stream_is_seen_as_it_comes(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler)
    async with h3_visitor(front.port) as visitor:
        sid = visitor.open()
        asked = await handler.request()
        asked.begin(200, (b"content-type", b"text/event-stream"))
        await visitor.head(sid)  # before any data
        for number in range(3):
            asked.client.on_data(b"data: %d\n\n" % number, False)
            await visitor.until(lambda n=number: len(visitor.answers[sid].body) == 9 * (n + 1))
        asked.client.on_data(b"", True)
        assert (await visitor.answer(sid)).complete


async def test_a_visitor_who_leaves_cancels_the_request(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler)
    async with h3_visitor(front.port) as visitor:
        first = visitor.open("GET", "/a")
        second = visitor.open("POST", "/b", end=False)
        visitor.open("GET", "/c")
        asked = [await handler.request(number) for number in range(3)]
        visitor.cancel(first)
        await asked[0].until(lambda it: isinstance(it.error, Cancelled))
        visitor.cancel(second)
        await asked[1].until(lambda it: isinstance(it.error, Cancelled))
        assert asked[2].error is None
        asked[2].answer(200, b"still here")
        await visitor.until(lambda: any(it.body == b"still here" for it in visitor.answers.values()))
        visitor.open("GET", "/d")
        last = await handler.request(3)
    await last.until(lambda it: isinstance(it.error, Cancelled))  # the connection was closed


async def test_an_origin_that_fails_is_told_and_one_that_breaks_off_resets_the_stream(start_h3: StartH3) -> None:
    def fail(asked: Asked) -> None:
        asked.client.on_reset(UpstreamBroken("the origin broke off"))

    def break_off(asked: Asked) -> None:
        asked.begin(200, (b"content-length", b"10"))
        asked.client.on_data(b"abc", False)
        asked.client.on_reset(UpstreamBroken("the origin broke off"))

    def lie(asked: Asked) -> None:
        asked.begin(200, (b"content-length", b"10"))
        asked.client.on_data(b"abc", True)

    front = await start_h3(ScriptedHandler(hello, fail=fail, off=break_off, lie=lie))
    async with h3_visitor(front.port) as visitor:
        answer = await visitor.ask("/fail")
        assert answer.status == 502
        assert b"broke off" in answer.body
        assert await visitor.reset_code(visitor.open("GET", "/off")) == H3_INTERNAL_ERROR
        assert (await visitor.ask("/lie")).status == 502
        assert (await visitor.ask("/fine")).status == 200


async def test_an_early_answer_stops_the_request(start_h3: StartH3) -> None:
    def refuse(asked: Asked) -> None:
        asked.answer(413, b"too much")

    front = await start_h3(ScriptedHandler(refuse))
    async with h3_visitor(front.port) as visitor:
        sid = visitor.open("POST", "/", end=False)
        answer = await visitor.answer(sid)
        assert (answer.status, answer.body) == (413, b"too much")
        await visitor.until(lambda: sid in visitor.stops)
        assert visitor.stops[sid] == H3_NO_ERROR


async def test_the_certificate_is_chosen_by_name_and_another_host_is_misdirected(
    start_h3: StartH3, h3_ca: DevelopmentCA, tmp_path: Path
) -> None:
    files = []
    for stem, names in (("shop", ["shop.example", "www.shop.example"]), ("wild", ["*.team.example"])):
        cert, key = h3_ca.issue(names)
        pair = tmp_path / f"{stem}.pem", tmp_path / f"{stem}.key"
        pair[0].write_bytes(cert)
        pair[1].write_bytes(key)
        files.append(pair)
    store = CertificateStore(files)
    front = await start_h3(store=store)
    for name in ("shop.example", "a.team.example"):
        async with h3_visitor(front.port, server_name=name, ca_pem=h3_ca.ca_pem) as visitor:
            assert (await visitor.ask(host=name)).status == 200
    async with h3_visitor(front.port, ca_pem=h3_ca.ca_pem) as visitor:
        assert (await visitor.ask(host="www.shop.example")).status == 200
        assert (await visitor.ask(host="shop.example:443")).status == 200
        wrong = await visitor.ask(host="a.team.example")
        assert wrong.status == 421
        assert b"another host" in wrong.body
    with pytest.raises(ConnectionError):
        async with h3_visitor(front.port, server_name="nobody.example"):
            pass
    # A renewed certificate is shown to the next visitor.
    cert, key = h3_ca.issue(["shop.example", "new.example"])
    files[0][0].write_bytes(cert)
    files[0][1].write_bytes(key)
    store.reload()
    async with h3_visitor(front.port, server_name="new.example", ca_pem=h3_ca.ca_pem) as visitor:
        assert (await visitor.ask(host="new.example")).status == 200


async def test_a_slow_reader_pauses_the_answering_side_and_gets_everything(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler, write_buffer_bytes=256 * 1024)
    size, piece = 10_000_000, bytes(50_000)
    async with h3_visitor(front.port, max_stream_data=100_000, max_data=200_000) as visitor:
        sid = visitor.open()
        asked = await handler.request()
        asked.begin(200, (b"content-length", b"%d" % size))
        sent = 0
        most = 0
        while sent < size:
            if asked.is_paused:
                (connection,) = front.connections
                most = max(most, connection.output.queued_bytes + connection.output.handed)
                await asked.until(lambda it: not it.is_paused, 30)
            asked.client.on_data(piece, sent + len(piece) == size)
            sent += len(piece)
            if sent % 1_000_000 == 0:
                await asyncio.sleep(0)
        assert asked.pauses > 3
        assert most < MAX_QUEUED_BYTES + HAND_BYTES
        visitor.timeout_s = 60
        assert len((await visitor.answer(sid)).body) == size


async def test_a_paused_handler_stops_the_upload(start_h3: StartH3) -> None:
    def pause(asked: Asked) -> None:
        asked.client.pause_request()

    handler = ScriptedHandler(pause)
    front = await start_h3(handler)
    body = bytes(3_000_000)
    async with h3_visitor(front.port) as visitor:
        sid = visitor.open("POST", end=False)
        visitor.send(sid, body, True)
        asked = await handler.request()
        (connection,) = front.connections
        await until(lambda: connection.is_full, 10)
        await asyncio.sleep(0.3)
        assert not asked.body
        assert MAX_HELD_BYTES < front.held_bytes < 2 * MAX_HELD_BYTES
        asked.client.resume_request()
        await asked.until(lambda it: it.ended, 30)
        assert bytes(asked.body) == body
        assert front.held_bytes == 0
        asked.answer(200, b"got it")
        assert (await visitor.answer(sid)).body == b"got it"


async def test_draining_says_goaway_finishes_requests_and_closes(start_h3: StartH3) -> None:
    handler = ScriptedHandler(wait)
    front = await start_h3(handler)
    async with h3_visitor(front.port) as visitor:
        sid = visitor.open()
        asked = await handler.request()
        draining = asyncio.create_task(front.drain(20.0))
        (connection,) = front.connections
        await until(lambda: 0 <= connection.goaway < 1000, 10)
        late = visitor.open("GET", "/late")
        assert await visitor.reset_code(late) == 0x10B  # H3_REQUEST_REJECTED: it may be sent elsewhere
        asked.answer(200, b"done")
        assert (await visitor.answer(sid)).body == b"done"
        assert await visitor.close_code() == H3_NO_ERROR
        await draining
    assert len(handler.asked) == 1

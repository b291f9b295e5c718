"""What only QUIC links promise: they outlive lost datagrams and changed addresses, and bound what strangers can cost."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgetun_core.errors import AuthError, ProtocolError, SessionLost
from edgetun_core.pki import DevelopmentCA
from edgetun_core.transport import quic_dial, quic_driver, quic_endpoint, quic_listen, quic_twice, udp
from edgetun_core.transport.engines import listen
from edgetun_core.transport.quic_library import dial_connection, library
from support.links import Place, Recorder, eventually, lossy_path, outcome

PAIRS = [
    pytest.param(("qh3", "qh3"), id="qh3"),
    pytest.param(("aioquic", "aioquic"), id="aioquic"),
    pytest.param(("qh3", "aioquic"), id="aioquic-dials-qh3"),
    pytest.param(("aioquic", "qh3"), id="qh3-dials-aioquic"),
]


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(params=PAIRS)
async def place(request: pytest.FixtureRequest, ca: DevelopmentCA) -> AsyncIterator[Place]:
    place = Place(*request.param, ca)
    yield place
    await place.leave()


async def test_a_new_local_address_of_the_dialler_is_followed(place: Place) -> None:
    await place.listen()
    near, far = await place.pair()
    before = far.link.peer_address
    for lane in (0, 1, 5):
        near.link.rebind()
        near.link.write(lane, b"from a new address")
        await eventually(lambda lane=lane: near.received.get(lane) == b"from a new address")
    far.link.write(2, b"to the new address")
    await eventually(lambda: near.received.get(2) == b"to the new address")
    assert far.link.peer_address != before
    assert not near.closed
    assert not far.closed


async def test_lost_datagrams_are_made_good_in_order(place: Place) -> None:
    await place.listen()
    async with lossy_path(place.listener.port, loss=0.04) as (port, path):
        near, far = await place.pair(port=port, timeout_s=20)
        data = random.Random(5).randbytes(150 * 1024)
        for start in range(0, len(data), 5000):
            near.link.write(start // 5000 % 8, data[start : start + 5000])
        expected: dict[int, bytes] = {}
        for start in range(0, len(data), 5000):
            lane = start // 5000 % 8
            expected[lane] = expected.get(lane, b"") + data[start : start + 5000]
        await eventually(lambda: near.received == expected, within_s=30)
        assert path.lost > 0
        path.loss = 0.0
        near.link.close(0, "")
        await eventually(lambda: near.closed and far.closed)


async def test_over_a_path_that_loses_packets_are_more_lanes_and_small_bursts_are_sent_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_twice, "MIN_RTT_S", 0.0)
    await place.listen()
    near, far = await place.pair(is_lossy=True, timeout_s=20)
    assert (near.link.lanes, near.link.bulk_from) == (20, 16)
    await eventually(lambda: (far.link.lanes, far.link.bulk_from) == (20, 16), within_s=10)
    for turn in range(1, 6):
        near.link.write(3, b"ask")
        await eventually(lambda turn=turn: near.received.get(3) == b"ask" * turn, within_s=10)
    await eventually(lambda: near.link._twice.sent >= 5 and far.link._twice.sent >= 5, within_s=10)
    near.link.close(0, "")
    await eventually(lambda: near.closed and far.closed, within_s=10)
    assert not near.link._twice._timers
    assert (near.error, far.error) == (None, None)


async def test_a_second_handshake_with_the_same_peer_is_resumed(place: Place) -> None:
    await place.listen()
    first, _ = await place.pair()
    first.link.write(0, b"a ticket comes after the handshake")
    await eventually(lambda: first.received)
    assert not first.link.is_resumed
    for _ in range(2):  # by the ticket of the one before
        near, far = await place.pair()
        assert near.link.is_resumed
        assert far.link.is_resumed
        near.link.write(5, bytes(100_000))
        await eventually(lambda near=near: near.received.get(5) == bytes(100_000))


async def test_a_ticket_goes_with_the_certificate_that_it_stands_for(place: Place) -> None:
    await place.listen()
    first, _ = await place.pair()
    first.link.write(0, b"x")
    await eventually(lambda: first.received)
    fresh = place.ca.identity(["localhost", "127.0.0.1"])
    place.identity.replace(fresh.cert_pem, fresh.key_pem)
    near, _ = await place.pair()
    assert not near.link.is_resumed


async def test_who_trusts_another_authority_resumes_nothing(place: Place, tmp_path: Path) -> None:
    await place.listen()
    first, _ = await place.pair()
    first.link.write(0, b"x")
    await eventually(lambda: first.received)
    assert isinstance(await outcome(place.dial(trust=DevelopmentCA(tmp_path / "another").trust)), AuthError)


async def test_what_one_lane_lost_holds_up_no_other(place: Place) -> None:
    await place.listen()
    async with lossy_path(place.listener.port, loss=0.0) as (port, path):
        near, far = await place.pair(port=port)
        came: list[int] = []
        far.on_bytes = lambda lane, data: came.append(lane)
        path.loss = 1.0
        near.link.write(4, b"lost on the way")
        near.link.transmit()
        await eventually(lambda: path.lost)
        path.loss = 0.0
        for lane in (0, 1, 5):
            near.link.write(lane, b"behind it")
            near.link.transmit()
        await eventually(lambda: far.received.get(4) == b"lost on the way")
        assert came == [0, 1, 5, 4]


async def test_a_close_waits_for_what_was_lost_on_the_way(place: Place) -> None:
    place.echo = False
    await place.listen()
    async with lossy_path(place.listener.port, loss=0.0) as (port, path):
        near, far = await place.pair(port=port)
        path.loss = 1.0
        near.link.write(0, bytes(5000))
        near.link.close(0, "")
        await eventually(lambda: path.lost > 3)
        assert not far.received
        path.loss = 0.0
        await eventually(lambda: near.closed and far.closed)
        assert far.received == {0: bytes(5000)}
        assert far.error is None


async def test_without_offload_by_the_kernel_it_works_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "_has_gso", lambda _: False)
    monkeypatch.setattr(udp, "_enable_gro", lambda _: False)
    await place.listen()
    near, _ = await place.pair()
    near.link.write(4, bytes(200_000))
    await eventually(lambda: near.received.get(4) == bytes(200_000))


async def test_a_route_that_refuses_offload_is_served_one_by_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "UDP_SEGMENT", 9999)  # the kernel refuses this message with EINVAL, as some routes do
    monkeypatch.setattr(udp, "_has_gso", lambda _: True)
    await place.listen()
    near, _ = await place.pair()
    near.link.write(4, bytes(200_000))
    await eventually(lambda: near.received.get(4) == bytes(200_000))


async def test_datagrams_of_two_links_in_one_buffer_reach_both(place: Place) -> None:
    await place.listen()
    users = [await place.pair(), await place.pair()]
    batches: list[bytes] = []
    for near, _ in users:
        near.link._endpoint._udp.close()

        class Keep:
            is_blocked = False

            def send(self, datagrams: list[bytes], address: Any) -> None:
                batches.extend(datagrams)

        endpoint = near.link._endpoint
        near.link._endpoint = Keep()
        near.link.write(0, bytes(100))
        near.link.transmit()
        near.link._endpoint = endpoint
    # No probes of the path's MTU; and in a buffer of the kernel only the last datagram may be shorter.
    longer, shorter = sorted((d for d in batches if 100 < len(d) < 300), key=len, reverse=True)
    place.listener._on_datagrams(longer + shorter, len(longer), ("127.0.0.1", 9))
    place.listener._on_batch_end()
    await eventually(lambda: all(far.received.get(0) == bytes(100) for _, far in users))


async def test_a_silent_peer_ends_the_link_after_the_idle_timeout(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in ("qh3", "aioquic"):
        monkeypatch.setattr(library(engine), "IDLE_TIMEOUT_S", 0.3)
    await place.listen()
    near, far = await place.pair()
    near.link._endpoint._udp._loop.remove_reader(near.link._endpoint._udp._fd)
    await eventually(lambda: far.closed, within_s=8)
    assert isinstance(far.error, SessionLost)
    assert "nothing was heard" in str(far.error)


async def test_an_unknown_version_is_answered_with_the_known_one(place: Place) -> None:
    await place.listen()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", place.listener.port))
        head = bytes((0xC0, 0xFA, 0xFA, 0xFA, 0xFA, 8)) + b"DESTINAT" + bytes((5,)) + b"SOURC"
        await loop.sock_sendall(sock, head.ljust(1200, b"\0"))
        answer = await asyncio.wait_for(loop.sock_recv(sock, 2000), 5)
        assert answer[0] & 0x80
        assert answer[1:] == bytes(4) + bytes((5,)) + b"SOURC" + bytes((8,)) + b"DESTINAT" + bytes((0, 0, 0, 1))
        await loop.sock_sendall(sock, head)  # too short to be worth an answer
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_recv(sock, 2000), 0.05)


async def test_half_open_handshakes_are_bounded_and_end_at_the_deadline(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_endpoint, "MAX_HALF_OPEN", 5)
    await place.listen(handshake_timeout_s=0.3)
    initial: list[bytes] = []
    connection = dial_connection(library(place.dialling), place.ca.trust, "127.0.0.1")
    connection.connect(("127.0.0.1", place.listener.port), 0.0)
    connection.transmit(0.0, lambda datagrams, _: initial.extend(datagrams))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", place.listener.port))
        for number in range(20):
            # Each with an id of its own; they do not decrypt, and would wait for the rest for ever.
            sock.send(initial[0][:6] + bytes((number,)) * 8 + initial[0][14:])
        await eventually(lambda: place.listener.refused > 0)
        assert len(place.listener._half_open) <= 5
    await eventually(lambda: not place.listener._half_open)
    await eventually(lambda: not place.listener._routes, within_s=3)
    await place.pair()


async def test_an_address_that_is_not_validated_gets_at_most_three_times_what_it_sent(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.listen(handshake_timeout_s=1.0)
    loop = asyncio.get_running_loop()
    initial: list[bytes] = []
    connection = dial_connection(library(place.dialling), place.ca.trust, "127.0.0.1")
    connection.connect(("127.0.0.1", place.listener.port), 0.0)
    connection.transmit(0.0, lambda datagrams, _: initial.extend(datagrams))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", place.listener.port))
        for datagram in initial:
            await loop.sock_sendall(sock, datagram)
        received = 0
        until = loop.time() + 0.8
        while (left := until - loop.time()) > 0:
            try:
                received += len(await asyncio.wait_for(loop.sock_recv(sock, 70_000), left))
            except TimeoutError:
                break
    assert 0 < received <= 3 * sum(map(len, initial))


@pytest.mark.parametrize(
    ("stream", "data"), [(32, b"ninth"), (2, b"unidirectional")], ids=["a ninth lane", "a one-way stream"]
)
async def test_a_stream_that_is_no_lane_ends_the_link(place: Place, stream: int, data: bytes) -> None:
    await place.listen()
    near, far = await place.pair()
    near.link._quic.send_stream_data(stream, data)
    near.link.transmit()
    await eventually(lambda: near.closed and far.closed)
    assert isinstance(far.error, ProtocolError)


async def test_packets_that_cannot_be_made_any_more_end_the_link_in_order(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await place.listen()
    near, far = await place.pair()

    def stuck(now: float, send: object) -> None:
        del near.link._quic.transmit  # the farewell needs no stream frame
        raise SessionLost("a frame is too large for every packet")

    near.link._quic.transmit = stuck
    near.link.write(0, b"x")
    await eventually(lambda: near.closed and far.closed)
    assert isinstance(near.error, SessionLost)
    assert isinstance(far.error, SessionLost)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_lane_that_ends_ends_the_link(place: Place) -> None:
    await place.listen()
    near, far = await place.pair()
    near.link._quic.send_stream_data(8, b"", True)
    near.link.transmit()
    await eventually(lambda: near.closed and far.closed)
    assert isinstance(far.error, ProtocolError)


async def test_an_unknown_opening_ends_the_link(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.listen()
    monkeypatch.setattr(quic_driver, "opening", lambda _: b"\x63\x04\x08\x00")
    near = await place.dial()
    await eventually(lambda: near.closed)
    assert isinstance(near.error, ProtocolError)
    assert place.listener.links == 0


async def test_a_closed_link_repeats_its_farewell_to_a_peer_that_missed_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_dial, "REBIND_FROM_PROBES", 99)  # it would hear again by another socket
    await place.listen()
    near, far = await place.pair()
    # The dialler does not hear for a moment.
    endpoint = near.link._endpoint
    endpoint._udp._loop.remove_reader(endpoint._udp._fd)
    far.link.close(0, "")
    await eventually(lambda: far.closed)
    endpoint._udp._sock.recv(70_000)
    endpoint._udp._loop.add_reader(endpoint._udp._fd, endpoint._udp._readable)
    near.link.write(0, b"hello?")
    await eventually(lambda: near.closed)
    assert near.error is None


async def test_one_icmp_message_does_not_end_a_link(place: Place) -> None:
    await place.listen()
    near, _ = await place.pair()
    near.link._endpoint._on_error(ConnectionRefusedError(111, "forged"))
    near.link.write(0, b"x")
    await eventually(lambda: near.received.get(0) == b"x")
    near.link._endpoint._on_error(ConnectionRefusedError(111, "forged"))
    await asyncio.sleep(0)
    assert not near.closed


async def test_every_address_of_a_name_is_tried(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    await place.listen()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        refusing = nobody.getsockname()
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    answers = [refusing, silent.getsockname(), ("127.0.0.1", place.listener.port)]

    async def resolve(host: str, port: int) -> list[tuple[int, Any]]:
        return [(socket.AF_INET, address) for address in answers]

    monkeypatch.setattr(quic_dial, "resolve", resolve)
    await place.pair(timeout_s=2)
    silent.close()


def _vanish(place: Place) -> None:
    """As kill -9 does: the socket and the lock are gone, and nobody was told anything."""
    listener = place.listener
    listener._udp.close()
    listener._left.close()
    listener._look.cancel()
    for link in list(listener._established):
        for handle in (link._timer, link._deadline):
            if handle is not None:
                handle.cancel()
        link._ended = True
    place.accepted.clear()
    place.listener = None


async def test_links_that_rest_hear_from_the_successor_of_a_listener_that_was_killed(
    place: Place, tmp_path: Path
) -> None:
    listener = await place.listen(state=tmp_path)
    near, _ = await place.pair()
    other, _ = await place.pair(is_lossy=True)
    port = listener.port
    gone, _ = await place.pair()
    gone.link.close(0, "")
    await eventually(lambda: bool(gone.closed) and listener.links == 2, within_s=20)
    _vanish(place)
    assert not near.closed
    await place.listen(state=tmp_path, port=port)
    await eventually(
        lambda: bool(near.closed and other.closed), within_s=20
    )  # they would know by themselves after 30 s
    assert isinstance(near.error, SessionLost)
    assert isinstance(other.error, SessionLost)
    assert "knows nothing of it" in str(near.error)
    assert len(place.listener._left.found) <= 2
    await place.pair()


async def test_whoever_sends_to_a_listener_that_was_started_anew_is_told_at_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quic_listen, "TELL_AGAIN_AFTER_S", ())
    listener = await place.listen(state=tmp_path)
    near, _ = await place.pair()
    _vanish(place)
    await place.listen(state=tmp_path, port=listener.port)
    near.link.write(0, b"anybody?" * 20)
    await eventually(lambda: bool(near.closed), within_s=20)
    assert isinstance(near.error, SessionLost)


async def test_two_listeners_with_one_state_folder_do_not_end_each_others_links(place: Place, tmp_path: Path) -> None:
    await place.listen(state=tmp_path)
    near, far = await place.pair()
    second = await listen(
        place.listening, "127.0.0.1", 0, identity=place.identity, accept=lambda: Recorder(), state=tmp_path
    )
    try:
        near.link.write(0, b"still there")
        await eventually(lambda: far.received.get(0) == b"still there", within_s=20)
        assert not near.closed
    finally:
        await second.close()

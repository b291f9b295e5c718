"""The contract of the link seam, kept by every engine, and by the QUIC engines between each other."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgetun_core.errors import AuthError, Draining, LimitExceeded, ProtocolError, SessionLost, UpstreamUnreachable
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.transport import quic_aioquic, quic_qh3, tls_listen
from edgetun_core.transport.engines import dial
from edgetun_core.transport.link import HIGH_WATER_BYTES, LOW_WATER_BYTES
from support.links import Place, Recorder, eventually, outcome

PAIRS = [
    pytest.param(("qh3", "qh3"), id="qh3"),
    pytest.param(("aioquic", "aioquic"), id="aioquic"),
    pytest.param(("tls", "tls"), id="tls"),
    pytest.param(("qh3", "aioquic"), id="aioquic-dials-qh3"),
    pytest.param(("aioquic", "qh3"), id="qh3-dials-aioquic"),
]
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(params=PAIRS)
async def place(request: pytest.FixtureRequest, ca: DevelopmentCA) -> AsyncIterator[Place]:
    place = Place(*request.param, ca)
    sockets = open_sockets()
    yield place
    await place.leave()
    gc.collect()
    await eventually(lambda: len(asyncio.all_tasks()) == 1)
    await eventually(lambda: open_sockets() <= sockets)


def open_sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            pass
    return count


async def test_a_link_says_who_it_is(place: Place) -> None:
    await place.listen()
    near, far = await place.pair()
    for user in (near, far):
        assert user.link.transport == ("tls" if place.is_tls else "quic")
        assert user.link.lanes == (2 if place.is_tls else 8)
        assert user.link.bulk_from == (1 if place.is_tls else 4)
        assert user.link.peer_address[0] == "127.0.0.1"
    assert (near.link.engine, far.link.engine) == (place.dialling, place.listening)
    assert near.link.peer_address[1] == place.listener.port
    assert place.listener.links == 1
    near.link.write(0, b"ping")
    await eventually(lambda: near.received.get(0) == b"ping")
    assert 0 < near.link.rtt_s < 1


async def test_every_lane_carries_both_ways_and_in_order(place: Place) -> None:
    await place.listen()
    near, far = await place.pair()
    rng = random.Random(7)
    sent: dict[int, bytearray] = {}
    for _ in range(400):
        lane = rng.randrange(near.link.lanes)
        data = rng.randbytes(rng.choice((1, 3, 4, 5, 100, 1199, 1452, 5000)))
        sent.setdefault(lane, bytearray()).extend(data)
        near.link.write(lane, data)
    await eventually(lambda: near.received == sent)
    assert far.received == sent


async def test_the_listener_may_write_first_on_every_lane(place: Place) -> None:
    place.echo = False
    await place.listen()
    near, far = await place.pair()
    for lane in range(far.link.lanes):
        far.link.write(lane, b"from the listener %d" % lane)
    await eventually(lambda: near.received == {lane: b"from the listener %d" % lane for lane in range(far.link.lanes)})


async def test_an_empty_write_is_nothing(place: Place) -> None:
    await place.listen()
    near, _ = await place.pair()
    near.link.write(0, b"")
    near.link.write(0, b"x")
    await eventually(lambda: near.received == {0: b"x"})


class Producer:
    """Writes as the contract asks: it stops while the lane is paused."""

    def __init__(self, user: Recorder, lane: int, total: int, write_bytes: int) -> None:
        self.user, self.lane, self.left, self.write_bytes = user, lane, total, write_bytes
        self.block = random.Random(total).randbytes(write_bytes)
        self.most_unsent = 0
        user.on_resumed = self.go_on

    def go_on(self) -> None:
        while self.left > 0 and self.lane not in self.user.paused:
            size = min(self.write_bytes, self.left)
            self.user.link.write(self.lane, self.block[:size])
            self.left -= size
            self.most_unsent = max(self.most_unsent, self.user.link.unsent_bytes(self.lane))


@pytest.mark.parametrize("upwards", [True, False], ids=["to the listener", "to the dialler"])
async def test_ten_megabytes_arrive_whole_and_never_more_than_the_high_water_waits(place: Place, upwards: bool) -> None:
    place.echo = False
    total = 10 * MEGABYTE if place.dialling == place.listening == "qh3" or place.is_tls else 3 * MEGABYTE
    await place.listen()
    near, far = await place.pair()
    source, drain = (near, far) if upwards else (far, near)
    lane = source.link.bulk_from
    producer = Producer(source, lane, total, write_bytes=96 * 1024)
    producer.go_on()
    assert lane in source.paused, "a producer of this much is paused before the loop turns"
    await eventually(lambda: len(drain.received.get(lane, b"")) >= total, within_s=30)
    whole = producer.block * (total // len(producer.block) + 1)
    assert drain.received[lane] == whole[:total]
    # TLS counts what it made of the bytes: record heads and tags.
    assert producer.most_unsent <= (HIGH_WATER_BYTES + producer.write_bytes) * 1.01 + 4096
    assert source.pauses > 1
    await eventually(lambda: source.link.unsent_bytes(lane) < LOW_WATER_BYTES and not source.paused)


async def test_a_slow_reader_holds_the_producer_by_credit_and_nothing_piles_up(place: Place) -> None:
    place.echo = False
    window, total = 128 * 1024, 1 * MEGABYTE
    await place.listen()
    near, far = await place.pair()
    lane = near.link.bulk_from
    backlog = 0
    most_backlog = 0
    in_flight = 0
    left = total

    def produce() -> None:
        nonlocal in_flight, left
        while left and in_flight < window and lane not in near.paused:
            near.link.write(lane, bytes(16 * 1024))
            in_flight += 16 * 1024
            left -= 16 * 1024

    def arrived(_: int, data: bytes) -> None:
        nonlocal backlog, most_backlog
        backlog += len(data)
        most_backlog = max(most_backlog, backlog)

    def credited(_: int, data: bytes) -> None:
        nonlocal in_flight
        in_flight -= len(data) * 16 * 1024
        produce()

    far.on_bytes, near.on_bytes, near.on_resumed = arrived, credited, produce
    produce()
    consumed = 0

    def has_more() -> bool:
        return backlog >= 16 * 1024

    while consumed < total:
        await eventually(has_more, within_s=20)
        backlog -= 16 * 1024
        consumed += 16 * 1024
        far.link.write(0, b"c")
        await asyncio.sleep(0.001)
    assert most_backlog <= window


@pytest.mark.parametrize("by_dialler", [True, False], ids=["dialler closes", "listener closes"])
async def test_the_reason_of_a_close_reaches_the_other_side(place: Place, by_dialler: bool) -> None:
    await place.listen()
    near, far = await place.pair()
    closer, other = (near, far) if by_dialler else (far, near)
    closer.link.close(AuthError.presentation.close_code, "token revoked: über")
    closer.link.close(0, "a second close changes nothing")
    await eventually(lambda: closer.closed and other.closed)
    assert closer.error is None
    assert isinstance(other.error, AuthError)
    assert str(other.error) == "token revoked: über"
    closer.link.write(0, b"after the close nothing happens")
    other.link.write(0, b"nor here")
    closer.link.abort()
    await eventually(lambda: place.listener.links == 0)


async def test_a_close_without_an_error_is_good_order_and_comes_after_what_was_written(place: Place) -> None:
    place.echo = False
    await place.listen()
    near, far = await place.pair()
    data = random.Random(3).randbytes(300 * 1024)
    near.link.write(near.link.bulk_from, data)
    near.link.write(0, b"last words")
    near.link.close(0, "done")
    await eventually(lambda: near.closed and far.closed)
    assert near.error is None
    assert far.error is None
    assert far.received == {0: b"last words", near.link.bulk_from: data}


async def test_both_sides_may_close_at_once(place: Place) -> None:
    await place.listen()
    near, far = await place.pair()
    near.link.close(0, "")
    far.link.close(0, "")
    await eventually(lambda: near.closed and far.closed)
    assert near.error is None
    assert far.error is None


@pytest.mark.parametrize("by_dialler", [True, False], ids=["dialler aborts", "listener aborts"])
async def test_an_abort_is_seen_as_a_loss_on_both_sides(place: Place, by_dialler: bool) -> None:
    await place.listen()
    near, far = await place.pair()
    dropper, other = (near, far) if by_dialler else (far, near)
    dropper.link.abort()
    assert not dropper.closed, "on_closed follows, it does not come from within abort"
    await eventually(lambda: dropper.closed and other.closed)
    assert isinstance(dropper.error, SessionLost)
    assert isinstance(other.error, SessionLost)


async def test_closing_the_listener_closes_its_links_in_good_order(place: Place) -> None:
    await place.listen()
    near, far = await place.pair()
    await place.listener.close()
    assert far.closed == [None]
    await eventually(lambda: near.closed)
    assert isinstance(near.error, Draining)
    assert place.listener.links == 0
    failure = await outcome(place.dial(timeout_s=1.0))
    assert isinstance(failure, UpstreamUnreachable)


async def test_fifty_links_live_beside_each_other(place: Place) -> None:
    await place.listen()
    users = await asyncio.gather(*(place.dial(timeout_s=20) for _ in range(50)))
    for number, user in enumerate(users):
        user.link.write(number % 2 and user.link.bulk_from - 1, b"link %d" % number)
    await eventually(
        lambda: all(
            b"link %d" % number in (bytes(got) for got in user.received.values()) for number, user in enumerate(users)
        ),
        within_s=20,
    )
    assert place.listener.links == 50
    users[0].link.close(0, "")
    await eventually(lambda: place.listener.links == 49)


async def test_a_listener_takes_no_more_links_than_it_may(place: Place) -> None:
    await place.listen(max_links=1)
    near, far = await place.pair()
    failure = await outcome(place.dial())
    late = place.dialled[-1]
    if failure is None:
        await eventually(lambda: late.closed)
        failure = late.error
    assert isinstance(failure, LimitExceeded)
    near.link.write(0, b"the first link stands")
    await eventually(lambda: near.received.get(0))
    assert not far.closed
    near.link.close(0, "")
    await eventually(lambda: place.listener.links == 0)
    await place.pair()


async def test_an_idle_link_stays_up(place: Place) -> None:
    await place.listen()
    near, far = await place.pair()
    await asyncio.sleep(2)
    near.link.write(0, b"still here")
    await eventually(lambda: near.received.get(0) == b"still here")
    assert not near.closed
    assert not far.closed


# --- dialling that fails


async def test_a_black_hole_ends_within_the_deadline(place: Place) -> None:
    kind = socket.SOCK_STREAM if place.is_tls else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as hole:
        hole.bind(("127.0.0.1", 0))
        if place.is_tls:
            hole.listen()
        began = time.monotonic()
        failure = await outcome(place.dial(port=hole.getsockname()[1], timeout_s=0.4))
    assert 0.3 < time.monotonic() - began < 2
    assert isinstance(failure, UpstreamUnreachable)
    assert "did not answer within 0.4 s" in str(failure)
    assert place.is_tls or "UDP may be blocked" in str(failure)
    assert place.dialled[-1].link is None


async def test_a_port_where_nobody_listens_is_refused_at_once(place: Place) -> None:
    await place.listen()
    port = place.listener.port
    await place.listener.close()
    began = time.monotonic()
    failure = await outcome(place.dial(port=port))
    assert time.monotonic() - began < 2
    assert isinstance(failure, UpstreamUnreachable)
    assert "refused the connection" in str(failure)


async def test_a_name_that_does_not_resolve_says_so(place: Place) -> None:
    failure = await outcome(dial(place.dialling, "no.such.host.invalid", 1, trust=Trust(), user=Recorder()))
    assert isinstance(failure, UpstreamUnreachable)
    assert "does not resolve" in str(failure)


async def test_a_certificate_of_another_ca_is_refused(place: Place, tmp_path: Path) -> None:
    await place.listen()
    for trust in (DevelopmentCA(tmp_path).trust, Trust()):
        failure = await outcome(place.dial(trust=trust))
        assert isinstance(failure, AuthError)
        assert "is not trusted" in str(failure)
    assert place.accepted == []


@pytest.mark.parametrize("name", ["other.example", "127.0.0.2"])
async def test_a_certificate_for_another_name_is_refused(place: Place, name: str) -> None:
    await place.listen()
    failure = await outcome(place.dial(server_name=name))
    assert isinstance(failure, AuthError)
    assert f"is not for {name}" in str(failure)


async def test_the_server_name_may_differ_from_the_host(place: Place) -> None:
    place.identity = place.ca.identity(["exit.edgetun.example"])
    await place.listen()
    await place.pair(server_name="exit.edgetun.example")


async def test_an_expired_certificate_is_refused(place: Place) -> None:
    place.identity = _identity(DevelopmentCA(place.ca.certificate_file.parent, clock=lambda: time.time() - 100 * 86400))
    await place.listen()
    failure = await outcome(place.dial())
    assert isinstance(failure, AuthError)
    assert "expired" in str(failure)


def _identity(ca: DevelopmentCA) -> Any:
    from edgetun_core.pki import ServerIdentity

    return ServerIdentity(*ca.issue(["127.0.0.1"]))


async def test_insecure_is_insecure_only_when_asked(place: Place, tmp_path: Path) -> None:
    place.identity = DevelopmentCA(tmp_path).identity(["elsewhere.example"])
    await place.listen()
    near, _ = await place.pair(trust=Trust(insecure=True))
    near.link.write(0, b"x")
    await eventually(lambda: near.received)


async def test_another_alpn_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        for module in (tls_listen, quic_qh3, quic_aioquic):
            patch.setattr(module, "ALPN", "other/1")
        await place.listen()
        if not place.is_tls:
            patch.undo()
        else:
            # The listener looks its own name up per connection.
            failure = await outcome(place.dial(timeout_s=2))
    if not place.is_tls:
        failure = await outcome(place.dial(timeout_s=2))
    assert isinstance(failure, ProtocolError)
    assert "does not speak edgetun/1" in str(failure)
    assert place.accepted == []


async def test_a_dial_that_is_cancelled_leaves_nothing(place: Place) -> None:
    await place.listen()
    for delay in (0, 0.001, 0.003, 0.006, 0.01):
        task = asyncio.create_task(place.dial())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if not task.cancelled():
            place.dialled[-1].link.close(0, "")
    await eventually(lambda: place.listener.links == 0)
    await place.pair()


# --- certificates that change, and peers that misbehave


async def test_a_new_certificate_is_shown_from_the_next_handshake_on(place: Place, tmp_path: Path) -> None:
    await place.listen()
    old, _ = await place.pair()
    other_ca = DevelopmentCA(tmp_path)
    place.identity.replace(*other_ca.issue(["127.0.0.1"]))
    assert isinstance(await outcome(place.dial()), AuthError)
    await place.pair(trust=other_ca.trust)
    old.link.write(0, b"the old link stands")
    await eventually(lambda: old.received.get(0) == b"the old link stands")


async def test_garbage_disturbs_nobody(place: Place) -> None:
    await place.listen()
    near, far = await place.pair()
    rng = random.Random(11)
    if place.is_tls:
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", place.listener.port)
            writer.write(rng.randbytes(2000))
            await reader.read()
            writer.close()
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", place.listener.port))
            cids = [cid for cid in place.listener._routes if len(cid) == 8]
            for number in range(600):
                first = rng.choice((0x40, 0xC0, 0xD0, 0xE0, 0xF0, rng.randrange(256)))
                cid = rng.choice(cids) if number % 3 else rng.randbytes(8)
                long_head = bytes((0, 0, 0, 1, 8)) + cid + bytes((8,)) + rng.randbytes(8) + bytes((0, 0x44, 0x9E))
                head = long_head if first & 0x80 else cid
                sock.send(bytes((first,)) + head + rng.randbytes(rng.choice((0, 1, 20, 1180))))
                if number % 50 == 0:
                    await asyncio.sleep(0.001)
    near.link.write(0, b"undisturbed")
    await eventually(lambda: near.received.get(0) == b"undisturbed")
    assert not near.closed
    assert not far.closed
    await place.pair()


KILLED = """
import asyncio, sys
sys.path.insert(0, sys.argv[3])
from support.links import Recorder
from edgetun_core.transport.engines import DevelopmentCA, listen
async def main():
    identity = DevelopmentCA(sys.argv[2]).identity(["127.0.0.1"])
    listener = await listen(sys.argv[1], "127.0.0.1", 0, identity=identity, accept=lambda: Recorder(echo=True))
    print(listener.port, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_killed_peer_is_a_loss_and_never_good_order(place: Place) -> None:
    if place.listening != place.dialling:
        return
    tests = str(Path(__file__).parent.parent)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, place.listening, str(place.ca.certificate_file.parent), tests,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 20))
        user = await place.dial(port=port)
        user.link.write(0, b"hello")
        await eventually(lambda: user.received.get(0) == b"hello")
    finally:
        process.kill()
        await process.wait()
    # A UDP peer is missed only by who speaks to it; the protocol's ping does.
    for _ in range(60):
        if user.closed:
            break
        user.link.write(0, b"anybody there?")
        await asyncio.sleep(0.1)
    assert isinstance(user.error, SessionLost)

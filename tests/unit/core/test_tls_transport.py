"""The TLS connections of a thread take turns at one pair of BIOs: none ever sees, or sends, what is another's."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from edgetun_core.pki import DevelopmentCA
from edgetun_core.transport.tls_transport import LinkTls, Opening, TlsTransport


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA(tmp_path_factory.mktemp("ca"))


class Wire(asyncio.Transport):
    """A socket's transport that keeps what is written until it is delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_paused = False
        self.ended = ""

    def write(self, data: Any) -> None:
        if not self.ended:
            self.written += data

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return bool(self.ended)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = "half closed"


class Above(asyncio.Protocol):
    """The connection above TLS."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.heard: Callable[[bytes], None] = lambda data: None
        self.is_over = False
        self.error: Exception | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport: TlsTransport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.heard(data)

    def eof_received(self) -> None:
        self.is_over = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc


class Side:
    """One end: what is above, the TLS transport, and the wire below."""

    def __init__(self, context: ssl.SSLContext, server_name: str | None, linger_s: float = 0.0) -> None:
        self.above = Above()
        self.wire = Wire()
        self.opening = Opening(lambda: self.above)
        self.tls: TlsTransport = TlsTransport(self.opening, context, server_name=server_name)
        if linger_s:
            self.tls = LinkTls(self.opening, context, server_name=server_name, linger_s=linger_s)


class Pair:
    """A server's and a client's end, both of this thread, and so at one desk."""

    def __init__(self, ca: DevelopmentCA, linger_s: float = 0.0) -> None:
        self.server = Side(ca.identity(["shop.example"]).ssl_context(["x"]), None, linger_s)
        self.client = Side(ca.trust.ssl_context(["x"]), "shop.example", linger_s)
        self.server.tls.connection_made(self.server.wire)
        self.client.tls.connection_made(self.client.wire)

    def carry(self, piece: Callable[[int], int] = lambda size: size) -> bool:
        """Delivers some of what each side has written; False when there was nothing."""
        moved = False
        for here, there in ((self.client, self.server), (self.server, self.client)):
            if here.wire.written and not there.wire.is_paused:
                size = piece(len(here.wire.written))
                data = bytes(here.wire.written[:size])
                del here.wire.written[:size]
                there.tls.data_received(data)
                moved = True
        return moved

    def shake_hands(self) -> None:
        while self.carry():
            pass
        assert self.server.opening.done.done()
        assert self.client.opening.done.done()
        assert self.client.tls.get_extra_info("peercert")["subjectAltName"] == (("DNS", "shop.example"),)

    def hold(self) -> bytes:
        """What the client has written, taken off the wire."""
        data = bytes(self.client.wire.written)
        self.client.wire.written.clear()
        return data


def carry_all(pairs: list[Pair]) -> bool:
    """Delivers what every side has written; False when there was nothing."""
    return sum(pair.carry() for pair in pairs) > 0


@pytest.fixture
async def pairs(ca: DevelopmentCA) -> list[Pair]:
    pairs = [Pair(ca) for _ in range(3)]
    for pair in pairs:
        pair.shake_hands()
    return pairs


async def test_handshakes_in_pieces_beside_each_other(ca: DevelopmentCA) -> None:
    rng = random.Random(1)
    pairs = [Pair(ca) for _ in range(4)]
    busy = True
    while busy:
        busy = sum(pair.carry(lambda size: rng.randint(1, min(size, 300))) for pair in rng.sample(pairs, 4)) > 0
    for pair in pairs:
        pair.shake_hands()
        pair.client.tls.write(b"hello")
        pair.carry()
        assert pair.server.above.received == b"hello"


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_written_arrives_where_it_belongs_and_in_order(pairs: list[Pair], seed: int) -> None:
    """Pieces of any size, records cut anywhere, readers that pause, and answers to one from within the reading of another."""
    rng = random.Random(seed)
    sent = {side.above: bytearray() for pair in pairs for side in (pair.server, pair.client)}
    sides = [(a, b) for pair in pairs for a, b in ((pair.server, pair.client), (pair.client, pair.server))]

    def write(budget: list[int]) -> None:
        if budget[0] <= 0:
            return
        budget[0] -= 1
        here, there = rng.choice(sides)
        data = rng.randbytes(rng.choice([1, 20, 500, 5_000, 40_000]))
        sent[there.above] += data
        if rng.random() < 0.3:
            here.tls.writelines([data[:4], data[4:]])
        else:
            here.tls.write(data)

    budget = [250]
    for here, _ in sides:
        here.above.heard = lambda data: [write(budget) for _ in range(rng.randrange(3))] and None
    paused: set[Side] = set()
    for _ in range(3000):
        if rng.random() < 0.1:
            write(budget)
        if rng.random() < 0.1:
            side, _ = rng.choice(sides)
            side.tls.pause_reading()
            paused.add(side)
        if paused and rng.random() < 0.3:
            paused.pop().tls.resume_reading()
            await asyncio.sleep(0)
        rng.choice(pairs).carry(lambda size: rng.randint(1, size))
    budget[0] = 0
    for side in paused:
        side.tls.resume_reading()
    await asyncio.sleep(0)
    for _ in range(10_000):
        if not carry_all(pairs):
            break
        await asyncio.sleep(0)  # those that were paused read on
    assert sum(map(len, sent.values())) > 500_000
    for above, data in sent.items():
        assert above.received == data


LONG = random.Random(3).randbytes(600_000)
"""More than is handed up at once: some of it is at the desk when whoever is above does something else."""


async def test_a_reader_that_writes_to_another_connection_reads_on(pairs: list[Pair]) -> None:
    reading, other, _ = pairs
    reading.client.tls.write(LONG)
    echoed: list[bytes] = []

    def heard(data: bytes) -> None:
        echoed.append(data[:10])
        other.server.tls.write(data[:10])
        reading.server.tls.write(b"ok;")

    reading.server.above.heard = heard
    reading.server.tls.data_received(reading.hold())
    assert reading.server.above.received == LONG
    assert len(echoed) > 2
    while carry_all(pairs):
        pass
    assert other.client.above.received == b"".join(echoed)
    assert reading.client.above.received == b"ok;" * len(echoed)


async def test_a_reader_that_ends_other_connections_reads_on(pairs: list[Pair]) -> None:
    """The close of one asks OpenSSL to read, which must not find what is the other's."""
    reading, other, third = pairs
    reading.client.tls.write(LONG)
    ends = [other.server.tls.close, third.server.tls.abort]
    reading.server.above.heard = lambda data: ends.pop(0)() if ends else None
    reading.server.tls.data_received(reading.hold())
    assert reading.server.above.received == LONG
    assert (other.server.wire.ended, third.server.wire.ended) == ("closed", "aborted")
    other.carry()
    assert other.client.above.is_over


async def test_one_that_is_paused_in_the_middle_waits_while_others_read(pairs: list[Pair]) -> None:
    paused, other, _ = pairs
    paused.client.tls.write(LONG)
    paused.server.above.heard = lambda data: paused.server.tls.pause_reading()
    data = paused.hold()
    paused.server.tls.data_received(data[:-5])
    first = len(paused.server.above.received)
    assert 0 < first < len(LONG) // 2
    other.client.tls.write(b"hello")
    other.carry()
    assert other.server.above.received == b"hello"
    paused.server.tls.resume_reading()
    await asyncio.sleep(0)
    assert first < len(paused.server.above.received) < len(LONG) - 16_384
    paused.server.above.heard = lambda data: None
    paused.server.tls.resume_reading()
    await asyncio.sleep(0)
    other.client.tls.write(b" again")
    other.carry()
    paused.server.tls.data_received(data[-5:])
    assert paused.server.above.received == LONG
    assert other.server.above.received == b"hello again"


async def test_what_a_connection_that_is_lost_had_at_the_desk_goes_with_it(pairs: list[Pair]) -> None:
    lost, other, _ = pairs
    lost.client.tls.write(LONG)
    lost.server.above.heard = lambda data: lost.server.tls.pause_reading()
    lost.server.tls.data_received(lost.hold())
    before = bytes(lost.server.above.received)
    lost.server.tls.connection_lost(ConnectionResetError("gone"))
    assert isinstance(lost.server.above.error, ConnectionResetError)
    other.client.tls.write(b"hello")
    other.carry()
    assert other.server.above.received == b"hello"
    assert lost.server.above.received == before


async def test_a_record_that_is_broken_ends_its_connection_behind_the_good_ones(pairs: list[Pair]) -> None:
    broken, other, _ = pairs
    broken.client.tls.write(bytes(100_000))
    broken.server.tls.data_received(broken.hold() + b"\x17\x03\x03\x00\x20" + bytes(32))
    assert broken.server.above.received == bytes(100_000)
    assert broken.server.wire.ended == "aborted"
    broken.server.tls.connection_lost(None)
    assert isinstance(broken.server.above.error, ssl.SSLError)
    other.client.tls.write(b"hello")
    other.carry()
    assert other.server.above.received == b"hello"


async def test_an_end_behind_much_data_is_heard_after_it_and_not_while_reading_is_paused(pairs: list[Pair]) -> None:
    pair, other, _ = pairs
    pair.server.above.heard = lambda data: pair.server.tls.pause_reading()
    pair.client.tls.write(bytes(100_000))
    pair.client.tls.close()
    pair.carry()
    assert pair.server.above.received == bytes(100_000)
    assert not pair.server.above.is_over
    other.client.tls.write(b"hello")
    other.carry()
    assert other.server.above.received == b"hello"
    pair.server.tls.resume_reading()
    await asyncio.sleep(0)
    assert pair.server.above.is_over
    assert pair.server.wire.ended == "closed"


async def test_the_records_of_one_read_are_handed_up_together(pairs: list[Pair]) -> None:
    pair = pairs[0]
    pieces: list[int] = []
    pair.server.above.heard = lambda data: pieces.append(len(data))
    body = random.Random(2).randbytes(200_000)
    pair.client.tls.write(body)
    pair.carry()
    assert pair.server.above.received == body
    assert len(pieces) < 4


async def test_a_client_says_why_it_does_not_believe_the_server(ca: DevelopmentCA) -> None:
    pair = Pair(ca)
    stranger = Side(ca.trust.ssl_context(["x"]), "bank.example")
    pair.client = stranger
    pair.server.wire.written.clear()
    stranger.tls.connection_made(stranger.wire)
    while pair.carry():
        pass
    assert stranger.wire.ended == "closed"
    stranger.tls.connection_lost(None)
    pair.server.tls.connection_lost(None)
    with pytest.raises(ssl.SSLCertVerificationError):
        await stranger.opening.done
    with pytest.raises(ssl.SSLError, match=r"(?i)alert|certificate"):
        await pair.server.opening.done


async def test_a_connection_that_leaves_in_its_handshake_fails_without_a_reason(ca: DevelopmentCA) -> None:
    pair = Pair(ca)
    pair.carry(lambda size: size // 2)
    assert pair.server.tls.eof_received() is False
    pair.server.tls.connection_lost(None)
    with pytest.raises(ConnectionResetError, match="in the handshake"):
        await pair.server.opening.done
    pair.client.opening.done.cancel()


async def test_a_close_that_lingers_reads_on_until_the_other_side_has_ended(ca: DevelopmentCA) -> None:
    pair = Pair(ca, linger_s=60.0)
    pair.shake_hands()
    pair.server.tls.pause_reading()
    pair.client.tls.write(b"not read")
    pair.server.tls.write(b"last words")
    pair.server.tls.close()
    assert pair.server.wire.ended == "half closed"
    assert not pair.server.wire.is_paused
    pair.carry()
    assert pair.client.above.received == b"last words"
    assert pair.client.above.is_over
    assert pair.client.wire.ended == "closed", "the other side has said its end: there is nothing to wait for"
    assert not pair.server.above.received
    assert isinstance(pair.server.tls, LinkTls)
    timer = pair.server.tls._timer
    pair.server.tls.connection_lost(None)
    assert timer is not None
    assert timer.cancelled()

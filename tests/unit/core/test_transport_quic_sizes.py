"""qh3's packets become smaller, or a peer's address new, while stream frames wait that were cut for larger packets.

Its packet core fails when the first frame that waits fits no packet that may be sent, and would go on failing.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from edgetun_core.errors import SessionLost
from edgetun_core.transport.quic_qh3 import NO_ROOM, POLLS_WITHOUT_ROOM
from support.quic_pair import QuicPair

SEEDS = range(8)
LANES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("authority")


def busy_pair(folder: Path, rng: random.Random) -> QuicPair:
    """Both sides have written a lot on several lanes, and something of it is under way."""
    pair = QuicPair(folder, rng)
    for lane in range(LANES):
        pair.write(pair.dialler, lane * 4, 4)
    pair.go_on(0.5)
    for side in (pair.dialler, pair.listener):
        for lane in rng.sample(range(LANES), rng.randrange(1, LANES)):
            pair.write(side, lane * 4, rng.choice([300, 3000, 60_000, 200_000]))
    pair.go_on(rng.random() * 0.05)
    return pair


def write_more(pair: QuicPair, rng: random.Random) -> None:
    """Some seconds, and now and then something new."""
    for _ in range(4):
        pair.go_on(rng.random() * 3)
        side = rng.choice([pair.dialler, pair.listener])
        if not side.is_stopped and rng.random() < 0.5:
            pair.write(side, rng.randrange(LANES) * 4, 30_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_path_that_becomes_narrower_under_load(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    pair = busy_pair(folder, rng)
    side = rng.choice([pair.dialler, pair.listener])
    side.largest = 1204
    for lane in range(LANES // 2):
        pair.write(side, lane * 4, 100_000)
    write_more(pair, rng)
    assert pair.finish(60.0)
    assert side.quic.packet_bytes == 1200


@pytest.mark.parametrize("seed", SEEDS)
def test_a_peer_that_is_stopped_for_seconds(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    pair = busy_pair(folder, rng)
    stopped = rng.choice([pair.dialler, pair.listener])
    stopped.is_stopped = True
    write_more(pair, rng)
    pair.resume(stopped)
    assert pair.finish(30.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_connection_ends_in_order_while_its_packets_are_to_become_smaller(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    pair = busy_pair(folder, rng)
    pair.listener.is_stopped = True
    for lane in range(LANES):
        pair.write(pair.dialler, lane * 4, 200_000)
    pair.go_on(0.05)
    pair.dialler.quic._cap()
    assert pair.dialler.quic.is_congested
    pair.dialler.quic.end(7, "enough")
    pair.transmit(pair.dialler)
    pair.resume(pair.listener)
    pair.go_on(0.5)
    assert pair.listener.quic.ended.code == 7


@pytest.mark.parametrize("lost_share", [1.0, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_path_that_loses_everything_or_a_lot_for_seconds(folder: Path, seed: int, lost_share: float) -> None:
    rng = random.Random(seed)
    pair = busy_pair(folder, rng)
    pair.dialler.lost_share = pair.listener.lost_share = lost_share
    write_more(pair, rng)
    pair.dialler.lost_share = pair.listener.lost_share = 0.0
    assert pair.finish(60.0)


def downloading_visitor(folder: Path, rng: random.Random, *, streams: int) -> QuicPair:
    pair = QuicPair(folder, rng, visitor=True)
    for stream in range(0, 4 * streams, 4):
        pair.write(pair.dialler, stream, 40)
    pair.go_on(0.3)
    for stream in range(0, 4 * streams, 4):
        pair.write(pair.listener, stream, 400_000)
    pair.go_on(rng.random() * 0.1)
    return pair


@pytest.mark.parametrize("seed", SEEDS)
def test_a_visitor_whose_port_changes_during_downloads(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    pair = downloading_visitor(folder, rng, streams=rng.randrange(1, 6))
    for port in range(3000, 3006):
        pair.move(("127.0.0.1", port))
        pair.go_on(rng.random() * 0.1)
    assert pair.finish(20.0)
    pair.go_on(0.1)
    assert pair.listener.quic.peer == pair.address


@pytest.mark.parametrize("streams", [1, 5])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_visitor_who_sends_from_two_hosts_during_downloads(folder: Path, seed: int, streams: int) -> None:
    pair = downloading_visitor(folder, random.Random(seed), streams=streams)
    pair.dialler.lost_share = 1.0
    pair.go_on(0.1)  # the window is full; what the new host sends first opens it
    pair.dialler.lost_share = 0.0
    pair.move(("127.0.0.2", 3000), keeps_the_old=True)
    assert pair.finish(20.0)
    pair.move(("127.0.0.2", 3001), keeps_the_old=True)
    pair.write(pair.listener, 0, 400_000)
    assert pair.finish(20.0)
    assert pair.listener.quic.ended is None


class NoRoom:
    """A packet core that has a frame that fits nothing."""

    def __init__(self, core: Any, times: int) -> None:
        self._core, self.times = core, times

    def poll_transmit(self, now: float) -> Any:
        if self.times > 0:
            self.times -= 1
            raise RuntimeError(NO_ROOM)
        return self._core.poll_transmit(now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def test_a_frame_that_fits_later_is_sent_and_one_that_never_fits_ends_the_session(folder: Path) -> None:
    pair = QuicPair(folder, random.Random(1))
    quic = pair.dialler.quic
    core = quic._core
    quic._core = NoRoom(core, POLLS_WITHOUT_ROOM - 1)
    pair.write(pair.dialler, 0, 1000)
    assert pair.finish(1.0)
    quic._core = NoRoom(core, POLLS_WITHOUT_ROOM)
    with pytest.raises(SessionLost, match="too large"):
        pair.write(pair.dialler, 0, 1000)

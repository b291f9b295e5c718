"""Which bursts are sent a second time over a path that loses packets, and when."""

from __future__ import annotations

import asyncio

import pytest

from edgetun_core.transport.quic_twice import (
    MAX_BURST_BYTES,
    MAX_LATER_S,
    MAX_WAITING_BYTES,
    MIN_RTT_S,
    SPARE_ROOM_BYTES,
    Twice,
    decide_later_s,
)
from support.links import eventually

ROOM = SPARE_ROOM_BYTES + MAX_BURST_BYTES
ADDRESS = ("192.0.2.1", 443)


def test_a_small_burst_goes_again_within_a_fraction_of_the_round_trip() -> None:
    assert decide_later_s(1200, ROOM, 0, 0.048) == pytest.approx(0.003)
    assert decide_later_s(1200, ROOM, 0, 2.0) == MAX_LATER_S


@pytest.mark.parametrize(
    ("burst", "room", "waiting", "rtt_s"),
    [
        (MAX_BURST_BYTES + 1, 10 * ROOM, 0, 0.1),
        (1200, SPARE_ROOM_BYTES + 1199, 0, 0.1),
        (1200, ROOM, MAX_WAITING_BYTES - 1199, 0.1),
        (1200, ROOM, 0, MIN_RTT_S / 2),
        (1200, ROOM, 0, None),
    ],
    ids=["bulk", "no room to spare", "too much waits", "a short path", "nothing known of the path"],
)
def test_it_goes_once_where_twice_would_harm_or_not_help(
    burst: int, room: int, waiting: int, rtt_s: float | None
) -> None:
    assert decide_later_s(burst, room, waiting, rtt_s) is None


async def test_the_same_datagrams_are_sent_and_no_longer_count_as_waiting() -> None:
    sent: list[tuple[list[bytes], object]] = []
    twice = Twice(lambda datagrams, address: sent.append((datagrams, address)))
    for number in range(100):
        twice.consider([bytes((number,)) * 900, b"tail"], ADDRESS, ROOM, 0.1)
    held = MAX_WAITING_BYTES // 904
    await eventually(lambda: len(sent) == held, within_s=10)
    assert sent == [([bytes((number,)) * 900, b"tail"], ADDRESS) for number in range(held)]
    assert twice.sent == 2 * held
    twice.consider([b"again"], ADDRESS, ROOM, 0.1)
    await eventually(lambda: len(sent) == held + 1, within_s=10)


async def test_nothing_is_sent_after_the_end() -> None:
    sent: list[object] = []
    twice = Twice(lambda datagrams, address: sent.append(datagrams))
    twice.consider([b"x"], ADDRESS, ROOM, 0.1)
    twice.stop()
    await asyncio.sleep(2 * MAX_LATER_S)
    assert not sent

"""UDP that is blocked at the start, in the middle, and comes back: the tunnel is on TLS meanwhile, and one lost packet changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgetun_agent import race as race_module
from edgetun_agent import udp_memory
from support.impaired import Impaired, impaired
from support.impairment import GOOD, Impairment
from support.origin_server import ScriptedConnection, answering, response, scripted_origin
from support.visitors import until
from support.whole import HOST, snapshot

BLOCKED = Impairment(is_black_hole=True)
PATIENT_S = 20.0
"""A head start for QUIC on a machine that has much else to do."""


@pytest.fixture(autouse=True)
def _short_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp_memory, "DEAD_FIRST_S", 0.5)
    monkeypatch.setattr(udp_memory, "DEAD_MOST_S", 1.0)
    monkeypatch.setattr(udp_memory, "HEALTHY_S", 0.3)


def head_start(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(race_module.Race.__init__, "__defaults__", (seconds,))


async def is_served(stands: Impaired) -> None:
    visitor = await stands.visitor()
    answer = await visitor.ask("/", host=HOST)
    assert (answer.status, answer.body) == (200, b"laptop")
    await visitor.close()


@pytest.mark.parametrize("side", ["up", "down"])
async def test_blocked_at_the_start_it_is_tls_and_then_quic_without_a_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    head_start(monkeypatch, 0.3)
    go_on = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            if head.startswith(b"GET /long "):
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlap")
                await go_on.wait()
                await connection.send(b"top")
            else:
                await connection.send(response(b"laptop"))

    async with (
        scripted_origin(script) as origin,
        impaired(
            tmp_path,
            snapshot(origin.url),
            dead_after_s=15.0,
            before=lambda udp, tcp: udp.set(up=BLOCKED) if side == "up" else udp.set(down=BLOCKED),
        ) as stands,
    ):
        assert stands.transports == ["tls"]
        assert stands.agent.counters.fallbacks == 1
        long = await stands.visitor()
        long.send(b"GET /long HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode())
        assert (await long.head()).status == 200
        assert await long.read(3) == b"lap"
        lost = stands.udp.up.lost + stands.udp.down.lost
        await until(lambda: stands.udp.up.lost + stands.udp.down.lost > lost, 20.0)  # it was tried again, in vain
        assert [view.transport for view in stands.agent.sessions if not view.is_draining] == ["tls"]
        await is_served(stands)

        head_start(monkeypatch, PATIENT_S)
        stands.udp.set(GOOD)
        await until(
            lambda: [view.transport for view in stands.agent.sessions if not view.is_draining] == ["quic"], 30.0
        )
        await is_served(stands)
        go_on.set()
        assert await long.read(3) == b"top"
        await stands.stands_on("quic")
        assert stands.agent.counters.reconnects == 0, "nothing broke"
        await long.close()


async def test_blocked_in_the_middle_it_goes_on_over_tls_and_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head_start(monkeypatch, PATIENT_S)
    async with (
        scripted_origin(answering(response(b"laptop"))) as origin,
        impaired(tmp_path, snapshot(origin.url)) as stands,
    ):
        assert stands.transports == ["quic"]
        await is_served(stands)
        head_start(monkeypatch, 0.3)
        stands.udp.set(BLOCKED)
        await stands.stands_on("tls")
        assert stands.agent.counters.fallbacks
        await is_served(stands)

        head_start(monkeypatch, PATIENT_S)
        stands.udp.set(GOOD)
        await stands.stands_on("quic")
        await is_served(stands)


async def test_one_lost_packet_is_no_reason_to_fall_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the very first one, nor one in the middle, nor one in thirty."""
    head_start(monkeypatch, PATIENT_S)

    def lose_the_first(udp: object, tcp: object) -> None:
        udp.up.lose_next = udp.down.lose_next = 1  # type: ignore[attr-defined]

    async with (
        scripted_origin(answering(response(b"laptop"))) as origin,
        impaired(tmp_path, snapshot(origin.url), dead_after_s=15.0, before=lose_the_first) as stands,
    ):
        assert (stands.udp.up.lost, stands.udp.down.lost) == (1, 1)
        for wire in (stands.udp.up, stands.udp.down):
            wire.lose_next = 1
            await is_served(stands)
        stands.udp.set(Impairment(loss=0.03))
        lost = stands.udp.up.lost + stands.udp.down.lost
        await until(lambda: stands.udp.up.lost + stands.udp.down.lost >= lost + 5, 30.0)  # pings go on all the time
        await is_served(stands)
        # a path that goes on losing may get a session with another congestion control, and by QUIC too
        assert set(stands.transports) == {"quic"}
        assert stands.tcp.connections == 0
        assert stands.agent.counters.reconnects == stands.agent.counters.fallbacks == 0

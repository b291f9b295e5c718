"""A session whose control lane lives and whose data lanes do not: both ends must notice, or visitors wait for ever on a tunnel that looks well."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from edgetun_agent.dialling import RacingRunner
from edgetun_core.wire.lanes import Lane
from support.impaired import Impaired, impaired
from support.origin_server import ScriptedConnection, scripted_origin
from support.visitors import until
from support.whole import HOST, snapshot

FIRST_BYTES = 512 * 1024
"""Enough for a body to be on a bulk lane."""
PAGE_BYTES = 8 * 1024 * 1024
"""More than a lane and the kernel hold, so that a body is under way when the lane dies."""
SMALL_PAGE_BYTES = 1024 * 1024


class Laptop:
    """An origin with one large page, the rest of which it sends when it is told to."""

    def __init__(self, page_bytes: int = PAGE_BYTES) -> None:
        self.page_bytes = page_bytes
        self.go_on = asyncio.Event()

    async def __call__(self, connection: ScriptedConnection) -> None:
        while await connection.request():
            await connection.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.page_bytes + bytes(FIRST_BYTES)
            )
            await self.go_on.wait()
            await connection.send(bytes(self.page_bytes - FIRST_BYTES))


def lanes_of(stands: Impaired) -> list[Lane]:
    """Of the session, at both ends."""
    runners = [*stands.node.acceptor.runners, *(session.runner for session in stands.agent._sessions)]
    return [lane for runner in runners for lane in runner._session.mux.all_lanes()]


async def breaks_off_and_comes_back(
    stands: Impaired, laptop: Laptop, kill: object, caplog: pytest.LogCaptureFixture, lane: int
) -> None:
    """A visitor in the middle of a page is not left waiting, and the next one is served over a new session."""
    visitor = await stands.visitor()
    visitor.send(b"GET /big HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode())
    assert (await visitor.head()).status == 200
    await visitor.read(FIRST_BYTES)
    [before] = stands.node.acceptor.runners
    kill()  # type: ignore[operator]
    laptop.go_on.set()
    rest = await visitor.rest()  # ends by itself, or the visitor's patience ends and the test fails
    assert len(rest) < PAGE_BYTES - FIRST_BYTES
    await until(lambda: len(stands.node.acceptor.runners) == 1 and before not in stands.node.acceptor.runners, 20.0)
    assert f"lane {lane} carried nothing" in caplog.text
    again = await stands.visitor()
    answer = await again.ask("/big", host=HOST)
    assert (answer.status, len(answer.body)) == (200, PAGE_BYTES)
    for each in (visitor, again):
        await each.close()


@pytest.mark.parametrize("side", ["up", "down"])
async def test_a_bulk_connection_that_something_on_the_way_forgot_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, side: str
) -> None:
    """`up` is from the agent to the exit node, where only the exit node misses something; `down` the other way."""
    caplog.set_level(logging.INFO)
    laptop = Laptop()
    async with (
        scripted_origin(laptop) as origin,
        impaired(tmp_path, snapshot(origin.url), transport="tls") as stands,
    ):
        await until(lambda: all(lane.is_watched for lane in lanes_of(stands)) and len(lanes_of(stands)) == 4)

        def kill() -> None:
            stands.tcp.stall(1, up=side != "down", down=side != "up")

        if side == "down":
            # pages go up unharmed: it is the session that must not be trusted, whether or not anybody needs that way now
            [before] = stands.node.acceptor.runners
            kill()
            await until(lambda: stands.node.acceptor.runners and before not in stands.node.acceptor.runners, 20.0)
            assert "lane 1 carried nothing" in caplog.text
            laptop.go_on.set()
            visitor = await stands.visitor()
            assert len((await visitor.ask("/big", host=HOST)).body) == PAGE_BYTES
            await visitor.close()
        else:
            await breaks_off_and_comes_back(stands, laptop, kill, caplog, 1)


@pytest.mark.parametrize(("engine", "lane"), [("qh3", 2), ("aioquic", 4)])
async def test_a_stream_of_quic_that_carries_nothing_any_more_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, engine: str, lane: int
) -> None:
    """Inside QUIC nothing on the way can stop one stream alone; an end that no longer takes what comes on it can."""
    caplog.set_level(logging.INFO)
    deaf: set[object] = set()
    take = RacingRunner.on_data

    def on_data(self: RacingRunner, number: int, data: bytes) -> None:
        if self not in deaf or number != lane:
            take(self, number, data)

    monkeypatch.setattr(RacingRunner, "on_data", on_data, raising=False)
    laptop = Laptop(SMALL_PAGE_BYTES)
    async with (
        scripted_origin(laptop) as origin,
        impaired(tmp_path, snapshot(origin.url), transport="quic", quic_engine=engine) as stands,
    ):
        [before] = stands.node.acceptor.runners
        [session] = stands.agent._sessions
        deaf.add(session.runner)
        await until(lambda: stands.node.acceptor.runners and before not in stands.node.acceptor.runners, 20.0)
        assert f"lane {lane} carried nothing" in caplog.text
        laptop.go_on.set()
        visitor = await stands.visitor()
        assert len((await visitor.ask("/big", host=HOST)).body) == SMALL_PAGE_BYTES
        await visitor.close()

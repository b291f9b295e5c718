"""The agent's address or port changes under live streams, by a NAT, by the network or by itself, and no stream breaks (RFC 9000 §9)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from support.bad_path import Impaired, body_of, impaired
from support.impairment import GOOD, Impairment
from support.visitors import until
from support.whole import HOST

ENGINES = ["qh3", "aioquic"]
SIZE = 1_500_000
CHANGES = 6
UNHEARD_WITHIN_S = 30.0

Change = Callable[[Impaired, int], Awaitable[None]]


def link(here: Impaired) -> Any:
    runner = here.agent._sessions[0].runner
    assert runner is not None
    return runner.link


async def by_nat(here: Impaired, number: int) -> None:
    """The NAT forgets its binding: another port, more often than a library keeps addresses."""
    await here.path.rebind()


async def by_network(here: Impaired, number: int) -> None:
    """Another IP address, again and again, back, and another port."""
    await here.path.rebind(f"127.0.0.{(2, 3, 4, 5, 2, 2)[number]}")


async def by_socket(here: Impaired, number: int) -> None:
    """The agent goes on from a new socket of its own."""
    link(here).rebind()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", [by_nat, by_network, by_socket])
async def test_events_a_download_and_an_upload_outlive_changes_of_address(
    tmp_path: Path, engine: str, change: Change
) -> None:
    async with impaired(tmp_path, engine) as here:
        session = here.agent._sessions[0]
        events = await here.visitor()
        events.send(b"GET /events HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode())
        assert (await events.head()).status == 200
        body = body_of(SIZE)
        download = asyncio.create_task(here.ask(f"/slowly/{SIZE}"))
        upload = asyncio.create_task(here.upload(body, pieces=60))
        seen = set(here.path.ports_at_target)
        for number in range(CHANGES):
            await events.read(100)  # they come in between
            await change(here, number)
        await events.read(200)
        assert (await download).body == body
        assert (await upload).body == hashlib.sha256(body).hexdigest().encode()
        assert len(seen | set(here.path.ports_at_target)) > 1
        assert here.agent._sessions == [session]
        assert here.agent.counters.reconnects == 0
        assert len(here.node.acceptor.runners) == 1
        events.leave()


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_agent_that_hears_nothing_goes_on_from_a_new_socket(tmp_path: Path, engine: str) -> None:
    """As on a laptop that changed its network: what leaves by the old socket goes nowhere."""
    async with impaired(tmp_path, engine) as here:
        session = here.agent._sessions[0]
        assert (await here.ask("/")).body == b"ok"
        here.path.forget_diallers()
        answer = asyncio.create_task(here.ask("/"))
        await until(lambda: link(here)._dialled.rebindings > 0, UNHEARD_WITHIN_S)
        assert (await answer).body == b"ok"
        assert here.agent._sessions == [session]
        assert here.agent.counters.reconnects == 0


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_short_outage_cuts_nothing(tmp_path: Path, engine: str) -> None:
    async with impaired(tmp_path, engine) as here:
        download = asyncio.create_task(here.ask(f"/slowly/{SIZE}"))
        await asyncio.sleep(0.1)
        here.path.set(Impairment(is_black_hole=True))
        await asyncio.sleep(0.7)
        here.path.set(GOOD)
        assert (await download).body == body_of(SIZE)
        assert here.agent.counters.reconnects == 0

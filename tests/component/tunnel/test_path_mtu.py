"""Packets as large as the path carries, from 1,200 bytes up: links of every MTU work, and a path may change under way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetun_core.transport import quic_dial
from edgetun_core.transport.quic_library import library
from support.bad_path import Impaired, body_of, impaired
from support.impairment import GOOD, Impairment
from support.whole import HOST

IPV4_HEADERS, IPV6_HEADERS = 28, 48
MEGABYTE = 1_000_000
ENGINES = ["qh3", "aioquic"]

LINKS = [
    # what the link carries, over which address, and what packets both ends send at least and at most
    pytest.param(1500, "127.0.0.1", 1452, 1472, id="ethernet"),
    pytest.param(1500, "::1", 1452, 1452, id="ethernet-ipv6"),
    pytest.param(1280, "127.0.0.1", 1200, 1252, id="1280"),
    pytest.param(1280, "::1", 1200, 1232, id="1280-ipv6"),
    pytest.param(1232, "127.0.0.1", 1200, 1204, id="1232"),
]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(quic_dial, "small_paths", quic_dial.SmallPaths())
    return


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake that a busy machine makes slow is not taken for a first flight that was too large."""
    for engine in ENGINES:
        module: Any = library(engine)
        made = module._configuration

        def configuration(*, is_client: bool, made: Any = made) -> Any:
            found = made(is_client=is_client)
            found.initial_rtt = 4.0
            return found

        monkeypatch.setattr(module, "_configuration", configuration)


def link_of(mtu: int, host: str) -> Impairment:
    return Impairment(mtu_bytes=mtu - (IPV6_HEADERS if ":" in host else IPV4_HEADERS))


def connections(here: Impaired) -> list[Any]:
    """Both ends' QUIC connections."""
    sessions = [session.runner for session in here.agent._sessions if session.runner is not None]
    return [runner.link._quic for runner in (*sessions, *here.node.acceptor.runners) if runner.link is not None]


async def exchange_megabytes(here: Impaired) -> None:
    assert (await here.ask("/")).body == b"ok"
    assert (await here.ask(f"/bytes/{MEGABYTE}")).body == body_of(MEGABYTE)
    assert (await here.upload(body_of(MEGABYTE))).status == 200


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("mtu", "host", "least", "most"), LINKS)
async def test_a_link_of_every_size_carries_requests_and_megabytes(
    tmp_path: Path, engine: str, mtu: int, host: str, least: int, most: int, request: pytest.FixtureRequest
) -> None:
    if mtu == 1500:
        request.getfixturevalue("patient")
    async with impaired(tmp_path, engine, link_of(mtu, host), host=host) as here:
        await exchange_megabytes(here)
        for connection in connections(here):
            assert least <= connection.packet_bytes <= most


async def test_what_did_not_get_through_is_not_tried_again_at_the_next_dial(tmp_path: Path) -> None:
    async with impaired(tmp_path, "aioquic", link_of(1280, "127.0.0.1")) as here:
        lost = here.path.up.too_large
        assert lost > 0
        here.agent.reopen("to see how the next one begins")
        while len(here.agent.sessions) != 1 or here.agent.sessions[0].in_flight or here.agent._sessions[0].leaving_for:
            assert (await here.ask("/")).body == b"ok"
        assert here.path.up.too_large == lost


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_path_that_becomes_narrower_under_way_cuts_nothing(tmp_path: Path, engine: str) -> None:
    async with impaired(tmp_path, engine) as here:
        await exchange_megabytes(here)
        assert all(connection.packet_bytes >= 1452 for connection in connections(here))
        download = await here.visitor()
        download.send(b"GET /slowly/1000000 HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode())
        assert (await download.head()).status == 200
        await download.read(200_000)
        here.path.set(link_of(1232, "127.0.0.1"))
        assert await download.read(800_000) == body_of(1_000_000)[200_000:]
        await exchange_megabytes(here)
        assert all(connection.packet_bytes == 1200 for connection in connections(here))
        assert here.agent.counters.reconnects == 0
        await download.close()


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_way_back_that_is_narrower_than_the_way_there_works_too(tmp_path: Path, engine: str) -> None:
    async with impaired(tmp_path, engine, GOOD, down=link_of(1280, "127.0.0.1")) as here:
        await exchange_megabytes(here)

"""An agent that was cut off without a word comes back as another process: it owns the tunnel at once, and the old session goes."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.core import CollectorRegistry
from prometheus_client.exposition import generate_latest

from edgetun_core.transport.quic_driver import QuicLink
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.transport.tls import TlsLink
from edgetun_exitnode.observe.metrics import collect_exit_node
from support.impairment.tcp_path import TcpPath, tcp_path
from support.impairment.udp_path import UdpPath, udp_path
from support.impairment.wire import Impairment
from support.origin_server import ScriptedConnection, response, scripted_origin
from support.paths import Site, site
from support.visitors import until
from support.whole import HOST, snapshot

DEADLINE_S = 15.0
BLACK_HOLE = Impairment(is_black_hole=True)


@asynccontextmanager
async def path_to(stands: Site, kind: str) -> AsyncIterator[tuple[TcpPath | UdpPath, dict[str, int]]]:
    """A path by one transport, and the port of it for an agent."""
    if kind == "quic":
        async with udp_path(stands.quic_port) as way:
            yield way, {"quic_port": way.port}
    else:
        async with tcp_path(stands.tls_port) as way:
            yield way, {"tls_port": way.port}


def saying(words: bytes):
    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            if b"/slow" in head.splitlines()[0]:
                await asyncio.sleep(DEADLINE_S)
            await connection.send(response(words))

    return script


@pytest.mark.parametrize("kind", ["quic", "tls"])
async def test_the_agent_started_anew_owns_the_tunnel_and_the_black_holed_session_is_freed(
    kind: str, tmp_path: Path
) -> None:
    async with (
        scripted_origin(saying(b"old")) as before,
        scripted_origin(saying(b"new")) as after,
        site(tmp_path, snapshot(before.url)) as stands,
        path_to(stands, kind) as (way, port),
    ):
        before_it = living()
        old = stands.agent(snapshot(before.url), **port)
        await old.connected(DEADLINE_S)
        acceptor = stands.node.acceptor
        await until(lambda: len(acceptor.runners) == 1, DEADLINE_S)
        visitor = await stands.visitor()
        assert (await visitor.ask(host=HOST)).body == b"old"
        stuck = await stands.visitor()
        stuck.send(b"GET /slow HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        await until(lambda: acceptor.runners[0].in_flight == 1, DEADLINE_S)
        old_runner = acceptor.runners[0]

        way.set(BLACK_HOLE)  # no FIN, no RST, no CONNECTION_CLOSE: as when a laptop leaves its network
        stands.agent(
            snapshot(after.url),
            **({"quic_port": stands.quic_port} if kind == "quic" else {"tls_port": stands.tls_port}),
        )
        await until(lambda: acceptor.opened_total == 2, DEADLINE_S)
        began = time.monotonic()
        assert [(await visitor.ask(host=HOST)).body for _ in range(50)] == [b"new"] * 50
        await until(lambda: len(acceptor.runners) == 1, DEADLINE_S)
        took_s = time.monotonic() - began
        assert acceptor.runners[0] is not old_runner
        # Before anything else could have noticed it: a session is dead after 15 s, and QUIC's idle time is 30 s.
        assert took_s < 10
        assert acceptor.checked_total == acceptor.taken_over_total == 1

        assert f'edgetun_sessions{{transport="{kind}"}} 1.0' in metrics(stands)
        assert "edgetun_sessions_taken_over_total 1.0" in metrics(stands)
        # What was under way on the old session has not been answered, so it is asked again, of the new one.
        await until(lambda: acceptor.runners[0].in_flight == 1, DEADLINE_S)
        stuck.leave()
        await visitor.close()
        assert old_runner.in_flight == 0
        del old_runner
        await old.close()
        # The session and its link with all their buffers; the sessions of agents are of another type.
        await until(lambda: living() <= before_it + 2, DEADLINE_S)


def living() -> int:
    """Sessions of exit nodes and their links that anything in this process still holds."""
    gc.collect()
    return sum(
        type(one) is SessionRunner or (type(one) in (QuicLink, TlsLink) and type(one._user) is SessionRunner)
        for one in gc.get_objects()
    )


def metrics(stands: Site) -> str:
    class Collector:
        def collect(self):
            return collect_exit_node(stands.node)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())  # type: ignore[arg-type]
    return generate_latest(registry).decode()


async def test_a_living_session_of_the_same_agent_goes_on(tmp_path: Path) -> None:
    """As in a rolling update under one name: what the old process has under way ends as if nothing had happened."""
    release = asyncio.Event()

    async def slow(connection: ScriptedConnection) -> None:
        await connection.request()
        await release.wait()
        await connection.send(response(b"whole"))

    async with scripted_origin(slow) as origin, site(tmp_path, snapshot(origin.url)) as stands:
        stands.agent(snapshot(origin.url), quic_port=stands.quic_port)
        acceptor = stands.node.acceptor
        await until(lambda: len(acceptor.runners) == 1, DEADLINE_S)
        visitor = await stands.visitor()
        visitor.send(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        await until(lambda: acceptor.runners[0].in_flight == 1, DEADLINE_S)
        stands.agent(snapshot(origin.url), quic_port=stands.quic_port)
        await until(lambda: acceptor.checked_total == 1, DEADLINE_S)
        # It answered: both take requests again.
        await until(lambda: len(stands.node.registry.sessions) == 2, DEADLINE_S)
        release.set()
        assert (await visitor.answer()).body == b"whole"
        assert acceptor.taken_over_total == 0
        assert len(acceptor.runners) == 2
        await visitor.close()


async def test_two_sessions_of_one_process_are_no_reason_to_ask(tmp_path: Path) -> None:
    async with scripted_origin(saying(b"x")) as origin, site(tmp_path, snapshot(origin.url)) as stands:
        stands.agent(snapshot(origin.url), tls_port=stands.tls_port, sessions=2)
        await until(lambda: len(stands.node.registry.sessions) == 2, DEADLINE_S)
        stands.agent(snapshot(origin.url), tls_port=stands.tls_port, agent_id="another")
        await until(lambda: len(stands.node.registry.sessions) == 3, DEADLINE_S)
        assert stands.node.acceptor.checked_total == 0

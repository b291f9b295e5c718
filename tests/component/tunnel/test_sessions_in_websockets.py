"""Where nothing but the visitors' port can be reached, a session comes in a WebSocket: the whole way, and who is turned away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgetun_agent import connect as connect_module
from edgetun_agent.by_websocket import WebSocketWay
from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.enrollment import WEBSOCKET_PATH, Endpoint
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.node import ExitNode
from support.origin_server import answering, response, scripted_origin
from support.visitors import Visitor, until
from support.whole import HOST, TUNNEL, snapshot
from support.whole import credential as a_credential


class Place:
    """An exit node, its plain front, and an agent beside an origin."""

    def __init__(self, node: ExitNode, http_port: int, tls_port: int, trust: Trust, origins: Origins) -> None:
        self.node, self.http_port, self.tls_port, self.trust, self.origins = node, http_port, tls_port, trust, origins
        self.way = WebSocketWay(lambda host: f"http://{host}:{http_port}")
        self.agents: list[Agent] = []

    def agent(self, *, tls_port: int, transport: str = "auto", credential: str = "") -> Agent:
        made = Agent(
            endpoints=[Endpoint("127.0.0.1", tls_port, 0, node="n1")],
            trust=self.trust,
            hello=lambda session_id: Hello(
                agent_id="laptop", session_id=session_id, credential=credential or a_credential(), services=(TUNNEL,)
            ),
            handler=self.origins,
            transport=transport,  # type: ignore[arg-type]
            sessions=1,
            websocket=self.way,
        )
        self.agents.append(made)
        made.start()
        return made


@asynccontextmanager
async def a_place(folder: Path, body: bytes = b"from the laptop") -> AsyncIterator[Place]:
    async with scripted_origin(answering(response(body))) as origin:
        node = ExitNode("n1")
        obey = snapshot(origin.url)
        node.apply(obey)
        ca = DevelopmentCA(folder / "ca")
        front = await node.listen_http("127.0.0.1", 0)
        tls_port, _ = await node.listen_tunnel("127.0.0.1", 0, ca.identity(["127.0.0.1"]), quic_engine="none")
        origins = Origins(obey.tunnels, probe=False)
        place = Place(node, front.port, tls_port, Trust(ca.ca_pem), origins)
        try:
            yield place
        finally:
            for agent in place.agents:
                await agent.close()
            await place.way.close()
            await node.close()
            await origins.close()


async def a_closed_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()
    return port


async def test_an_agent_whose_other_ways_are_shut_serves_in_a_websocket(tmp_path: Path) -> None:
    body = bytes(range(256)) * 8192  # 2 MiB: more than what may be under way without anybody reading
    async with a_place(tmp_path, body) as place:
        agent = place.agent(tls_port=await a_closed_port())
        await agent.connected(20.0)
        assert [view.transport for view in agent.sessions] == ["websocket"]
        assert place.node.router.door is not None
        assert place.node.router.door.open_now >= 1
        visitor = await Visitor.to(place.http_port)
        answer = await visitor.ask("/big", host=HOST)
        assert (answer.status, answer.body) == (200, body)
        await visitor.close()
        await agent.close()
        await until(lambda: place.node.router.door is not None and place.node.router.door.open_now == 0, 20.0)


async def test_it_goes_back_to_tls_when_that_opens_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_module, "BETTER_THAN_WEBSOCKET_S", 0.1)
    async with a_place(tmp_path) as place:
        closed = await a_closed_port()
        agent = place.agent(tls_port=closed)
        await agent.connected(20.0)
        assert agent.sessions[0].transport == "websocket"
        # the port that was shut opens: what listens there leads to the exit node
        relay = await asyncio.start_server(_leads_to(place.tls_port), "127.0.0.1", closed)
        try:
            await until(lambda: [view.transport for view in agent.sessions] == ["tls"], 20.0)
        finally:
            await agent.close()
            relay.close()
            await asyncio.sleep(0.05)


def _leads_to(port: int):
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            except OSError:
                pass
            target.close()

        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    return carry


async def test_the_path_is_the_tunnels_own_for_everyone_else(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        agent = place.agent(tls_port=place.tls_port, transport="tls")
        await agent.connected(20.0)
        visitor = await Visitor.to(place.http_port)
        answer = await visitor.ask(WEBSOCKET_PATH, host=HOST)
        assert (answer.status, answer.body) == (200, b"from the laptop")
        await visitor.close()


@pytest.mark.parametrize(
    ("lines", "most", "status"),
    [
        (("Sec-WebSocket-Protocol: chat",), 10, 400),
        ((), 10, 400),
        (("Sec-WebSocket-Protocol: edgetun.1",), 0, 503),
    ],
)
async def test_who_is_no_agent_or_one_too_many_is_turned_away(
    tmp_path: Path, lines: tuple[str, ...], most: int, status: int
) -> None:
    async with a_place(tmp_path) as place:
        assert place.node.router.door is not None
        place.node.router.door._max_open = most
        visitor = await Visitor.to(place.http_port)
        upgrade = (
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: " + "a" * 22 + "==",
        )
        answer = await visitor.ask(WEBSOCKET_PATH, *upgrade, *lines, host="anything.example")
        assert answer.status == status
        assert place.node.router.door.open_now == 0
        await visitor.close()


async def test_frames_that_are_no_sessions_end_the_websocket(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        visitor = await Visitor.to(place.http_port)
        visitor.send(
            f"GET {WEBSOCKET_PATH} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {'a' * 22}==\r\nSec-WebSocket-Protocol: edgetun.1\r\n\r\n".encode()
        )
        head = await visitor.head()
        assert head.status == 101
        visitor.send(b"\x82\x05hello")  # not masked: RFC 6455 §5.1 wants the connection closed
        async with asyncio.timeout(20.0):
            rest = await visitor.rest()
        assert rest[:1] in (b"\x88", b"")
        door = place.node.router.door
        assert door is not None
        await until(lambda: door.open_now == 0, 20.0)
        await visitor.close()


async def test_a_credential_that_is_no_good_is_refused_in_a_websocket_too(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        agent = place.agent(tls_port=await a_closed_port(), credential="no good")
        began = time.monotonic()
        with pytest.raises(Exception, match="credential"):
            await agent.connected(20.0)
        assert time.monotonic() - began < 19.0

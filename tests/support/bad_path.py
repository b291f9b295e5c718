"""A real exit node and a real agent with a bad network between them, and an origin for what takes long: events, downloads, uploads."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.enrollment import Endpoint
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.node import ExitNode
from support.impairment import GOOD, Impairment
from support.impairment.udp_path import UdpPath, udp_path
from support.visitors import Answer, Visitor, until
from support.whole import HOST, TUNNEL, credential, snapshot

EVENT_EVERY_S = 0.02
PATTERN = bytes(range(256)) * 64
CUT_OFF_S = 40.0


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """`/events` for as long as somebody listens, `/bytes/N`, `/slowly/N` (a piece per 10 ms); POST: the digest of the body; else `ok`."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            method, target, _ = head.split(b" ", 2)
            if method == b"POST":
                left = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                digest = hashlib.sha256()
                while left:
                    data = await reader.read(min(left, 65536))
                    digest.update(data)
                    left -= len(data)
                body = digest.hexdigest().encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            elif target == b"/events":
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                number = 0
                while True:
                    event = b"data: %d\n\n" % number
                    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                    await writer.drain()
                    number += 1
                    await asyncio.sleep(EVENT_EVERY_S)
            elif target.startswith((b"/bytes/", b"/slowly/")):
                left = int(target.rpartition(b"/")[2])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
                while left:
                    piece = PATTERN[:left]
                    writer.write(piece)
                    await writer.drain()
                    left -= len(piece)
                    if target.startswith(b"/slowly/"):
                        await asyncio.sleep(0.01)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def body_of(size: int) -> bytes:
    """What `/bytes/N` and `/slowly/N` answer."""
    whole, rest = divmod(size, len(PATTERN))
    return PATTERN * whole + PATTERN[:rest]


@dataclass
class Impaired:
    """What a test holds."""

    node: ExitNode
    agent: Agent
    path: UdpPath
    port: int

    async def visitor(self) -> Visitor:
        visitor = await Visitor.to(self.port)
        visitor.timeout_s = CUT_OFF_S
        return visitor

    async def ask(self, target: str) -> Answer:
        """One GET on a connection of its own."""
        visitor = await self.visitor()
        answer = await visitor.ask(target, host=HOST)
        await visitor.close()
        return answer

    async def upload(self, body: bytes, pieces: int = 1) -> Answer:
        """One POST, its body in pieces with a little time between them."""
        visitor = await self.visitor()
        visitor.send(b"POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n" % (HOST.encode(), len(body)))
        step = -(-len(body) // pieces)
        for start in range(0, len(body), step):
            visitor.send(body[start : start + step])
            await visitor.writer.drain()
            if pieces > 1:
                await asyncio.sleep(0.01)
        answer = await visitor.answer(b"POST")
        await visitor.close()
        return answer

    @property
    def engines(self) -> list[str]:
        """Of the agent's sessions that take requests."""
        return [
            session.runner.engine
            for session in self.agent._sessions
            if session.runner is not None and session.opened_at and not session.is_over and not session.is_draining
        ]


@asynccontextmanager
async def impaired(
    folder: Path,
    engine: str,
    impairment: Impairment = GOOD,
    *,
    node_engine: str = "",
    host: str = "127.0.0.1",
    seed: int = 1,
    down: Impairment | None = None,
    **options: Any,
) -> AsyncIterator[Impaired]:
    """One session of an agent on `engine` to an exit node on `node_engine` (the same), its datagrams through a path."""
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(_answer, "127.0.0.1", 0)
        stack.callback(server.close)
        obey = snapshot(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", response_timeout_s=CUT_OFF_S)
        node = ExitNode("n1")
        stack.push_async_callback(node.close)
        node.apply(obey)
        front = await node.listen_http("127.0.0.1", 0)
        ca = DevelopmentCA(folder / "ca")
        identity = ca.identity(["127.0.0.1", "::1"])
        _, quic_port = await node.listen_tunnel(host, 0, identity, quic_engine=node_engine or engine)  # type: ignore[arg-type]
        path = await stack.enter_async_context(udp_path(quic_port, impairment, down=down, seed=seed, host=host))
        origins = Origins(obey.tunnels, probe=False)
        stack.push_async_callback(origins.close)
        agent = Agent(
            endpoints=[Endpoint(host, 0, path.port, node="n1")],
            trust=Trust(ca.ca_pem),
            hello=lambda session_id: Hello(
                agent_id="laptop", session_id=session_id, credential=credential(), services=(TUNNEL,)
            ),
            handler=origins,
            **{"transport": "quic", "quic_engine": engine, "sessions": 1} | options,
        )
        stack.push_async_callback(agent.close)
        agent.start()
        await until(lambda: agent.is_connected and bool(node.acceptor.runners), 20.0)
        yield Impaired(node, agent, path, front.port)

"""An agent of this version at exit nodes of the version before and after, and the other way: whole sessions over real sockets.

The other version is played by hand, frame by frame: what it knows not, it leaves out; what it knows more, it sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import EdgetunError
from edgetun_core.pki import DevelopmentCA
from edgetun_core.transport.engines import dial, listen
from edgetun_core.transport.link import Link
from edgetun_core.wire import frames
from edgetun_core.wire.frames import HEADER, encode_frame
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.node import ExitNode
from support.origin_server import answering, response, scripted_origin
from support.visitors import Visitor, until
from support.whole import HOST, TUNNEL, credential, snapshot

HELLO = {
    "exchange_window": 262144,
    "session_window": 8388608,
    "max_exchanges": 10000,
    "versions": [1],
    "agent_id": "laptop",
    "session_id": "00" * 16,
    "services": [TUNNEL],
    "software": "edgetun/0.0.1",
    "features": [],
}
WELCOME = {
    "exchange_window": 262144,
    "session_window": 8388608,
    "max_exchanges": 10000,
    "version": 1,
    "node": "n1",
    "services": [TUNNEL],
    "refused": [],
    "server_time": 0.0,
    "ping_interval_s": 5.0,
    "dead_after_s": 15.0,
    "software": "",
    "features": [],
}
"""What the first version says, and all that it says."""
LATER: dict[str, Any] = {"hologram": {"depth": [1, 2]}, "features": ["beaming"]}
UNKNOWN = encode_frame(frames.IGNORABLE_FROM + 1, 0, b"of a later version")
ENGINES = ["tls", "qh3"]


class ByHand:
    """One end of a link: keeps what comes, lane by lane, and knows nothing of sessions."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.lanes: dict[int, bytes] = {}
        self.closed: list[EdgetunError | None] = []

    def on_open(self, link: Link) -> None:
        self.link = link

    def on_data(self, lane: int, data: bytes) -> None:
        self.lanes[lane] = self.lanes.get(lane, b"") + data

    def on_lane_paused(self, lane: int) -> None: ...

    def on_lane_resumed(self, lane: int) -> None: ...

    def on_closed(self, error: EdgetunError | None) -> None:
        self.closed.append(error)

    def send(self, lane: int, *written: bytes) -> None:
        assert self.link is not None
        self.link.write(lane, b"".join(written))

    def found(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Lane, kind, exchange and payload of every whole frame."""
        for lane, data in self.lanes.items():
            position = 0
            while position + 8 <= len(data):
                word, number = HEADER.unpack_from(data, position)
                size = word & 0xFFFFFF
                if position + 8 + size > len(data):
                    break
                yield lane, word >> 24, number, data[position + 8 : position + 8 + size]
                position += 8 + size

    async def next(self, *kinds: int) -> tuple[int, int, int, bytes]:
        """The first frame of one of these kinds."""
        async with asyncio.timeout(20):
            while True:
                for one in self.found():
                    if one[1] in kinds:
                        return one
                assert not self.closed, self.closed
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("is_later", [False, True], ids=["before", "after"])
async def test_an_exit_node_serves_with_agents_of_the_version_before_and_after(
    tmp_path: Path, engine: str, is_later: bool
) -> None:
    ca = DevelopmentCA(tmp_path)
    node = ExitNode("n1")
    node.apply(snapshot("http://127.0.0.1:1"))
    agent = ByHand()
    try:
        front = await node.listen_http("127.0.0.1", 0)
        tls_port, quic_port = await node.listen_tunnel("127.0.0.1", 0, ca.identity(["127.0.0.1"]))
        await dial(
            engine, "127.0.0.1", tls_port if engine == "tls" else quic_port, trust=ca.trust, user=agent, timeout_s=20.0
        )
        said = HELLO | {"credential": credential()}
        if is_later:
            said |= LATER | {"versions": [1, 2]}
        agent.send(0, encode_frame(frames.HELLO, 0, msgspec.msgpack.encode(said)))
        _, _, _, payload = await agent.next(frames.WELCOME, frames.REFUSE)
        welcome = msgspec.msgpack.decode(payload)
        assert (welcome["version"], welcome["services"]) == (1, [TUNNEL])
        assert set(WELCOME) <= set(welcome), "the version before has other defaults"
        visitor = await Visitor.to(front.port)
        visitor.timeout_s = 20.0
        asking = asyncio.ensure_future(visitor.ask("/page", host=HOST))
        lane, _, number, payload = await agent.next(frames.HEAD | frames.END)
        head = msgspec.msgpack.decode(payload)
        assert (head[0], head[3], head[5]) == (b"GET", b"/page", TUNNEL)
        assert len(head) >= 7
        fields = [[b"content-length", b"5"]]
        answer = [200, fields, {"mood": "fine"}] if is_later else [200, fields]
        agent.send(
            lane,
            UNKNOWN if is_later else b"",
            encode_frame(frames.HEAD, number, msgspec.msgpack.encode(answer)),
            encode_frame(frames.DATA | frames.END, number, b"hello"),
        )
        got = await asking
        assert (got.status, got.body) == (200, b"hello")
        assert not agent.closed
        await visitor.close()
    finally:
        if agent.link is not None:
            agent.link.abort()
        await node.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("is_later", [False, True], ids=["before", "after"])
async def test_an_agent_serves_at_exit_nodes_of_the_version_before_and_after(
    tmp_path: Path, engine: str, is_later: bool
) -> None:
    ca = DevelopmentCA(tmp_path)
    accepted: list[ByHand] = []

    def accept() -> ByHand:
        accepted.append(ByHand())
        return accepted[-1]

    async with scripted_origin(answering(response(b"laptop"))) as origin:
        listener = await listen(engine, "127.0.0.1", 0, identity=ca.identity(["127.0.0.1"]), accept=accept)
        origins = Origins(snapshot(origin.url).tunnels, probe=False)
        ports = (
            {"tls_port": listener.port, "quic_port": 0}
            if engine == "tls"
            else {"tls_port": 0, "quic_port": listener.port}
        )
        agent = Agent(
            endpoints=[Endpoint("127.0.0.1", **ports, node="n1")],
            trust=ca.trust,
            hello=lambda session_id: Hello(
                agent_id="laptop", session_id=session_id, credential=credential(), services=(TUNNEL,)
            ),
            handler=origins,
            transport="tls" if engine == "tls" else "quic",
            sessions=1,
        )
        try:
            agent.start()
            await until(lambda: bool(accepted), 20.0)
            [node] = accepted
            _, _, _, payload = await node.next(frames.HELLO)
            hello = msgspec.msgpack.decode(payload)
            assert 1 in hello["versions"]
            assert set(HELLO) <= set(hello), "the version before has other defaults"
            said = WELCOME | (LATER if is_later else {})
            node.send(0, encode_frame(frames.WELCOME, 0, msgspec.msgpack.encode(said)))
            await agent.connected(20)
            head = [b"GET", b"https", HOST.encode(), b"/page", None, TUNNEL, [[b"accept", b"*/*"]]]
            if is_later:
                head += [None, {"mood": "fine"}]
            node.send(
                0,
                UNKNOWN if is_later else b"",
                encode_frame(frames.HEAD | frames.END, 2, msgspec.msgpack.encode(head)),
            )
            _, _, number, payload = await node.next(frames.HEAD, frames.RESET)
            status, fields, *_ = msgspec.msgpack.decode(payload)
            assert (number, status) == (2, 200)
            assert [b"content-length", b"6"] in fields
            _, _, _, body = await node.next(frames.DATA | frames.END)
            assert body == b"laptop"
            assert agent.counters.reconnects == 0
        finally:
            await agent.close()
            await origins.close()
            await listener.close()

"""Several real exit nodes that follow a real control and relay to each other, agents on real sessions, one event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.control_stream import snapshot_digest
from edgetun_core.enrollment import Endpoint
from edgetun_core.fleet_identity import inner_name
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.snapshot import Snapshot
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.control.wiring import follow_control
from edgetun_exitnode.front.context import FrontLimits
from edgetun_exitnode.mesh.mesh import Mesh
from edgetun_exitnode.node import ExitNode, NodeLimits
from edgetun_exitnode.settings import ExitNodeSettings
from support.following import TOKEN, Control, Published
from support.visitors import Visitor
from support.waiting import eventually
from support.whole import HOST, TUNNEL, credential

ADDRESS = "127.0.0.1"


class Reached(Protocol):
    """An exit node, as agents reach it."""

    endpoint: Endpoint


class MeshNode:
    """One exit node, wired as its process wires it."""

    def __init__(self, name: str, control: Control, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(TOKEN)
        (folder / "ca.pem").write_bytes(control.ca.ca_pem)
        self.name = f"pool/here/{name}"
        self.settings = ExitNodeSettings(
            state=folder / "state",
            control=control.url,
            control_ca=folder / "ca.pem",
            control_token_file=folder / "token",
            pool="pool",
            region="here",
            name=name,
            listen=ADDRESS,
            relay_host=ADDRESS,
            relay_port=0,
            quic_engine="none",
        )
        # All visitors of a test come from one address.
        self.node = ExitNode(name, limits=NodeLimits(FrontLimits(max_connections_per_address=0)))
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.http = (await self.node.listen_http(ADDRESS, 0)).port
        self._task = await follow_control(self.node, self.settings, 0)
        await eventually(lambda: self.node.mesh is not None and bool(self.node.listeners))
        port = self.node.listeners[0].port
        self.endpoint = Endpoint(ADDRESS, port, 0, self.settings.name, inner_name("pool", "here"))

    @property
    def mesh(self) -> Mesh:
        assert self.node.mesh is not None
        return self.node.mesh

    def holders(self) -> list[str]:
        return self.mesh.holders.holders(TUNNEL, self.mesh.clock())

    @property
    def relayed(self) -> int:
        return sum(plan.counters.relayed for plan in self.node.router.table.plans.values())

    @property
    def is_ready(self) -> bool:
        return self.node.readiness()[0]

    async def stop_following(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def drain(self, deadline_s: float = 10.0) -> None:
        await self.node.drain(deadline_s)
        await self.stop_following()

    async def kill(self) -> None:
        """Gone without a word: no goodbye to anybody, every socket reset."""
        await self.stop_following()
        for runner in [*self.node.acceptor.runners, *self.mesh._by_runner]:
            if runner.link is not None:
                runner.link.abort()
        fronts = list(self.node.fronts)
        await self.node.close()
        for _ in range(3):  # some were just being accepted
            for front in fronts:
                for connection in list(front.connections):
                    connection.transport.abort()
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.stop_following()
        await self.node.close()


class Meshed:
    """What a test holds. Nodes are n1, n2 ... in the order in which they came."""

    def __init__(self, control: Control, folder: Path, stack: AsyncExitStack) -> None:
        self.control = control
        self.nodes: list[MeshNode] = []
        self._folder = folder
        self._stack = stack
        self._numbers = itertools.count(1)

    async def node(self, control: Control | None = None) -> MeshNode:
        name = f"n{next(self._numbers)}"
        node = MeshNode(name, control or self.control, self._folder / name)
        self._stack.push_async_callback(node.close)
        await node.start()
        self.nodes.append(node)
        return node

    async def publish(self, obey: Snapshot) -> None:
        self.control.publish(msgspec.structs.replace(obey, version=self.control.published.present.version + 1))
        wanted = snapshot_digest(self.control.published.region_snapshot("pool", "here"))
        await eventually(
            lambda: all(
                one.node.snapshot is not None and snapshot_digest(one.node.snapshot) == wanted for one in self.nodes
            )
        )

    async def agent(
        self,
        *nodes: Reached,
        agent_id: str = "laptop",
        sessions: int | None = None,
        weight: int = 1,
        standby: bool = False,
    ) -> Agent:
        """An agent with a session to each of these nodes."""
        origins = Origins(self.control.published.present.tunnels, probe=False)
        agent = Agent(
            endpoints=[node.endpoint for node in nodes],
            trust=Trust(self.control.ca.ca_pem),
            hello=lambda session_id: Hello(
                agent_id=agent_id,
                session_id=session_id,
                credential=credential(agent_id),
                services=(TUNNEL,),
                weight=weight,
                standby=standby,
            ),
            handler=origins,
            transport="tls",
            sessions=sessions or len(nodes),
        )
        self._stack.push_async_callback(origins.close)
        self._stack.push_async_callback(agent.close)
        agent.start()
        wanted = sessions or len(nodes)
        await eventually(lambda: len(agent.sessions) == wanted, 30)
        return agent

    async def visitor(self, node: MeshNode) -> Visitor:
        visitor = await Visitor.to(node.http)
        self._stack.push_async_callback(visitor.close)
        return visitor

    async def status(self, node: MeshNode, path: str = "/") -> int:
        visitor = await Visitor.to(node.http)
        try:
            return (await visitor.ask(path, host=HOST)).status
        finally:
            await visitor.close()


@asynccontextmanager
async def meshed(folder: Path, obey: Snapshot, nodes: int) -> AsyncIterator[Meshed]:
    """Starts control and nodes, and waits until all obey."""
    ca = DevelopmentCA(folder / "ca")
    assert ca.ca_pem
    control = Control(ca, folder, Published(obey))
    async with AsyncExitStack() as stack:
        await control.start()
        stack.push_async_callback(control.stop)
        scene = Meshed(control, folder, stack)
        for _ in range(nodes):
            await scene.node()
        await eventually(lambda: all(one.node.snapshot is not None for one in scene.nodes))
        await eventually(lambda: all(one.is_ready for one in scene.nodes))
        await eventually(lambda: all(len(one.mesh.holders.peers) == nodes - 1 for one in scene.nodes))
        yield scene
    # Thousands of visitors were dropped in one turn of the loop: their sockets are closed in the next ones.
    await eventually(lambda: all(one.node.context.counters.connections_open == 0 for one in scene.nodes))
    await asyncio.sleep(0.1)

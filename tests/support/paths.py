"""An exit node and agents of one tunnel, each on a path of its own that the test spoils."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.enrollment import Endpoint
from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import Snapshot
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.node import ExitNode
from support.visitors import Visitor
from support.whole import TUNNEL, credential


class Site:
    """A node on real sockets, and what was started at it."""

    def __init__(self, node: ExitNode, port: int, ca: DevelopmentCA, tls_port: int, quic_port: int) -> None:
        self.node = node
        self.port = port
        self.ca = ca
        self.tls_port = tls_port
        self.quic_port = quic_port
        self._agents: list[tuple[Agent, Origins]] = []

    def agent(
        self, obey: Snapshot, *, tls_port: int = 0, quic_port: int = 0, agent_id: str = "laptop", **options: Any
    ) -> Agent:
        """An agent on its own way to the node; started. A port of 0 says that it is not offered."""
        origins = Origins(obey.tunnels, probe=False)
        said = {name: options.pop(name) for name in ("weight", "standby") if name in options}
        agent = Agent(
            endpoints=[Endpoint("127.0.0.1", tls_port, quic_port, node="n1")],
            trust=self.ca.trust,
            hello=lambda session_id: Hello(
                agent_id=agent_id,
                session_id=session_id,
                credential=credential(agent_id),
                services=(TUNNEL,),
                **said,
            ),
            handler=origins,
            **{"sessions": 1} | options,
        )
        self._agents.append((agent, origins))
        agent.start()
        return agent

    async def visitor(self) -> Visitor:
        visitor = await Visitor.to(self.port)
        visitor.timeout_s = 20.0
        return visitor

    async def close(self) -> None:
        for agent, origins in self._agents:
            await agent.close()
            await origins.close()
        await self.node.close()


@asynccontextmanager
async def site(folder: Path, obey: Snapshot | None, *, quic_engine: str = "qh3") -> AsyncIterator[Site]:
    """A node that obeys (None: that has no snapshot yet); what was started at it ends with it."""
    node = ExitNode("n1")
    if obey is not None:
        node.apply(obey)
    ca = DevelopmentCA(folder / "ca")
    made: Site | None = None
    try:
        front = await node.listen_http("127.0.0.1", 0)
        ports = await node.listen_tunnel("127.0.0.1", 0, ca.identity(["127.0.0.1"]), quic_engine=quic_engine)
        made = Site(node, front.port, ca, *ports)
        yield made
    finally:
        await (made.close() if made is not None else node.close())

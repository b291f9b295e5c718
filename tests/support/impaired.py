"""A whole tunnel whose sessions cross a bad network: a real exit node and agent, and between them a UDP and a TCP path."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from edgetun_agent.connect import Agent
from edgetun_agent.race import Wanted
from edgetun_agent.serve import Origins
from edgetun_core.enrollment import Endpoint
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.snapshot import Snapshot
from edgetun_core.transport.link import Link
from edgetun_core.wire.hello import Hello, Refusal, Welcome
from edgetun_exitnode.node import ExitNode
from support.impairment.tcp_path import TcpPath, tcp_path
from support.impairment.udp_path import UdpPath, udp_path
from support.visitors import Visitor, until
from support.whole import TUNNEL, credential

PING_S = 0.1
DEAD_AFTER_S = 1.5
"""Clocks of sessions in fault tests: long enough for a machine with other work, short enough to wait for."""


class Impaired:
    """What a test holds."""

    def __init__(self, node: ExitNode, port: int, agent: Agent, origins: Origins, udp: UdpPath, tcp: TcpPath) -> None:
        self.node = node
        self.port = port
        self.agent = agent
        self.origins = origins
        self.udp = udp
        """The way of QUIC."""
        self.tcp = tcp
        """The way of TLS."""

    async def visitor(self) -> Visitor:
        visitor = await Visitor.to(self.port)
        visitor.timeout_s = 20.0
        return visitor

    @property
    def transports(self) -> list[str]:
        """Of the sessions that the exit node holds."""
        return [runner.transport for runner in self.node.acceptor.runners]

    async def stands_on(self, transport: str, sessions: int = 1, timeout_s: float = 30.0) -> None:
        """Returns when every session that takes requests, at both ends, is on a transport."""

        def does() -> bool:
            views = [view.transport for view in self.agent.sessions if not view.is_draining]
            return views == self.transports == [transport] * sessions

        await until(does, timeout_s)


def shorten(node: ExitNode, ping_s: float = PING_S, dead_after_s: float = DEAD_AFTER_S) -> None:
    """Welcomes of this exit node have these clocks."""
    decide = node.acceptor.decide

    def hurried(hello: Hello, link: Link) -> Welcome | Refusal:
        answer = decide(hello, link)
        if isinstance(answer, Refusal):
            return answer
        return msgspec.structs.replace(answer, ping_interval_s=ping_s, dead_after_s=dead_after_s)

    node.acceptor.decide = hurried  # type: ignore[method-assign]


@asynccontextmanager
async def impaired(
    folder: Path,
    obey: Snapshot,
    *,
    transport: Wanted = "auto",
    quic_engine: str = "qh3",
    sessions: int = 1,
    ping_s: float = PING_S,
    dead_after_s: float = DEAD_AFTER_S,
    before: Callable[[UdpPath, TcpPath], None] = lambda udp, tcp: None,
) -> AsyncIterator[Impaired]:
    """Starts everything and waits for the sessions; `before` makes the weather in which the agent begins."""
    node = ExitNode("n1")
    shorten(node, ping_s, dead_after_s)
    node.apply(obey)
    origins = Origins(obey.tunnels, probe=False)
    ca = DevelopmentCA(folder / "ca")
    try:
        front = await node.listen_http("127.0.0.1", 0)
        tls_port, quic_port = await node.listen_tunnel(
            "127.0.0.1", 0, ca.identity(["127.0.0.1"]), quic_engine=quic_engine
        )
        async with udp_path(quic_port) as udp, tcp_path(tls_port) as tcp:
            before(udp, tcp)
            agent = Agent(
                endpoints=[Endpoint("127.0.0.1", tcp.port, udp.port, node="n1")],
                trust=Trust(ca.ca_pem),
                hello=lambda session_id: Hello(
                    agent_id="laptop", session_id=session_id, credential=credential(), services=(TUNNEL,)
                ),
                handler=origins,
                transport=transport,
                quic_engine=quic_engine,
                sessions=sessions,
            )
            try:
                agent.start()
                await until(lambda: len(node.acceptor.runners) == sessions == len(agent.sessions), 30.0)
                yield Impaired(node, front.port, agent, origins, udp, tcp)
            finally:
                await agent.close()
    finally:
        await node.close()
        await origins.close()

"""The whole of it in one event loop: a real exit node, a real agent on a real transport, a scripted origin."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.credentials import SigningKey
from edgetun_core.enrollment import Endpoint
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.snapshot import CacheRule, CollapseRule, OriginRule, RouteRule, Snapshot, TunnelRule
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.node import ExitNode, NodeLimits
from support.visitors import Visitor, until

HOST = "shop.test"
TUNNEL = "team/shop"
KEY = SigningKey("k1", bytes(32))
IN_PROCESS = "in-process"


class _Local:
    """The origin without a session between, as `edgetun http` has it."""

    def __init__(self, origins: Origins) -> None:
        self.open = origins.open
        self.in_flight = 0


class Whole:
    """What a test holds."""

    def __init__(self, node: ExitNode, port: int, origins: Origins, agent: Agent | None) -> None:
        self.node = node
        self.port = port
        self.origins = origins
        self.agent = agent

    async def visitor(self) -> Visitor:
        return await Visitor.to(self.port)


def credential(agent_id: str = "laptop", token_id: str = "t1", services: tuple[str, ...] = (TUNNEL,)) -> str:
    return KEY.sign(agent_id=agent_id, token_id=token_id, services=services, now=time.time())


def snapshot(url: str, *, version: int = 1, revoked: tuple[str, ...] = (), **route: object) -> Snapshot:
    """One tunnel to `url`; `route` are fields of its only `RouteRule`. Nothing is cached unless the route says so."""
    rules = {"cache": CacheRule(mode="off"), "collapse": CollapseRule(enabled=False)} | route
    origin = OriginRule("main", url, response_timeout_s=float(rules.pop("response_timeout_s", 10.0)))  # type: ignore[arg-type]
    tunnel = TunnelRule(TUNNEL, (HOST,), (origin,), (RouteRule(**rules),), reconnect_grace_s=2.0)  # type: ignore[arg-type]
    return Snapshot(version, "pool", "here", (tunnel,), (KEY.public,), revoked)


@asynccontextmanager
async def whole(
    folder: Path,
    engine: str,
    obey: Snapshot,
    *,
    agent_id: str = "laptop",
    credential_of: Callable[[], str] = credential,
    sessions: int = 2,
    limits: NodeLimits | None = None,
) -> AsyncIterator[Whole]:
    """Starts everything and waits until the tunnel stands; ends all of it."""
    node = ExitNode("n1", limits=limits)
    node.apply(obey)
    origins = Origins(obey.tunnels, probe=False)
    agent: Agent | None = None
    try:
        front = await node.listen_http("127.0.0.1", 0)
        if engine == IN_PROCESS:
            node.registry.add(_Local(origins), [TUNNEL])
        else:
            ca = DevelopmentCA(folder / "ca")
            identity = ca.identity(["127.0.0.1"])
            quic_engine = engine if engine != "tls" else "none"
            tls_port, quic_port = await node.listen_tunnel("127.0.0.1", 0, identity, quic_engine=quic_engine)
            agent = Agent(
                endpoints=[Endpoint("127.0.0.1", tls_port, quic_port, node="n1")],
                trust=Trust(ca.ca_pem),
                hello=lambda session_id: Hello(
                    agent_id=agent_id, session_id=session_id, credential=credential_of(), services=(TUNNEL,)
                ),
                handler=origins,
                transport="tls" if engine == "tls" else "quic",
                quic_engine=engine if engine != "tls" else "qh3",
                sessions=sessions,
            )
            agent.start()
            await until(lambda: len(node.acceptor.runners) == sessions, 10.0)
        yield Whole(node, front.port, origins, agent)
    finally:
        if agent is not None:
            await agent.close()
        await node.close()
        await origins.close()

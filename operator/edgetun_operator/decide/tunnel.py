"""How a Tunnel stands: accepted or not and why, whether its pool serves, and whether an agent is connected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from edgetun_core.api.conditions import Condition, ConditionType, Reason, Verdict, find_condition
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.problem import Problem
from edgetun_operator.decide.conditions import decide_accepted


class PoolSeen(NamedTuple):
    """The tunnel's pool: what it says, and how it stands."""

    resource: ExitPool
    conditions: Sequence[Condition]
    available: int


class AgentSeen(NamedTuple):
    """An agent that serves the tunnel."""

    is_connected: bool
    transport: str


MOST_NODES_TOLD: Final = 3
_NO_CERTIFICATE = Verdict("True", Reason.CERTIFICATE_VALID, "TCP and UDP need none of the pool's certificates")


def decide_tunnel_verdicts(
    problems: Sequence[Problem],
    served: Sequence[str],
    pool: PoolSeen | None,
    agents: Sequence[AgentSeen],
    grace: str = "",
    *,
    is_stream: bool = False,
    port: str = "",
    ports_unavailable: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Verdict]:
    """The tunnel's conditions, in the order in which a person mends them. `is_stream`: it carries TCP or UDP.

    `port` is the one that it wants (`tcp/5432`), `ports_unavailable` the exit nodes that cannot listen on it, as its status has them.
    """
    accepted = decide_accepted(problems, served=bool(served))
    verdicts = {
        ConditionType.ACCEPTED: accepted,
        ConditionType.POOL_READY: _decide_pool(pool),
        ConditionType.CERTIFICATE_READY: _NO_CERTIFICATE if is_stream else _decide_certificate(pool),
    }
    if port:
        verdicts[ConditionType.PORT_AVAILABLE] = _decide_port(port, ports_unavailable)
    verdicts[ConditionType.AGENT_CONNECTED] = _decide_agents(agents, grace)
    if accepted.status != "True":
        # What is not obeyed has no agent to wait for.
        verdicts[ConditionType.AGENT_CONNECTED] = Verdict("Unknown", Reason.PENDING, "the tunnel is not accepted")
    return verdicts


def _decide_pool(pool: PoolSeen | None) -> Verdict:
    if pool is None:
        return Verdict("False", Reason.POOL_NOT_FOUND, "there is no such ExitPool")
    ref = pool.resource.ref
    accepted = find_condition(pool.conditions, ConditionType.ACCEPTED)
    if pool.available > 0:
        return Verdict("True", Reason.POOL_READY)
    if accepted is not None and accepted.status == "False":
        return Verdict("False", Reason.POOL_NOT_READY, f"{ref} is not accepted: {accepted.message}")
    nodes = find_condition(pool.conditions, ConditionType.NODES_AVAILABLE)
    why = nodes.message if nodes is not None and nodes.message else "no exit node serves yet"
    return Verdict("False", Reason.POOL_NOT_READY, f"{ref}: {why}")


def _decide_certificate(pool: PoolSeen | None) -> Verdict:
    """Certificates are the pool's; its tunnels repeat what is wrong with them."""
    found = find_condition(pool.conditions, ConditionType.CERTIFICATE_READY) if pool is not None else None
    if pool is None or found is None:
        return Verdict("Unknown", Reason.PENDING, "the pool has not been looked at yet")
    if found.status == "True":
        return Verdict("True", found.reason)
    return Verdict(found.status, found.reason, f"{pool.resource.ref}: {found.message}")


def _decide_port(port: str, unavailable: Sequence[Mapping[str, Any]]) -> Verdict:
    if not unavailable:
        return Verdict("True", Reason.PORT_AVAILABLE)
    told = [f"exit node {one.get('node')}: {one.get('message')}" for one in unavailable[:MOST_NODES_TOLD]]
    more = f"; and {len(unavailable) - len(told)} more" if len(unavailable) > len(told) else ""
    remedy = "end the program that has it there, or choose another port"
    return Verdict("False", Reason.PORT_UNAVAILABLE, f"{port} cannot be had at {'; '.join(told)}{more}; {remedy}")


def _decide_agents(agents: Sequence[AgentSeen], hint: str) -> Verdict:
    if any(agent.is_connected for agent in agents):
        return Verdict("True", Reason.AGENT_CONNECTED)
    return Verdict("False", Reason.NO_AGENT_CONNECTED, hint or "no agent is connected")


def build_tunnel_facts(
    tunnel: Tunnel, served: Sequence[str], pool: PoolSeen | None, agents: Sequence[AgentSeen]
) -> dict[str, Any]:
    """The status without its conditions."""
    connected = [agent for agent in agents if agent.is_connected]
    transports = sorted({part for agent in connected for part in agent.transport.split(",") if part})
    port = next((name for name in served if "/" in name), "")
    return {
        "hostnames": [name for name in served if name != port],
        "port": port,
        "regions": list(_regions(tunnel, pool)) if served else [],
        "url": _url(tunnel, served),
        "agents": len(connected),
        "transport": ",".join(transports),
    }


def _regions(tunnel: Tunnel, pool: PoolSeen | None) -> list[str]:
    if pool is None:
        return []
    policy = tunnel.spec.pool.regions
    names = [region.name for region in pool.resource.spec.regions]
    return sorted(name for name in names if name not in policy.deny and (not policy.allow or name in policy.allow))


def _url(tunnel: Tunnel, served: Sequence[str]) -> str:
    if tunnel.spec.tcp is not None:
        first = next((name for name in served if not name.startswith("*.") and "/" not in name), "")
        return f"tcp://{first}:443" if first else ""
    first = next((name for name in served if not name.startswith("*.") and "/" not in name), "")
    return f"https://{first}/" if first else ""


def agent_seen(status: Mapping[str, Any]) -> AgentSeen:
    """An agent by its status: connected when it holds a session, or when its condition says so."""
    said = next(
        (c.get("status") for c in status.get("conditions") or () if c.get("type") == ConditionType.AGENT_CONNECTED),
        None,
    )
    is_connected = said == "True" if said is not None else int(status.get("sessions") or 0) > 0
    return AgentSeen(is_connected, str(status.get("transport") or ""))

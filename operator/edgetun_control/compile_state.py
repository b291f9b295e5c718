"""A store's state to the tunnels that are served: manifests first, then the ad-hoc tunnels of tokens that still count. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from pydantic import ValidationError

from edgetun_control.adhoc import build_adhoc_tunnel
from edgetun_control.registry import adhoc_tunnel_id
from edgetun_control.store import Claim, StoreState
from edgetun_core.api.exitpool import ExitPool, ExitPoolSpec, Region
from edgetun_core.api.meta import Metadata, Resource
from edgetun_core.api.streams import every_port
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.compile import Plan
from edgetun_core.credentials import TokenState
from edgetun_core.snapshot import PoolRule, TunnelRule


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a state comes to. `problems` are lines for the person who keeps the server."""

    tunnels: tuple[TunnelRule, ...] = ()
    pool_rule: PoolRule = PoolRule()
    manifest_tunnels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    problem_by_tunnel: dict[str, str] = field(default_factory=dict)


def compile_state(state: StoreState, pool: str, region: str, now: float) -> Compiled:
    """Everything that the server's one region serves.

    Manifests come before claims, so that a hostname in both is the administrator's. Claims of tokens that ended serve nothing,
    and keep their names.
    """
    loaded = state.manifests
    resources: list[Resource] = list(loaded.resources)
    if not any(isinstance(resource, ExitPool) and resource.id == pool for resource in resources):
        resources.append(_build_pool(pool, region))
    manifest_ids = {resource.id for resource in resources if isinstance(resource, Tunnel)}
    problems = [problem.render() for problem in loaded.problems]
    for claim in state.claims.values():
        token = state.tokens.get(claim.token_id)
        is_live = token is not None and token.state(now) is TokenState.LIVE
        if not is_live or adhoc_tunnel_id(claim) in manifest_ids:
            continue
        try:
            resources.append(_build_once(claim, pool))
        except ValidationError as error:
            problems.append(f"claimed/{claim.hostname}.json: {error.error_count()} fields are wrong; remove the file")
    plan = Plan(resources)
    by_tunnel: dict[str, str] = {}
    for problem in plan.problems:
        placed = loaded.place(problem)
        problems.append(placed.render())
        if problem.severity == "error":
            by_tunnel.setdefault(problem.resource.removeprefix("Tunnel "), problem.message)
    snapshot = plan.everything(pool, region, 0)
    return Compiled(
        tunnels=snapshot.tunnels,
        pool_rule=snapshot.pool_rule,
        manifest_tunnels={rule.id: rule.address_names for rule in snapshot.tunnels if rule.id in manifest_ids},
        problems=tuple(problems),
        problem_by_tunnel=by_tunnel,
    )


def _build_pool(name: str, region: str) -> ExitPool:
    """A server without an ExitPool of its own serves any hostname and port; tokens and their patterns bound what agents may claim."""
    spec = ExitPoolSpec.model_construct(regions=[Region(name=region)], domains=["*"], ports=every_port())
    return ExitPool.model_construct(metadata=Metadata(name=name), spec=spec)


@lru_cache(maxsize=4096)
def _build_once(claim: Claim, pool: str) -> Tunnel:
    """Claims change rarely and are compiled often."""
    return build_adhoc_tunnel(claim, pool)

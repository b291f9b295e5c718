"""The local copy of everything that the operator looks at, with the indexes that keep one change's cost independent of how many there are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from edgetun_cluster.client import Cluster
from edgetun_cluster.informer import Change, Informer, without_managed_fields
from edgetun_cluster.kinds import (
    AGENT,
    AGENT_TOKEN,
    CERTIFICATE,
    CONFIG_MAP,
    DEPLOYMENT,
    EXIT_POOL,
    HORIZONTAL_POD_AUTOSCALER,
    HOSTNAME_RESERVATION,
    NAMESPACE,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    TUNNEL,
    Key,
    Kind,
    Object,
    key_of,
)
from edgetun_cluster.reading import compact_status, is_same_spec, read_resource
from edgetun_core.api.agent import Agent
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.load import AnyResource
from edgetun_core.api.reservation import HostnameReservation
from edgetun_core.api.token import AgentToken
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.claims import Claims
from edgetun_core.problem import Problem
from edgetun_operator.desired.labels import OURS, POOL, TOKEN

log = logging.getLogger(__name__)

R = TypeVar("R", bound=AnyResource)

OWNED_KINDS: Final = (
    SERVICE_ACCOUNT,
    CONFIG_MAP,
    NETWORK_POLICY,
    SERVICE,
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    POD_DISRUPTION_BUDGET,
    CERTIFICATE,
)
"""Kinds of the objects that an ExitPool owns."""

_READ: Final = ("name", "namespace", "creationTimestamp", "uid", "generation")
"""What the models are given of the metadata. Labels and annotations of ten thousand tunnels would be kept for nothing."""
_KEPT: Final = ("name", "namespace", "uid", "resourceVersion", "generation", "deletionTimestamp")


class Seen(NamedTuple, Generic[R]):
    """A resource as it stands: of its metadata who it is, its status as it is, and what its spec says, when that can be read."""

    metadata: Object
    resource: R | None
    problems: tuple[Problem, ...]
    status: Mapping[str, Any]

    @property
    def key(self) -> Key:
        return Key(self.metadata.get("namespace", ""), self.metadata["name"])

    @property
    def uid(self) -> str:
        return str(self.metadata["uid"])

    @property
    def generation(self) -> int:
        return int(self.metadata.get("generation") or 0)

    @property
    def is_leaving(self) -> bool:
        """Whether it is being deleted."""
        return bool(self.metadata.get("deletionTimestamp"))


def see(kind: Kind, obj: Object) -> Seen[Any]:
    """Reads a resource of ours. Never raises for what stands in it."""
    resource, problems = read_resource(kind, obj, _READ)
    return Seen(_who(obj), resource, problems, compact_status(obj))


def see_again(kind: Kind, obj: Object, before: Seen[Any]) -> Seen[Any]:
    """The same of a resource that was read before. Mostly it is its status that has changed."""
    if not is_same_spec(obj, before.uid, before.generation):
        return see(kind, obj)
    return Seen(_who(obj), before.resource, before.problems, compact_status(obj))


def _who(obj: Object) -> Object:
    return {name: obj["metadata"][name] for name in _KEPT if name in obj["metadata"]}


def _without_private_keys(obj: Object) -> Object:
    """A Secret with what we look at: our own system's whole, certificates of others without their keys, else nothing."""
    obj = without_managed_fields(obj)
    data = obj.get("data") or {}
    name = obj["metadata"]["name"]
    if not name.startswith("edgetun-"):
        obj["data"] = {key: value for key, value in data.items() if key == "tls.crt"}
    obj.pop("stringData", None)
    return obj


class World:
    """All informers. `start`, then `synced`; `close` at the end."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.namespace = namespace
        self.pools: Informer[Seen[ExitPool]] = _following(cluster, EXIT_POOL)
        self.tunnels: Informer[Seen[Tunnel]] = _following(cluster, TUNNEL)
        self.tokens: Informer[Seen[AgentToken]] = _following(cluster, AGENT_TOKEN)
        self.agents: Informer[Seen[Agent]] = _following(cluster, AGENT)
        self.reservations: Informer[Seen[HostnameReservation]] = _following(cluster, HOSTNAME_RESERVATION)
        self.namespaces: Informer[Mapping[str, str]] = Informer(
            cluster, NAMESPACE, parse=lambda obj: dict(obj["metadata"].get("labels") or {})
        )
        self.owned: dict[Kind, Informer[Object]] = {
            kind: Informer(cluster, kind, namespace=namespace, label_selector=OURS) for kind in OWNED_KINDS
        }
        self.secrets: Informer[Object] = Informer(cluster, SECRET, namespace=namespace, parse=_without_private_keys)
        self.token_secrets: Informer[Object] = Informer(cluster, SECRET, label_selector=TOKEN)
        self.claims = Claims(namespaces={}, system_namespace=namespace)
        self.tunnels_by_pool: dict[str, set[Key]] = {}
        self.agents_by_tunnel: dict[Key, set[Key]] = {}
        self.agents_by_token: dict[Key, set[Key]] = {}
        self.sessions: dict[tuple[str, str], int] = {}
        """By pool and region: sessions of agents, as control tells them."""
        self._affected: Callable[[set[str]], None] = lambda _: None
        self.tunnels.on_change(self._index_tunnel)
        self.agents.on_change(self._index_agent)
        self.pools.on_change(self._index_pool)
        self.reservations.on_change(self._index_reservation)
        self.namespaces.on_change(self._index_namespace)

    def on_claims(self, affected: Callable[[set[str]], None]) -> None:
        """Calls `affected` with the ids of the tunnels whose verdict may have changed."""
        self._affected = affected

    @property
    def informers(self) -> tuple[Informer[Any], ...]:
        return (
            self.pools,
            self.tunnels,
            self.tokens,
            self.agents,
            self.reservations,
            self.namespaces,
            *self.owned.values(),
            self.secrets,
            self.token_secrets,
        )

    def start(self) -> None:
        for informer in self.informers:
            informer.start()

    async def synced(self) -> None:
        """Returns when every copy is whole, however long that takes; says what it waits for."""
        for informer in self.informers:
            while not informer.is_synced:
                try:
                    await informer.synced(30.0)
                except Exception as error:  # noqa: BLE001 - whatever keeps it from us, there is nothing to do but wait
                    log.warning("waiting for %s: %s", informer.kind.plural, error)

    async def close(self) -> None:
        await asyncio.gather(*(informer.close() for informer in self.informers))

    # ---- looking

    def owned_by_pool(self, kind: Kind, pool: str) -> list[Object]:
        """Our objects of one kind for a pool."""
        return [obj for obj in self.owned[kind] if (obj["metadata"].get("labels") or {}).get(POOL) == pool]

    # ---- indexes

    def _index_tunnel(self, change: Change[Seen[Tunnel]]) -> None:
        for pool in _pool_of(change.old):
            _discard(self.tunnels_by_pool, pool, change.key)
        for pool in _pool_of(change.new):
            self.tunnels_by_pool.setdefault(pool, set()).add(change.key)
        if change.old is not None and change.new is not None and change.old.generation == change.new.generation:
            return  # only its status or its labels: no claim has changed
        if change.new is not None and change.new.resource is not None:
            self._affected(self.claims.put_tunnel(change.new.resource))
        else:
            self._affected(self.claims.drop_tunnel(str(change.key)))

    def _index_pool(self, change: Change[Seen[ExitPool]]) -> None:
        if change.old is not None and change.new is not None and change.old.generation == change.new.generation:
            return
        if change.new is not None and change.new.resource is not None:
            self._affected(self.claims.put_pool(change.new.resource))
        else:
            self._affected(self.claims.drop_pool(change.key.name))

    def _index_reservation(self, change: Change[Seen[HostnameReservation]]) -> None:
        if change.old is not None and change.new is not None and change.old.resource is change.new.resource:
            return  # only its status or its labels
        if change.new is not None and change.new.resource is not None:
            self._affected(self.claims.put_reservation(change.new.resource))
        elif change.old is not None and change.old.resource is not None:
            self._affected(self.claims.drop_reservation(change.old.resource.spec.hostname))

    def _index_namespace(self, change: Change[Mapping[str, str]]) -> None:
        self._affected(self.claims.put_namespace(change.key.name, change.new or {}))

    def _index_agent(self, change: Change[Seen[Agent]]) -> None:
        for tunnel in tunnels_of(change.old):
            _discard(self.agents_by_tunnel, tunnel, change.key)
        for tunnel in tunnels_of(change.new):
            self.agents_by_tunnel.setdefault(tunnel, set()).add(change.key)
        for token in token_of(change.old):
            _discard(self.agents_by_token, token, change.key)
        for token in token_of(change.new):
            self.agents_by_token.setdefault(token, set()).add(change.key)
        for seen, sign in ((change.old, -1), (change.new, 1)):
            if seen is not None and seen.status.get("sessions"):
                place = (str(seen.status.get("pool", "")), str(seen.status.get("region", "")))
                self.sessions[place] = self.sessions.get(place, 0) + sign * int(seen.status["sessions"])


def _following(cluster: Cluster, kind: Kind) -> Informer[Seen[Any]]:
    return Informer(cluster, kind, parse=partial(see, kind), parse_again=partial(see_again, kind))


def hostnames_of(seen: Seen[Tunnel] | None) -> tuple[str, ...]:
    """Hostnames that a tunnel asks for."""
    return tuple(seen.resource.spec.hostnames) if seen is not None and seen.resource is not None else ()


def tunnels_of(seen: Seen[Agent] | None) -> Iterator[Key]:
    """Tunnels that an agent serves."""
    if seen is not None and seen.resource is not None:
        for name in seen.resource.spec.tunnels:
            namespace, slash, rest = name.partition("/")
            yield Key(namespace, rest) if slash else Key(seen.key.namespace, name)


def token_of(seen: Seen[Agent] | None) -> Iterator[Key]:
    """The AgentToken that an agent registered with."""
    if seen is not None and seen.resource is not None:
        yield Key(seen.key.namespace, seen.resource.spec.token)


def _pool_of(seen: Seen[Tunnel] | None) -> Iterator[str]:
    if seen is not None and seen.resource is not None:
        yield seen.resource.spec.pool.name


def _discard(index: dict[Any, set[Key]], at: Any, key: Key) -> None:
    with contextlib.suppress(KeyError):
        index[at].discard(key)
        if not index[at]:
            del index[at]


__all__ = ["OWNED_KINDS", "Seen", "World", "hostnames_of", "key_of", "see"]

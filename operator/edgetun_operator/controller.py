"""What to look at when something changes, and who looks at it. Everything here happens in memory; reconciling asks the API server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetun_cluster.informer import Change
from edgetun_cluster.kinds import Key, Object
from edgetun_cluster.system_secrets import CA_SECRET, CONTROL_TLS_SECRET, SIGNING_KEYS_SECRET
from edgetun_core.api.agent import Agent
from edgetun_core.api.conditions import ConditionType
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.reservation import HostnameReservation
from edgetun_core.api.token import AgentToken
from edgetun_core.api.tunnel import Tunnel
from edgetun_operator.decide.conditions import conditions_of
from edgetun_operator.decide.tunnel import agent_seen
from edgetun_operator.desired.certificates import certificate_sources
from edgetun_operator.desired.labels import POOL
from edgetun_operator.reconcile.agenttoken import TokenReconciler
from edgetun_operator.reconcile.exitpool import PoolReconciler
from edgetun_operator.reconcile.reservation import ReservationReconciler
from edgetun_operator.reconcile.system import SystemReconciler
from edgetun_operator.reconcile.tunnel import TunnelReconciler
from edgetun_operator.work import Item, WorkQueue
from edgetun_operator.world import Seen, World, hostnames_of, token_of, tunnels_of

SYSTEM = Item("System", Key("", "system"))
NUMBERS_DELAY_S = 2.0
"""Numbers in a status (sessions, tunnels) may be this late, so that a crowd of agents is one write and not a thousand."""


class Controller:
    """Turns changes into items of the queue, and items into calls of the reconcilers."""

    def __init__(
        self,
        world: World,
        queue: WorkQueue,
        system: SystemReconciler,
        pools: PoolReconciler,
        tunnels: TunnelReconciler,
        tokens: TokenReconciler,
        reservations: ReservationReconciler,
    ) -> None:
        self._world = world
        self._queue = queue
        self._system = system
        self._pools = pools
        self._tunnels = tunnels
        self._tokens = tokens
        self._reservations = reservations

    def start(self) -> None:
        """Follows every change from now on, and asks for everything that there is."""
        world = self._world
        world.on_claims(self._claims_changed)
        world.pools.on_change(self._pool_changed)
        world.tunnels.on_change(self._tunnel_changed)
        world.tokens.on_change(self._token_changed)
        world.agents.on_change(self._agent_changed)
        world.reservations.on_change(self._reservation_changed)
        world.secrets.on_change(self._secret_changed)
        world.token_secrets.on_change(self._token_secret_changed)
        for informer in world.owned.values():
            informer.on_change(self._owned_changed)
        self._queue.add(SYSTEM)
        for key in world.pools.store:
            self._queue.add(Item("ExitPool", key))
        for key in world.tokens.store:
            self._queue.add(Item("AgentToken", key))
        for key in world.tunnels.store:
            self._queue.add(Item("Tunnel", key))
        for key in world.reservations.store:
            self._queue.add(Item("HostnameReservation", key))

    async def reconcile(self, item: Item) -> float | None:
        """Looks at one object; seconds after which it wants to be looked at again."""
        match item.kind:
            case "System":
                return await self._system.reconcile()
            case "ExitPool":
                return await self._pools.reconcile(item.key.name)
            case "Tunnel":
                await self._tunnels.reconcile(item.key)
            case "AgentToken":
                return await self._tokens.reconcile(item.key)
            case "HostnameReservation":
                await self._reservations.reconcile(item.key.name)
        return None

    def ca_changed(self) -> None:
        """Everything that carries the CA is looked at anew."""
        for key in self._world.pools.store:
            self._queue.add(Item("ExitPool", key))
        for key in self._world.tokens.store:
            self._queue.add(Item("AgentToken", key))

    # ---- changes

    def _pool_changed(self, change: Change[Seen[ExitPool]]) -> None:
        if change.new is not None and _is_new_work(change):
            self._queue.add(Item("ExitPool", change.key))
        if change.old is None or change.new is None or _readiness(change.old) != _readiness(change.new):
            for key in self._world.tunnels_by_pool.get(change.key.name, ()):
                self._queue.add(Item("Tunnel", key))

    def _tunnel_changed(self, change: Change[Seen[Tunnel]]) -> None:
        if not _is_new_work(change):
            return
        self._queue.add(Item("Tunnel", change.key))
        for seen in (change.old, change.new):
            for hostname in hostnames_of(seen):
                self._reservation_of(hostname)
            if seen is not None and seen.resource is not None:
                self._queue.add(Item("ExitPool", Key("", seen.resource.spec.pool.name)), NUMBERS_DELAY_S)

    def _token_changed(self, change: Change[Seen[AgentToken]]) -> None:
        if _is_new_work(change):
            self._queue.add(Item("AgentToken", change.key))

    def _agent_changed(self, change: Change[Seen[Agent]]) -> None:
        seen = (change.old, change.new)
        for tunnel in {key for each in seen for key in tunnels_of(each)}:
            self._queue.add(Item("Tunnel", tunnel))
        if change.old is not None and change.new is not None:
            before, after = agent_seen(change.old.status), agent_seen(change.new.status)
            if before == after and change.old.status.get("sessions") == change.new.status.get("sessions"):
                return
        for token in {key for each in seen for key in token_of(each)}:
            self._queue.add(Item("AgentToken", token), NUMBERS_DELAY_S)
        for pool in {str(each.status.get("pool", "")) for each in seen if each is not None} - {""}:
            self._queue.add(Item("ExitPool", Key("", pool)), NUMBERS_DELAY_S)

    def _reservation_changed(self, change: Change[Seen[HostnameReservation]]) -> None:
        if change.new is not None and _is_new_work(change):
            self._queue.add(Item("HostnameReservation", change.key))

    def _claims_changed(self, tunnel_ids: set[str]) -> None:
        for tunnel_id in tunnel_ids:
            namespace, _, name = tunnel_id.partition("/")
            self._queue.add(Item("Tunnel", Key(namespace, name)))
            for hostname in hostnames_of(self._world.tunnels.get(name, namespace)):
                self._reservation_of(hostname)

    def _reservation_of(self, hostname: str) -> None:
        reservation = self._world.claims.reservation(hostname)
        if reservation is not None:
            self._queue.add(Item("HostnameReservation", Key("", reservation.metadata.name)))

    def _secret_changed(self, change: Change[Object]) -> None:
        name = change.key.name
        if name in (CA_SECRET, SIGNING_KEYS_SECRET, CONTROL_TLS_SECRET):
            self._queue.add(SYSTEM)
            return
        for seen in self._world.pools:
            if seen.resource is not None and any(
                name == source.secret for source in certificate_sources(seen.resource)
            ):
                self._queue.add(Item("ExitPool", seen.key))

    def _token_secret_changed(self, change: Change[Object]) -> None:
        for obj in (change.old, change.new):
            for owner in (obj or {}).get("metadata", {}).get("ownerReferences") or ():
                if owner.get("kind") == "AgentToken":
                    self._queue.add(Item("AgentToken", Key(change.key.namespace, owner["name"])))

    def _owned_changed(self, change: Change[Object]) -> None:
        for obj in (change.old, change.new):
            labels: Mapping[str, str] = (obj or {}).get("metadata", {}).get("labels") or {}
            if POOL in labels:
                self._queue.add(Item("ExitPool", Key("", labels[POOL])))


def _is_new_work(change: Change[Any]) -> bool:
    """Whether a change may ask for something: not when all that is new is a status, which we wrote ourselves.

    A status that somebody else changed or emptied is new work, too, and so are labels and owners: hence the comparison by manager
    is left to the status writer, which writes nothing that stands already.
    """
    old, new = change.old, change.new
    if old is None or new is None:
        return True
    if old.generation != new.generation or old.is_leaving != new.is_leaving:
        return True
    return bool(old.status != new.status)


_TOLD_BY_TUNNELS = (ConditionType.ACCEPTED, ConditionType.NODES_AVAILABLE, ConditionType.CERTIFICATE_READY)


def _readiness(seen: Seen[ExitPool]) -> tuple[Any, ...]:
    """What tunnels tell of their pool."""
    conditions = [(c.type, c.status, c.message) for c in conditions_of(seen.status) if c.type in _TOLD_BY_TUNNELS]
    return (seen.generation, int(seen.status.get("available") or 0) > 0, tuple(conditions))

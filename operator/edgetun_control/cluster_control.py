"""Control on a cluster, wired: store over informers, publisher, exit nodes' listener, agents' listener, and who is shown."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from edgetun_cluster.client import Cluster
from edgetun_cluster.informer import Change
from edgetun_cluster.system_secrets import EXIT_NODE_AUDIENCE
from edgetun_control.agents import AgentBook
from edgetun_control.control import Control, ControlSettings
from edgetun_control.exits.fleet import Fleet
from edgetun_control.exits.giving_orders import OrderGiver
from edgetun_control.exits.identity import Account, IdentityService
from edgetun_control.exits.server import ExitListener, build_exit_app
from edgetun_control.placement import FleetPlacement
from edgetun_control.ports import PortBook
from edgetun_control.publish_fleet import FleetPublisher
from edgetun_control.regions import ClusterRegions
from edgetun_control.server import ControlEntrance, build_app
from edgetun_control.stores.kubernetes import KubernetesStore, Seen
from edgetun_core.accepting import PacedListener
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.streams import numbers
from edgetun_core.errors import AddressUnavailable
from edgetun_core.pki import ServerIdentity, certificates_der

log = logging.getLogger("edgetun.control")

SERVICE: Final = "edgetun-control"
_ACCOUNT: Final = "system:serviceaccount:"
_POD: Final = "authentication.kubernetes.io/pod-name"


def _reachable(pool: Seen[ExitPool] | None) -> object:
    """Of a pool what decides where its agents can go; not how many sessions there are, which changes all the time."""
    if pool is None:
        return None
    regions = pool.status.get("regions") or ()
    return pool.resource, [(one.get("name"), one.get("addresses"), bool(one.get("available"))) for one in regions]


class TokenReviewer:
    """Asks the API server whose a ServiceAccount token is."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def review(self, token: str) -> Account | None:
        found = await self._cluster.review_token(token, (EXIT_NODE_AUDIENCE,))
        if found is None or not found.username.startswith(_ACCOUNT):
            return None
        namespace, _, name = found.username.removeprefix(_ACCOUNT).partition(":")
        return Account(namespace, name, (found.extra.get(_POD) or ("",))[0])


def own_names(namespace: str) -> tuple[str, ...]:
    """The names of control's Service."""
    return (
        SERVICE,
        f"{SERVICE}.{namespace}",
        f"{SERVICE}.{namespace}.svc",
        f"{SERVICE}.{namespace}.svc.cluster.local",
    )


class ClusterControl:
    """Everything of one replica. `start`, then it serves; `close` at the end."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        *,
        domain: str = "",
        adhoc_pool: str = "default",
        more_names: Iterable[str] = (),
        max_connections: int = 4096,
        clock: Callable[[], float] = time.time,
        lease_every_s: float = 30.0,
    ) -> None:
        self.cluster = cluster
        names = frozenset((*own_names(namespace), *more_names))
        self.store = KubernetesStore(cluster, namespace, clock=clock)
        self.publisher = FleetPublisher(self.store, adhoc_pool=adhoc_pool, clock=clock)
        self.agents = AgentBook(cluster, self.store, clock=clock, lease_every_s=lease_every_s)
        self.fleet = Fleet(self.publisher, time.monotonic, self.agents)
        self.agents.on_shown = self.fleet.shown
        self.ports = PortBook(cluster, self.store.tunnels_without_port, clock=clock)
        self.fleet.on_ports_told = self.ports.told
        self.fleet.on_node_left = self.ports.left
        self.identities = IdentityService(
            TokenReviewer(cluster),
            lambda: self.store.secrets.authority,
            namespace,
            own_names=names,
            addresses=lambda pool, region: tuple(
                str(one["host"]) for one in self.store.region_addresses(pool, region) if one.get("host")
            ),
            clock=clock,
        )
        regions = ClusterRegions(self.store, self.publisher, self.fleet)
        placement = FleetPlacement(regions)
        self.orders = OrderGiver(self.fleet, regions, self.agents)
        settings = ControlSettings(
            domain=domain,
            own_hostnames=names,
            most_watchers=max_connections * 3 // 4,
            ports=lambda kind: self._ports(adhoc_pool, kind),
        )
        self.control = Control(settings, self.store, self.publisher, placement, clock=clock)
        self.control.on_registered = self.agents.registered
        self.control.exit_ca_pem = self._exit_ca_pem
        self._max_connections = max_connections
        self._exits = ExitListener(build_exit_app(self.fleet, self.identities))
        self._entrance: ControlEntrance | None = None
        self._server: PacedListener | None = None
        self._is_listening = False
        self._identity: ServerIdentity | None = None
        self.port = 0
        self.exit_port = 0

    def _ports(self, pool: str, kind: str) -> list[int]:
        found = self.store.claims.pools.get(pool)
        return numbers(found.spec.ports.ranges(kind)) if found is not None else []

    async def start(self, host: str, port: int, exit_port: int, *, wait_s: float = 60.0) -> None:
        """Raises `ClusterError`, `AddressUnavailable`."""
        await self.store.start(wait_s)
        await self.publisher.start()
        self.publisher.subscribe(self.fleet.published)
        self.fleet.on_nodes_changed = self.publisher.wake
        self.store.pools.on_change(self._pool_changed)
        self.agents.start()
        self.ports.start()
        self.orders.start()
        secrets = self.store.secrets
        assert secrets.authority is not None
        self._identity = ServerIdentity(secrets.control_cert_pem, secrets.control_key_pem)
        await self._exits.start(host, exit_port, self._identity, secrets.authority.ca_pem)
        self.exit_port = self._exits.port
        app = build_app(self.control, self._ca_pem)
        self._entrance = ControlEntrance(app, max_connections=self._max_connections)
        make = await self._entrance.start()
        self._context = ServerIdentity(secrets.control_cert_pem, secrets.control_key_pem).ssl_context(("http/1.1",))
        self._server = PacedListener(make, self._context, most_pending=self._max_connections)
        try:
            await self._server.start(host, port)
        except OSError as error:
            raise AddressUnavailable(
                f"control cannot listen for agents on {host}:{port}: {error.strerror}", remedy="choose another --port"
            ) from error
        self.port = self._server.port
        self._is_listening = True
        self.store.watch_secrets(self._secrets_changed)
        log.info("agents on port %d, exit nodes on port %d", self.port, self.exit_port)

    async def close(self) -> None:
        """Ends everything; exit nodes serve on. Idempotent."""
        self._is_listening = False
        if self._server is not None:
            await self._server.close()
        if self._entrance is not None:
            await self._entrance.close()
        await self.orders.close()
        await self._exits.close()
        await self.agents.close()
        await self.ports.close()
        await self.publisher.close()
        await self.store.close()

    def _ca_pem(self) -> bytes | None:
        authority = self.store.secrets.authority
        return authority.ca_pem if authority is not None else None

    def _exit_ca_pem(self) -> str:
        """While the CA is rotated, exit nodes have certificates of either: agents need to know both."""
        pem = self._ca_pem() or b""
        return pem.decode("ascii") if len(certificates_der(pem)) > 1 else ""

    def _pool_changed(self, change: Change[Seen[ExitPool]]) -> None:
        if _reachable(change.old) != _reachable(change.new):
            self.publisher.wake()

    def _secrets_changed(self) -> None:
        from edgetun_core.pki import load_chain

        secrets, identity = self.store.secrets, self._identity
        if secrets.authority is not None:
            self._exits.trust(secrets.authority.ca_pem)
        self.publisher.wake()
        if identity is None or secrets.control_cert_pem == identity.cert_pem:
            return
        identity.replace(secrets.control_cert_pem, secrets.control_key_pem)
        self._exits.replace_identity(identity)
        load_chain(self._context, identity.cert_pem, identity.key_pem)
        log.info("control shows its new certificate")

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Ready when it listens. A watch that is behind is told, and is no reason to take agents' control away."""
        facts: dict[str, Any] = {
            "listening": self._is_listening,
            "watching": self.store.is_fresh,
            "exit_nodes": len(self.fleet.nodes),
            "tokens": len(self.store.state.tokens),
        }
        return self._is_listening, facts

"""Who holds which hostname, and who may use which pool. Pure; kept up to date change by change, or filled once by `Plan`.

A name belongs to one tunnel of the whole set, since DNS can lead to one pool only. Whoever has a reservation keeps the name;
without one the oldest tunnel that may have it does, and every other is told who holds it. A reservation of another namespace
is in the way of a name, of the wildcard above it, and of the names below it: else whoever claimed `*.example.com` would get the
visitors of a `shop.example.com` that was given up, its OAuth redirects with them.

One verdict costs what the tunnel's own hostnames cost, however many tunnels there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from edgetun_core.api.conditions import Reason
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.explain import or_list
from edgetun_core.api.reservation import HostnameReservation
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.problem import Problem
from edgetun_core.quantities import quoted

Rank = tuple[int, str, str, int]


class TunnelVerdict(NamedTuple):
    """What a tunnel gets: its pool, the hostnames it holds in the order it asks for them, and why it does not get the rest.

    `port` is what a TCP or UDP tunnel gets instead, as `tcp/5432`.
    """

    pool: ExitPool | None
    hostnames: tuple[str, ...]
    problems: tuple[Problem, ...]
    port: str = ""

    @property
    def served(self) -> tuple[str, ...]:
        """All by which visitors find it; empty when it is not served."""
        return (*self.hostnames, self.port) if self.port else self.hostnames


class Claims:
    """Tunnels, pools, reservations and namespaces, by what verdicts need of them.

    `namespaces` are the labels of each; None when there are none (one machine with files), where the pools' `Same` and
    `matchLabels` allow every namespace. Every change returns the ids of the tunnels whose verdict it may change.
    """

    def __init__(
        self, *, namespaces: Mapping[str, Mapping[str, str]] | None = None, system_namespace: str = ""
    ) -> None:
        self._namespaces = dict(namespaces) if namespaces is not None else None
        self._system_namespace = system_namespace
        self._pools: dict[str, ExitPool] = {}
        self._tunnels: dict[str, tuple[Tunnel, Rank]] = {}
        self._by_pool: dict[str, set[str]] = {}
        self._claimants: dict[str, set[str]] = {}
        self._claimed_below: dict[str, set[str]] = {}
        self._reserved: dict[str, HostnameReservation] = {}
        self._reserved_below: dict[str, set[str]] = {}
        self._holders: dict[str, str] = {}
        """Remembered answers of `holder`; dropped when something they rest on changes."""
        self._count = 0

    # --- changes ---

    def put_tunnel(self, tunnel: Tunnel) -> set[str]:
        """Adds a tunnel or takes its new version."""
        known = self._tunnels.get(tunnel.id)
        affected = self._forget(known[0]) if known is not None else set()
        if known is not None:
            index = known[1][3]
        else:
            self._count += 1
            index = self._count
        created = tunnel.metadata.creation_timestamp
        # Oldest first, equals by name; then those without a timestamp (files) in the order they came.
        rank: Rank = (0, created, tunnel.id, index) if created is not None else (1, "", "", index)
        self._tunnels[tunnel.id] = (tunnel, rank)
        self._by_pool.setdefault(tunnel.spec.pool.name, set()).add(tunnel.id)
        for hostname in tunnel.spec.hostnames:
            self._claimants.setdefault(hostname, set()).add(tunnel.id)
            self._claimed_below.setdefault(_parent(hostname), set()).add(hostname)
        for port in _port_keys(tunnel):
            self._claimants.setdefault(port, set()).add(tunnel.id)
        return affected | self._touched([*tunnel.spec.hostnames, *_port_keys(tunnel)]) | {tunnel.id}

    def drop_tunnel(self, tunnel_id: str) -> set[str]:
        """Takes a tunnel out."""
        known = self._tunnels.pop(tunnel_id, None)
        return self._forget(known[0]) - {tunnel_id} if known is not None else set()

    def put_pool(self, pool: ExitPool) -> set[str]:
        """Adds a pool or takes its new version."""
        self._pools[pool.id] = pool
        return self._pool_changed(pool.id)

    def drop_pool(self, pool_id: str) -> set[str]:
        """Takes a pool out."""
        self._pools.pop(pool_id, None)
        return self._pool_changed(pool_id)

    def put_reservation(self, reservation: HostnameReservation) -> set[str]:
        """Adds a reservation or takes its new version."""
        hostname = reservation.spec.hostname
        self._reserved[hostname] = reservation
        self._reserved_below.setdefault(_parent(hostname), set()).add(hostname)
        return self._touched([hostname], is_reservation=True)

    def drop_reservation(self, hostname: str) -> set[str]:
        """Takes the reservation of a hostname out."""
        if self._reserved.pop(hostname, None) is not None:
            _discard(self._reserved_below, _parent(hostname), hostname)
        return self._touched([hostname], is_reservation=True)

    def put_namespace(self, name: str, labels: Mapping[str, str]) -> set[str]:
        """Takes the labels of a namespace."""
        if self._namespaces is None:
            self._namespaces = {}
        if self._namespaces.get(name) == labels:
            return set()
        self._namespaces[name] = dict(labels)
        mine = [tunnel for tunnel, _ in self._tunnels.values() if tunnel.metadata.namespace == name]
        touched = self._touched([name for tunnel in mine for name in (*tunnel.spec.hostnames, *_port_keys(tunnel))])
        return touched | {tunnel.id for tunnel in mine}

    # --- answers ---

    @property
    def pools(self) -> Mapping[str, ExitPool]:
        """By name."""
        return self._pools

    def tunnel(self, tunnel_id: str) -> Tunnel | None:
        """The tunnel as it was last put in."""
        known = self._tunnels.get(tunnel_id)
        return known[0] if known is not None else None

    def by_seniority(self) -> list[str]:
        """Ids of all tunnels, oldest first."""
        return sorted(self._tunnels, key=lambda tunnel_id: self._tunnels[tunnel_id][1])

    def reservation(self, hostname: str) -> HostnameReservation | None:
        """The reservation of exactly this hostname."""
        return self._reserved.get(hostname)

    def holder(self, hostname: str) -> str:
        """Id of the tunnel that holds a hostname; empty when none does."""
        found = self._holders.get(hostname)
        if found is None:
            may = [each for each in self._claimants.get(hostname, ()) if self._may_hold(each, hostname)]
            reserved_for = _claimant(self._reserved[hostname]) if hostname in self._reserved else ""
            if reserved_for in may:
                found = reserved_for
            else:
                found = min(may, key=lambda each: self._tunnels[each][1], default="")
            self._holders[hostname] = found
        return found

    def is_in_force(self, reservation: HostnameReservation) -> bool:
        """Whether a reservation keeps others out: under `Delete` only while its tunnel asks for the name."""
        if reservation.spec.reclaim_policy == "Retain":
            return True
        return _claimant(reservation) in self._claimants.get(reservation.spec.hostname, ())

    def verdict(self, tunnel_id: str) -> TunnelVerdict:
        """What one tunnel gets; raises KeyError when it is not there."""
        tunnel, _ = self._tunnels[tunnel_id]
        pool = self._pools.get(tunnel.spec.pool.name)
        if pool is None:
            return TunnelVerdict(None, (), (_no_pool(tunnel, self._pools),))
        if not self._allows_namespace(pool, tunnel.metadata.namespace):
            return TunnelVerdict(pool, (), (_not_allowed(tunnel, pool),))
        mine = []
        problems = []
        for index, hostname in enumerate(tunnel.spec.hostnames):
            if self.holder(hostname) == tunnel.id:
                mine.append(hostname)
            else:
                problems.append(self._refusal(tunnel, pool, index, hostname))
        port = ""
        for key in _port_keys(tunnel):
            if self.holder(key) == tunnel.id:
                port = tunnel.spec.port_name
            else:
                problems.append(self._port_refusal(tunnel, pool, key))
        return TunnelVerdict(pool, tuple(mine), tuple(problems), port)

    # --- within ---

    def _forget(self, tunnel: Tunnel) -> set[str]:
        affected = self._touched([*tunnel.spec.hostnames, *_port_keys(tunnel)])
        _discard(self._by_pool, tunnel.spec.pool.name, tunnel.id)
        for port in _port_keys(tunnel):
            _discard(self._claimants, port, tunnel.id)
        for hostname in tunnel.spec.hostnames:
            _discard(self._claimants, hostname, tunnel.id)
            if hostname not in self._claimants:
                _discard(self._claimed_below, _parent(hostname), hostname)
        return affected

    def _pool_changed(self, pool_id: str) -> set[str]:
        mine = self._by_pool.get(pool_id, set())
        tunnels = [self._tunnels[each][0] for each in mine]
        touched = self._touched([name for one in tunnels for name in (*one.spec.hostnames, *_port_keys(one))])
        # Whoever names no pool that is there is told which ones are.
        astray = [ids for name, ids in self._by_pool.items() if name not in self._pools]
        return touched.union(mine, *astray)

    def _touched(self, hostnames: Iterable[str], *, is_reservation: bool = False) -> set[str]:
        """Drops the remembered holders of names, and of those that stand in a wildcard's relation to a reserved one."""
        affected: set[str] = set()
        for hostname in hostnames:
            self._holders.pop(hostname, None)
            affected |= self._claimants.get(hostname, set())
            # Only reservations reach from a name to the wildcard above it, and back.
            related = self._related_claims(hostname) if hostname in self._reserved or is_reservation else ()
            for name in related:
                self._holders.pop(name, None)
                affected |= self._claimants.get(name, set())
        return affected

    def _related_claims(self, hostname: str) -> Iterator[str]:
        if hostname.startswith("*."):
            yield from self._claimed_below.get(hostname[2:], ())
        else:
            yield f"*.{_parent(hostname)}"

    def _may_hold(self, tunnel_id: str, hostname: str) -> bool:
        tunnel, _ = self._tunnels[tunnel_id]
        pool = self._pools.get(tunnel.spec.pool.name)
        if "/" in hostname:
            return (
                pool is not None
                and _gives_away(pool, tunnel)
                and self._allows_namespace(pool, tunnel.metadata.namespace)
            )
        return (
            pool is not None
            and covers(pool.spec.domains, hostname)
            and self._allows_namespace(pool, tunnel.metadata.namespace)
            and self._in_the_way(tunnel.metadata.namespace, hostname) is None
        )

    def _allows_namespace(self, pool: ExitPool, namespace: str) -> bool:
        allowed = pool.spec.allowed_namespaces
        is_known = self._namespaces is not None
        if allowed.from_ == "All":
            return True
        if allowed.from_ == "Same":
            return not is_known or namespace == self._system_namespace
        if namespace in allowed.names:
            return True
        if not allowed.match_labels:
            return False
        labels = self._namespaces.get(namespace, {}) if self._namespaces is not None else allowed.match_labels
        return all(labels.get(key) == value for key, value in allowed.match_labels.items())

    def _in_the_way(self, namespace: str, hostname: str) -> HostnameReservation | None:
        """The reservation of another namespace that keeps this one from a hostname."""
        if not self._reserved:
            return None
        own = self._in_force(hostname)
        if own is not None:
            return None if own.spec.claimed_by.namespace == namespace else own
        if not hostname.startswith("*."):
            above = self._in_force(f"*.{_parent(hostname)}")
            return above if above is not None and above.spec.claimed_by.namespace != namespace else None
        below = (self._in_force(name) for name in sorted(self._reserved_below.get(hostname[2:], ())))
        return next((each for each in below if each is not None and each.spec.claimed_by.namespace != namespace), None)

    def _in_force(self, hostname: str) -> HostnameReservation | None:
        reservation = self._reserved.get(hostname)
        return reservation if reservation is not None and self.is_in_force(reservation) else None

    def _port_refusal(self, tunnel: Tunnel, pool: ExitPool, key: str) -> Problem:
        kind, _, port = tunnel.spec.port_name.partition("/")
        field = f"spec.{kind}.port"
        if not _gives_away(pool, tunnel):
            given = ", ".join(str(each) for each in pool.spec.ports.ranges(kind)[:5]) or "none"
            text = f"{pool.ref} does not give {kind.upper()} port {port} away ({given}); choose another or extend spec.ports.{kind}"
            return Problem("error", tunnel.ref, field, Reason.PORT_NOT_ALLOWED, text)
        text = (
            f"{kind.upper()} port {port} of {pool.ref} is held by Tunnel {self.holder(key)}; choose another or ask for its"
            " release"
        )
        return Problem("error", tunnel.ref, field, Reason.PORT_CONFLICT, text)

    def _refusal(self, tunnel: Tunnel, pool: ExitPool, index: int, hostname: str) -> Problem:
        field = f"spec.hostnames[{index}]"
        if not covers(pool.spec.domains, hostname):
            domains = ", ".join(pool.spec.domains[:5])
            text = f"{quoted(hostname)} is outside the domains of {pool.ref} ({domains}); choose a name in there or extend spec.domains"
            return Problem("error", tunnel.ref, field, Reason.HOSTNAME_NOT_ALLOWED, text)
        reservation = self._in_the_way(tunnel.metadata.namespace, hostname)
        if reservation is None:
            text = (
                f"{quoted(hostname)} is held by Tunnel {self.holder(hostname)}; choose another or ask for its release"
            )
            return Problem("error", tunnel.ref, field, Reason.HOSTNAME_CONFLICT, text)
        reserved = reservation.spec.hostname
        what = quoted(hostname)
        if reserved != hostname:
            verb = "also stands for" if hostname.startswith("*.") else "is below"
            what = f"{what} {verb} {quoted(reserved)}, which"
        text = (
            f"{what} is reserved by Tunnel {_claimant(reservation)}; choose another or ask namespace"
            f" {reservation.spec.claimed_by.namespace} for the release of {reservation.ref}"
        )
        return Problem("error", tunnel.ref, field, Reason.HOSTNAME_RESERVED, text)


def covers(domains: Sequence[str], hostname: str) -> bool:
    """Whether a pool's domains let tunnels claim a hostname."""
    if hostname in domains or "*" in domains:
        return True
    parent = _parent(hostname)
    return bool(parent) and f"*.{parent}" in domains


def _port_keys(tunnel: Tunnel) -> tuple[str, ...]:
    """The port that a tunnel wants, as it stands among the names that are claimed: `pool/tcp/5432`. No hostname has a slash."""
    name = tunnel.spec.port_name
    return (f"{tunnel.spec.pool.name}/{name}",) if name else ()


def _gives_away(pool: ExitPool, tunnel: Tunnel) -> bool:
    kind, _, port = tunnel.spec.port_name.partition("/")
    return pool.spec.ports.allow(kind, int(port))


def _parent(hostname: str) -> str:
    return hostname.partition(".")[2]


def _claimant(reservation: HostnameReservation) -> str:
    claimed_by = reservation.spec.claimed_by
    return f"{claimed_by.namespace}/{claimed_by.tunnel}"


def _discard(index: dict[str, set[str]], key: str, value: str) -> None:
    values = index.get(key)
    if values is not None:
        values.discard(value)
        if not values:
            del index[key]


def _no_pool(tunnel: Tunnel, pools: Mapping[str, ExitPool]) -> Problem:
    name = tunnel.spec.pool.name
    remedy = f"write {or_list(sorted(pools)[:5])}" if pools else "add an ExitPool of this name"
    text = f"no ExitPool is called {quoted(name)}; {remedy}"
    return Problem("error", tunnel.ref, "spec.pool.name", Reason.POOL_NOT_FOUND, text)


def _not_allowed(tunnel: Tunnel, pool: ExitPool) -> Problem:
    text = (
        f"{pool.ref} does not serve namespace {quoted(tunnel.metadata.namespace)}; choose another pool, or ask for the"
        " namespace in its spec.allowedNamespaces"
    )
    return Problem("error", tunnel.ref, "spec.pool.name", Reason.NAMESPACE_NOT_ALLOWED, text)

"""From a cluster's resources to every region's snapshot, change by change: what a change costs does not grow with the fleet.

`Claims` says which tunnels a change touches; only those are looked at again. Changes that come together are published together;
a revocation waits for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Final

import msgspec
from pydantic import ValidationError

from edgetun_control.adhoc import build_adhoc_tunnel
from edgetun_control.registry import adhoc_tunnel_id
from edgetun_control.store import Claim, decide_ended_tokens, ended_since
from edgetun_control.stores.kubernetes import KubernetesStore
from edgetun_control.watchers import Watchers
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.tunnel import Tunnel, TunnelSpec
from edgetun_core.compile import allows_region, pool_rule, tunnel_rule
from edgetun_core.control_stream import Changes
from edgetun_core.credentials import TokenRecord, TokenState
from edgetun_core.snapshot import CredentialKey, PoolRule, Snapshot, TunnelRule

log = logging.getLogger("edgetun.control.publish")

GATHER_S: Final = 0.02
LONGEST_SLEEP_S: Final = 60.0
KEPT_CHANGES: Final = 256
"""Publications of which is remembered what changed; whoever is further behind compares everything."""


class FleetPublisher:
    """Keeps the rules of all tunnels, and hands out what a region obeys."""

    def __init__(
        self, store: KubernetesStore, *, adhoc_pool: str = "default", clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._adhoc_pool = adhoc_pool
        self._clock = clock
        self._rules: dict[str, TunnelRule] = {}
        self._specs: dict[str, TunnelSpec] = {}
        self._manifests: dict[str, tuple[str, ...]] = {}
        self._adhoc: dict[str, Claim] = {}
        self._dirty: set[str] = set()
        self._version = int(clock() * 1000)
        self._changes: deque[tuple[int, frozenset[str]]] = deque(maxlen=KEPT_CHANGES)
        """Versions, and the tunnels that changed with each."""
        self._complete_since = self._version
        """Changes after this version are all in `_changes`."""
        self._keys: tuple[CredentialKey, ...] = ()
        self._revoked: tuple[str, ...] = ()
        self._pools: dict[str, ExitPool] = {}
        """As they were published last."""
        self._subscribers: list[Callable[[object], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        self._settled.set()
        self._watchers = Watchers()
        self._by_namespace: dict[str, set[str]] = {}
        self._is_running = False
        self.published_total = 0
        self.last_cost_s = 0.0
        store.watch_tunnels(self._touched)

    async def start(self) -> None:
        """Looks at everything that the store holds, then follows it."""
        self._is_running = True
        self._store.watch(self._state_changed)
        self._state_changed()
        self._publish()

    async def close(self) -> None:
        """Idempotent."""
        self._is_running = False
        for timer in (self._timer, self._end_timer):
            if timer is not None:
                timer.cancel()

    # ---- what control asks

    @property
    def manifest_tunnels(self) -> Mapping[str, tuple[str, ...]]:
        """The tunnels of manifests that are served: id -> hostnames."""
        return self._manifests

    def manifest_tunnels_of(self, token: TokenRecord) -> Mapping[str, tuple[str, ...]]:
        """Those of the namespaces that the token's patterns name."""
        namespaces = _namespaces_of(token)
        if namespaces is None:
            return self._manifests
        return {
            tunnel_id: self._manifests[tunnel_id]
            for namespace in namespaces
            for tunnel_id in self._by_namespace.get(namespace, ())
        }

    async def changed(self, timeout_s: float, token: TokenRecord | None = None) -> None:
        """Returns when something else is published that concerns tunnels of the token, or after the time. Without one: anything."""
        namespaces = _namespaces_of(token) if token is not None else None
        await self._watchers.wait(namespaces, timeout_s)

    def wake(self) -> None:
        """Exit nodes or addresses are others: whoever waits in `changed` looks again."""
        self._watchers.wake()

    def rule(self, tunnel_id: str) -> TunnelRule | None:
        """What is served as this tunnel."""
        return self._rules.get(tunnel_id)

    def spec(self, tunnel_id: str) -> TunnelSpec | None:
        """Where it may be served."""
        return self._specs.get(tunnel_id)

    def problem_of(self, tunnel_id: str) -> str:
        """Why a tunnel is not served; empty when it is."""
        if self._store.claims.tunnel(tunnel_id) is None:
            return ""
        problems = self._store.claims.verdict(tunnel_id).problems
        return problems[0].message if problems else ""

    async def settled(self) -> None:
        """Returns when what changed before this call is published."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await self._settled.wait()

    def subscribe(self, subscriber: Callable[[object], None]) -> None:
        """Calls after every publication."""
        self._subscribers.append(subscriber)

    def region_snapshot(self, pool: str, region: str) -> Snapshot:
        """What the exit nodes of one region obey. Costs all tunnels."""
        tunnels = tuple(
            rule for tunnel_id, rule in sorted(self._rules.items()) if _is_served(self._specs[tunnel_id], pool, region)
        )
        return msgspec.structs.replace(self._head(pool, region), tunnels=tunnels)

    def region_change(self, pool: str, region: str, since: int) -> tuple[Snapshot, Changes] | None:
        """The same without its tunnels, and at least those that are others than in the one of version `since`; None: not known."""
        changed = self.changed_since(since)
        if changed is None:
            return None
        rules: dict[str, TunnelRule | None] = {}
        for tunnel_id in changed:
            rule = self._rules.get(tunnel_id)
            is_here = rule is not None and _is_served(self._specs[tunnel_id], pool, region)
            rules[tunnel_id] = rule if is_here else None
        return self._head(pool, region), rules

    def _head(self, pool: str, region: str) -> Snapshot:
        found = self._store.claims.pools.get(pool)
        return Snapshot(
            version=self._version,
            pool=pool,
            region=region,
            credential_keys=self._keys,
            revoked_tokens=self._revoked,
            pool_rule=pool_rule(found.spec) if found is not None else PoolRule(),
        )

    def changed_since(self, version: int) -> frozenset[str] | None:
        """At least the tunnels that are others than in the snapshots of that version; None when nobody remembers."""
        if version < self._complete_since:
            return None
        later = takewhile(lambda change: change[0] > version, reversed(self._changes))
        return frozenset().union(*(ids for _, ids in later))

    # ---- changes

    def _touched(self, tunnel_ids: set[str]) -> None:
        self._dirty |= tunnel_ids
        self._soon()

    def _state_changed(self) -> None:
        """Tokens, keys or claims: revocations are published at once, ad-hoc tunnels are put in or taken out."""
        now = self._clock()
        state = self._store.state
        wanted: dict[str, Claim] = {}
        for claim in state.claims.values():
            token = state.tokens.get(claim.token_id)
            if token is not None and token.state(now) is TokenState.LIVE:
                wanted[adhoc_tunnel_id(claim)] = claim
        for tunnel_id in [known for known in self._adhoc if known not in wanted]:
            del self._adhoc[tunnel_id]
            self._dirty |= self._store.claims.drop_tunnel(tunnel_id) | {tunnel_id}
        for tunnel_id, claim in wanted.items():
            if self._adhoc.get(tunnel_id) == claim:
                continue
            self._adhoc[tunnel_id] = claim
            try:
                self._dirty |= self._store.claims.put_tunnel(build_adhoc_tunnel(claim, self._adhoc_pool))
            except ValidationError as error:
                log.warning("the claim of %s is not usable: %d fields are wrong", claim.hostname, error.error_count())
        if self._is_running:
            self._keys = tuple(key.public for key in state.signing_keys)
            self._revoked = decide_ended_tokens(state, now)
            self._publish(is_for_all=True)
            self._watch_ends()

    def _soon(self) -> None:
        self._settled.clear()
        if self._is_running and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._publish)

    def _publish(self, *, is_for_all: bool = False) -> None:
        """Looks at what was touched. Nobody hears of it when it comes to nothing, as with most reservations and statuses."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        began = time.perf_counter()
        dirty, self._dirty = self._dirty, set()
        changed = frozenset(tunnel_id for tunnel_id in dirty if self._look_at(tunnel_id))
        is_for_all |= self._pools_changed()
        if changed or is_for_all:
            self._tell(changed, is_for_all)
            self.last_cost_s = time.perf_counter() - began
        self._settled.set()

    def _tell(self, changed: frozenset[str], is_for_all: bool) -> None:
        self._version = max(self._version + 1, int(self._clock() * 1000))
        if changed:
            if len(self._changes) == KEPT_CHANGES:
                self._complete_since = self._changes[0][0]
            self._changes.append((self._version, changed))
        self.published_total += 1
        for subscriber in tuple(self._subscribers):
            subscriber(self)
        self._watchers.wake(None if is_for_all else {tunnel_id.partition("/")[0] for tunnel_id in changed})

    def _pools_changed(self) -> bool:
        """Whether a pool is another one, so that its limits may be, or what agents hear of it."""
        now, before = self._store.claims.pools, self._pools
        if len(now) == len(before) and all(before.get(name) is pool for name, pool in now.items()):
            return False
        self._pools = dict(now)
        return True

    def _look_at(self, tunnel_id: str) -> bool:
        """Compiles one tunnel; whether anything is new."""
        tunnel: Tunnel | None = self._store.claims.tunnel(tunnel_id)
        verdict = self._store.claims.verdict(tunnel_id) if tunnel is not None else None
        if tunnel is None or verdict is None or not verdict.served:
            was_served = self._rules.pop(tunnel_id, None) is not None
            self._specs.pop(tunnel_id, None)
            self._manifests.pop(tunnel_id, None)
            namespace = tunnel_id.partition("/")[0]
            others = self._by_namespace.get(namespace, set())
            others.discard(tunnel_id)
            if not others:
                self._by_namespace.pop(namespace, None)
            return was_served
        rule = tunnel_rule(tunnel, verdict.hostnames)
        before = self._specs.get(tunnel_id)
        self._specs[tunnel_id] = tunnel.spec
        if tunnel_id not in self._adhoc:
            self._manifests[tunnel_id] = rule.address_names
            self._by_namespace.setdefault(tunnel_id.partition("/")[0], set()).add(tunnel_id)
        if before is not None and before.pool == tunnel.spec.pool and self._rules.get(tunnel_id) == rule:
            return False
        self._rules[tunnel_id] = rule
        return True

    def _watch_ends(self) -> None:
        """Tokens end by themselves too."""
        if self._end_timer is not None:
            self._end_timer.cancel()
        now = self._clock()
        coming = [ends for record in self._store.state.tokens.values() if (ends := ended_since(record)) > now]
        wait_s = max(0.05, min([LONGEST_SLEEP_S, *(ends - now for ends in coming)]))
        self._end_timer = asyncio.get_running_loop().call_later(wait_s, self._state_changed)


def _namespaces_of(token: TokenRecord) -> frozenset[str] | None:
    """The namespaces whose tunnels a token may serve; None: any."""
    namespaces = frozenset(pattern.partition("/")[0] for pattern in token.tunnels)
    return None if not namespaces or any("*" in namespace for namespace in namespaces) else namespaces


def _is_served(spec: TunnelSpec, pool: str, region: str) -> bool:
    return spec.pool.name == pool and allows_region(spec, region)

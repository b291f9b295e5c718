"""The store of a cluster: custom resources and Secrets, seen through informers. Stateless; replicas share nothing but the API.

Reading never leaves memory. Written are reservations of hostnames that agents claim, and when a token was last used (at most once
a minute each). Tunnels, pools and reservations feed one `Claims`, so a change costs what it touches, not what there is.

A token that is gone has no tombstone here. While this replica runs it remembers; sessions of tokens that nobody knows are
noticed by what exit nodes report (`note_sessions_token`), so a deletion while control was away counts too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from edgetun_cluster.client import Cluster
from edgetun_cluster.errors import AlreadyExists, ClusterError
from edgetun_cluster.informer import Change, Informer
from edgetun_cluster.kinds import (
    AGENT_TOKEN,
    EXIT_POOL,
    HOSTNAME_RESERVATION,
    NAMESPACE,
    SECRET,
    TUNNEL,
    Key,
    Kind,
    Object,
    key_of,
)
from edgetun_cluster.reading import is_same_spec, read_resource
from edgetun_cluster.system_secrets import CA_SECRET, CONTROL_TLS_SECRET, SIGNING_KEYS_SECRET, secret_data, signing_keys
from edgetun_control.exits.identity import Authority
from edgetun_control.registry import adhoc_namespace
from edgetun_control.store import ENDED_TOKEN_KEPT_S, Claim, StoreState
from edgetun_core.api.conditions import parse_timestamp, timestamp
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.load import AnyResource
from edgetun_core.api.reservation import HostnameReservation, reservation_name
from edgetun_core.api.token import AgentToken
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.claims import Claims
from edgetun_core.credentials import SigningKey, TokenRecord
from edgetun_core.enrollment import UNREADABLE
from edgetun_core.errors import ConfigError, LimitExceeded
from edgetun_core.problem import Problem

log = logging.getLogger("edgetun.control.store")

MANAGER: Final = "edgetun-control"
CLAIM_ANNOTATION: Final = "edgetun.dev/claim"
SECRETS_LOOK_S: Final = 0.2
"""Between looks at a start, while the operator has not made them yet."""
USED_EVERY_S: Final = 60.0
LOOK_TIMEOUT_S: Final = 5.0
LOOK_PAUSE_S: Final = 0.2
"""Between two looks for tokens that are new, however many ask."""
CONFIRM_S: Final = 30.0
_METADATA: Final = ("name", "namespace", "creationTimestamp", "uid", "generation")
_WITH_STATUS: Final = frozenset({EXIT_POOL, AGENT_TOKEN})
"""Kinds of which the status tells control something."""

R = TypeVar("R", bound=AnyResource)


class Seen(NamedTuple, Generic[R]):
    """A resource as far as it could be read; the status where it counts, and the claim as it was annotated, if it was."""

    resource: R | None
    problems: tuple[Problem, ...]
    status: Mapping[str, Any]
    claim: str
    uid: str
    generation: int


def _see(kind: Kind, obj: Object, before: Seen[Any] | None = None) -> Seen[Any]:
    meta = obj["metadata"]
    if before is not None and is_same_spec(obj, before.uid, before.generation):
        resource, problems = before.resource, before.problems
    else:
        resource, problems = read_resource(kind, obj, _METADATA)
    status = obj.get("status") or {} if kind in _WITH_STATUS else _NOTHING
    if kind is TUNNEL:
        # Of ten thousand tunnels' status only what control itself writes there, which is nothing as a rule.
        ports = (obj.get("status") or {}).get("portsUnavailable")
        status = {"portsUnavailable": ports} if ports else _NOTHING
    claim = (meta.get("annotations") or {}).get(CLAIM_ANNOTATION, "") if kind is HOSTNAME_RESERVATION else ""
    return Seen(resource, problems, status, claim, meta.get("uid", ""), meta.get("generation") or 0)


_NOTHING: Final[Mapping[str, Any]] = {}


def _following(cluster: Cluster, kind: Kind) -> Informer[Seen[Any]]:
    return Informer(cluster, kind, parse=partial(_see, kind), parse_again=partial(_see, kind))


def _says_the_same(change: Change[Seen[Any]]) -> bool:
    """Whether all that is new is a status, labels or annotations: what the spec says was seen before."""
    return change.old is not None and change.new is not None and change.old.resource is change.new.resource


class SystemSecrets(NamedTuple):
    """What control needs of the system's own Secrets."""

    authority: Authority | None = None
    control_cert_pem: bytes = b""
    control_key_pem: bytes = b""
    signing_keys: tuple[SigningKey, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.authority is not None and bool(self.control_cert_pem) and bool(self.signing_keys)


class KubernetesStore:
    """A `Store` over the API server. `start` before anything else, `close` in the end."""

    def __init__(self, cluster: Cluster, namespace: str, *, clock: Callable[[], float] = time.time) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.claims = Claims(namespaces={}, system_namespace=namespace)
        self.secrets = SystemSecrets()
        self.tunnels: Informer[Seen[Tunnel]] = _following(cluster, TUNNEL)
        self.pools: Informer[Seen[ExitPool]] = _following(cluster, EXIT_POOL)
        self.tokens: Informer[Seen[AgentToken]] = _following(cluster, AGENT_TOKEN)
        self.reservations: Informer[Seen[HostnameReservation]] = _following(cluster, HOSTNAME_RESERVATION)
        self.namespaces: Informer[Mapping[str, str]] = Informer(
            cluster, NAMESPACE, parse=lambda obj: dict(obj["metadata"].get("labels") or {})
        )
        # One watch each: the role names these three and no others.
        self._system_secrets: dict[str, Informer[Object]] = {
            name: Informer(cluster, SECRET, namespace=namespace, field_selector=f"metadata.name={name}")
            for name in _SECRETS
        }
        self._clock = clock
        self._records: dict[str, TokenRecord] = {}
        self._token_keys: dict[str, Key] = {}
        self._id_by_key: dict[Key, str] = {}
        self._ended: dict[str, float] = {}
        self._claimed: dict[str, Claim] = {}
        self._state = StoreState()
        self._watchers: list[Callable[[], None]] = []
        self._affected: list[Callable[[set[str]], None]] = []
        self._secrets_changed: list[Callable[[], None]] = []
        self._without_port: set[Key] = set()
        self._used: dict[str, float] = {}
        self._written_used: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._refreshing: asyncio.Task[None] | None = None
        self.tunnels.on_change(self._tunnel_changed)
        self.pools.on_change(self._pool_changed)
        self.reservations.on_change(self._reservation_changed)
        self.namespaces.on_change(self._namespace_changed)
        self.tokens.on_change(self._token_changed)
        for informer in self._system_secrets.values():
            informer.on_change(lambda _: self._take_secrets())

    # ---- Store

    @property
    def state(self) -> StoreState:
        return self._state

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        self._watchers.append(changed)
        return lambda: self._watchers.remove(changed) if changed in self._watchers else None

    def watch_tunnels(self, affected: Callable[[set[str]], None]) -> None:
        """Calls `affected` with the ids of tunnels whose verdict may have changed."""
        self._affected.append(affected)

    def watch_secrets(self, changed: Callable[[], None]) -> None:
        """Calls `changed` when the CA, control's certificate or the signing keys are others."""
        self._secrets_changed.append(changed)

    async def start(self, timeout_s: float = 60.0) -> None:
        """Returns when every copy is whole and the system's Secrets are there. Raises `ClusterError`."""
        for informer in self._informers:
            informer.start()
        await asyncio.gather(*(informer.synced(timeout_s) for informer in self._informers))
        said = False
        async with asyncio.timeout(None if timeout_s <= 0 else timeout_s):
            while not self.secrets.is_whole:
                if not said:
                    log.info("waiting for the operator to make the Secrets %s, %s, %s", *_SECRETS)
                    said = True
                await asyncio.sleep(SECRETS_LOOK_S)
        self._tasks = [
            asyncio.create_task(self._write_used(), name="when tokens were used"),
        ]

    async def close(self) -> None:
        """Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait((self._refreshing,))
        await asyncio.gather(*(informer.close() for informer in self._informers))

    @property
    def _informers(self) -> tuple[Informer[Any], ...]:
        copies = self.pools, self.namespaces, self.reservations, self.tokens, self.tunnels
        return *copies, *self._system_secrets.values()

    @property
    def is_fresh(self) -> bool:
        """Whether every watch is well."""
        return all(informer.is_synced and informer.last_error is None for informer in self._informers)

    async def claim(self, claim: Claim, most_per_token: int) -> Claim:
        standing = self._claimed.get(claim.hostname)
        if standing is not None and (standing.token_id != claim.token_id or standing == claim):
            return standing
        held = sum(1 for other in self._claimed.values() if other.token_id == claim.token_id)
        if standing is None and held >= most_per_token:
            raise LimitExceeded(
                f"the token holds {held} hostnames already, and more are not given",
                remedy="use one of them with --host, or delete HostnameReservations that are not needed",
            )
        name = reservation_name(claim.hostname)
        annotations = {CLAIM_ANNOTATION: msgspec.json.encode(claim).decode()}
        reservation: Object = {
            "apiVersion": HOSTNAME_RESERVATION.api_version,
            "kind": HOSTNAME_RESERVATION.kind,
            "metadata": {"name": name, "annotations": annotations},
            "spec": {
                "hostname": claim.hostname,
                "claimedBy": {"namespace": adhoc_namespace(claim.token_id), "tunnel": claim.hostname},
                "reclaimPolicy": "Retain",
            },
        }
        try:
            if standing is None:
                await self.cluster.create(HOSTNAME_RESERVATION, reservation, manager=MANAGER)
            else:
                await self.cluster.patch(
                    HOSTNAME_RESERVATION, name, "", {"metadata": {"annotations": annotations}}, manager=MANAGER
                )
        except AlreadyExists:
            found = await self.cluster.get(HOSTNAME_RESERVATION, name)
            other = _claim_of(_see(HOSTNAME_RESERVATION, found).claim) if found is not None else None
            if other is None:
                # A Tunnel's reservation: whose it is, is nobody's business.
                return msgspec.structs.replace(claim, token_id="")
            return other
        except ClusterError as error:
            raise ConfigError(f"the name {claim.hostname} cannot be reserved: {error}") from error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                while self._claimed.get(claim.hostname) != claim:  # noqa: ASYNC110 - there is no event per object
                    await asyncio.sleep(0.02)
        return claim

    async def refresh(self) -> None:
        """Asks the API server for tokens that are not seen yet, in one list for all who ask at the same time.

        Raises `ClusterError` when it cannot be asked: then nobody may be told that a token is unknown.
        """
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._list_tokens(), name="look for new tokens")
        await asyncio.shield(self._refreshing)

    async def _list_tokens(self) -> None:
        for obj in (await self.cluster.list(AGENT_TOKEN, timeout_s=LOOK_TIMEOUT_S)).items:
            key, seen = key_of(obj), _see(AGENT_TOKEN, obj)
            record = _record_of(key, seen)
            if record is not None and record.id not in self._records and record.id not in self._ended:
                self._token_changed(Change("modified", key, None, seen))
                # The informer may never see it, when it is deleted before the watch is well again.
                asyncio.get_running_loop().call_later(CONFIRM_S, self._confirm, key)
        await asyncio.sleep(LOOK_PAUSE_S)

    def _confirm(self, key: Key) -> None:
        if not self.tokens.is_synced or self.tokens.last_error is not None:
            asyncio.get_running_loop().call_later(CONFIRM_S, self._confirm, key)
        elif self.tokens.get(key.name, key.namespace) is None:
            self._token_changed(Change("deleted", key, None, None))

    def note_used(self, token_id: str, now: float) -> None:
        self._used[token_id] = now

    # ---- tokens and sessions

    def key_of_token(self, token_id: str) -> Key | None:
        """Namespace and name of the AgentToken that a token id belongs to."""
        return self._token_keys.get(token_id)

    def note_sessions_token(self, token_id: str) -> bool:
        """An exit node reports a session of this token; True when the token is known. One that nobody knows has ended."""
        if token_id in self._records:
            return True
        if token_id and token_id not in self._ended and self.tokens.is_synced:
            log.info("cluster token %s is not known any more; its sessions end", token_id)
            self._ended[token_id] = self._clock()
            self._rebuild()
        return False

    def tunnels_without_port(self) -> list[tuple[Key, Mapping[str, Any]]]:
        """Tunnels whose status names exit nodes that cannot listen for them."""
        return [(key, self.tunnels.store[key].status) for key in self._without_port if key in self.tunnels.store]

    def region_addresses(self, pool: str, region: str) -> tuple[Mapping[str, Any], ...]:
        """Where a region is reached, as the operator found out: `host`, `tunnelPort`, `quicPort`."""
        seen = self.pools.get(pool)
        for one in (seen.status.get("regions") or ()) if seen is not None else ():
            if one.get("name") == region:
                return tuple(one.get("addresses") or ())
        return ()

    # ---- changes

    def _tunnel_changed(self, change: Change[Seen[Tunnel]]) -> None:
        if change.new is not None and change.new.status:
            self._without_port.add(change.key)
        else:
            self._without_port.discard(change.key)
        if _says_the_same(change):
            return
        new = change.new.resource if change.new is not None else None
        if new is not None:
            self._tell_affected(self.claims.put_tunnel(new))
        else:
            self._tell_affected(self.claims.drop_tunnel(str(change.key)) | {str(change.key)})

    def _pool_changed(self, change: Change[Seen[ExitPool]]) -> None:
        if _says_the_same(change):
            return
        new = change.new.resource if change.new is not None else None
        affected = self.claims.put_pool(new) if new is not None else self.claims.drop_pool(change.key.name)
        self._tell_affected(affected)

    def _reservation_changed(self, change: Change[Seen[HostnameReservation]]) -> None:
        old = change.old.resource if change.old is not None else None
        new = change.new.resource if change.new is not None else None
        if not _says_the_same(change):
            affected: set[str] = set()
            if old is not None and new is None:
                affected |= self.claims.drop_reservation(old.spec.hostname)
            if new is not None:
                affected |= self.claims.put_reservation(new)
            self._tell_affected(affected)
        before, after = (seen.claim if seen is not None else "" for seen in (change.old, change.new))
        if before == after and (not before or _says_the_same(change)):
            return
        claimed = _claim_of(before)
        if claimed is not None:
            self._claimed.pop(claimed.hostname, None)
        claim = _claim_of(after)
        if claim is not None and new is not None and claim.hostname == new.spec.hostname:
            self._claimed[claim.hostname] = claim
        self._rebuild()

    def _namespace_changed(self, change: Change[Mapping[str, str]]) -> None:
        self._tell_affected(self.claims.put_namespace(change.key.name, change.new or {}))

    def _token_changed(self, change: Change[Seen[AgentToken]]) -> None:
        record = _record_of(change.key, change.new)
        before = self._id_by_key.pop(change.key, "")
        if before and (record is None or record.id != before):
            if record is None and change.new is not None:
                # Still there, only not readable or not filled in yet: what it was holds.
                self._id_by_key[change.key] = before
                return
            self._records.pop(before, None)
            self._token_keys.pop(before, None)
            self._ended[before] = self._clock()
            log.info("cluster token %s of %s ended", before, change.key)
        if record is not None:
            if before == record.id and self._records.get(record.id) == record:
                self._id_by_key[change.key] = record.id
                return  # when it was used, say
            self._records[record.id] = record
            self._token_keys[record.id] = change.key
            self._id_by_key[change.key] = record.id
            self._ended.pop(record.id, None)
        self._rebuild()

    def _rebuild(self) -> None:
        now = self._clock()
        self._ended = {id_: since for id_, since in self._ended.items() if now < since + ENDED_TOKEN_KEPT_S}
        state = StoreState(
            tokens=dict(self._records),
            ended_tokens=dict(self._ended),
            claims=dict(self._claimed),
            signing_keys=self.secrets.signing_keys,
        )
        if state == self._state:
            return
        self._state = state
        for changed in tuple(self._watchers):
            changed()

    def _tell_affected(self, affected: set[str]) -> None:
        if affected:
            for tell in self._affected:
                tell(affected)

    # ---- Secrets and times

    def _take_secrets(self) -> None:
        """What cannot be read, or is gone, stays as it was."""
        found: dict[str, dict[str, bytes]] = {}
        signing: tuple[SigningKey, ...] = self.secrets.signing_keys
        for name, informer in self._system_secrets.items():
            secret = informer.get(name, self.namespace)
            if secret is None:
                continue
            try:
                found[name] = secret_data(secret)
                if name == SIGNING_KEYS_SECRET:
                    signing = signing_keys(secret) or signing
            except ConfigError as error:
                log.warning("the Secret %s cannot be read: %s; going on with what it was", name, error)
                found.pop(name, None)
        ca, tls = found.get(CA_SECRET, {}), found.get(CONTROL_TLS_SECRET, {})
        has_ca = bool(ca.get("ca.crt")) and bool(ca.get("ca.key"))
        read = SystemSecrets(
            Authority(ca["ca.crt"], ca["ca.key"]) if has_ca else self.secrets.authority,
            tls.get("tls.crt") or self.secrets.control_cert_pem,
            tls.get("tls.key") or self.secrets.control_key_pem,
            signing,
        )
        if read != self.secrets:
            self.secrets = read
            self._rebuild()
            for changed in self._secrets_changed:
                changed()

    async def _write_used(self) -> None:
        while True:
            await asyncio.sleep(USED_EVERY_S)
            for token_id, when in tuple(self._used.items()):
                key = self._token_keys.get(token_id)
                if key is None or when - self._written_used.get(token_id, 0.0) < USED_EVERY_S:
                    continue
                try:
                    await self.cluster.patch_status(
                        AGENT_TOKEN, key.name, key.namespace, {"lastUsed": timestamp(when)}, manager=MANAGER
                    )
                except ClusterError as error:
                    log.debug("when %s was used could not be written: %s", key, error)
                    break
                self._written_used[token_id] = when
            self._used = {id_: when for id_, when in self._used.items() if self._written_used.get(id_) != when}


_SECRETS: Final = (CA_SECRET, SIGNING_KEYS_SECRET, CONTROL_TLS_SECRET)


def _claim_of(text: str) -> Claim | None:
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=Claim)
    except UNREADABLE:
        return None


def _record_of(key: Key, seen: Seen[AgentToken] | None) -> TokenRecord | None:
    """What counts of an AgentToken; None until the operator has made its Secret."""
    if seen is None or seen.resource is None:
        return None
    token_id, secret_hash = seen.status.get("tokenId"), seen.status.get("secretHash")
    if not token_id or not secret_hash:
        return None
    spec = seen.resource.spec
    patterns: Iterable[str] = spec.tunnels or ("*",)
    return TokenRecord(
        id=str(token_id),
        secret_hash=str(secret_hash),
        label=str(key),
        tunnels=tuple(f"{key.namespace}/{pattern}" for pattern in patterns),
        hostnames=tuple(spec.hostnames),
        expires=parse_timestamp(spec.expires) if spec.expires is not None else 0.0,
    )

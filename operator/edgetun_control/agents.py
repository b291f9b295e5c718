"""Shows agents in the cluster: an `Agent` resource per agent, written when it registers, moves or leaves, and a Lease that says
that it lives.

Writes are bounded: those of one agent are gathered for a moment, only `CONCURRENT` are under way at one time, a Lease is renewed
every `LEASE_EVERY_S`. Nothing is written per heartbeat or per request, and an API server that is away loses nothing: what should
be there is remembered, and written when it is back.

An agent may register at one replica and have its sessions at nodes that follow others. So each replica writes what it knows: the
spec when it saw the registration, of the status its own nodes, and it leaves the nodes of others as it finds them. Where the agent is placed
is written once per registration, by who saw it and under a name of its own, so that no later write of another replica, which may not have
heard of it yet, takes it back.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from edgetun_cluster.client import Cluster
from edgetun_cluster.errors import AlreadyExists, ClusterError
from edgetun_cluster.informer import Change, Informer
from edgetun_cluster.kinds import AGENT, AGENT_TOKEN, LEASE, Key, Object
from edgetun_cluster.leases import lease_object
from edgetun_control.exits.fleet import FollowingNode, SilentFleetListener
from edgetun_control.exits.orders import AgentSeen, SessionSeen, pod_stem
from edgetun_control.gathered_writes import GatheredWrites
from edgetun_control.placement import Placed
from edgetun_control.stores.kubernetes import MANAGER, KubernetesStore
from edgetun_core.api.conditions import ConditionType, Reason, parse_timestamp, timestamp
from edgetun_core.control_stream import SessionInfo
from edgetun_core.credentials import TokenRecord
from edgetun_core.enrollment import Endpoint, EnrollRequest
from edgetun_core.fleet_identity import ExitNodeName, inner_name

log = logging.getLogger("edgetun.control.agents")

CONCURRENT: Final = 8
TRY_AGAIN_S: Final = 2.0
LEASE_EVERY_S: Final = 30.0
LEASE_S: Final = 90.0
LEASE_LABEL: Final = "edgetun.dev/agent"
LEASE_SELECTOR: Final = f"{LEASE_LABEL}=true"
SWEEP_EVERY_S: Final = 30.0
FORGET_S: Final = 3600.0
"""An agent that left this long ago is no longer shown."""
NODE_AWAY_S: Final = 30.0
MOST_TUNNELS: Final = 256
MOST_NODES: Final = 16
MOST_PLACED: Final = 512
"""Characters."""
PLACEMENT_MANAGER: Final = f"{MANAGER}-placement"

Shown = Callable[[str, dict[ExitNodeName, tuple[Endpoint, int]], frozenset[str]], None]

AgentKey = tuple[str, str]
"""Id of the cluster token and of the agent."""


@dataclass(slots=True)
class _Entry:
    token: Key
    agent_id: str
    name: str
    services: tuple[str, ...] = ()
    software: str = ""
    pool: str = ""
    region: str = ""
    placed: str = ""
    has_been_placed: bool = False
    """Here, and the resource does not say so yet."""
    rtt_s: float = 0.0
    sessions: dict[str, tuple[FollowingNode, SessionInfo]] = field(default_factory=dict)
    written: Object | None = None
    """What the resource says, as far as it was written from here."""
    nodes_told: set[str] = field(default_factory=set)
    """Nodes that this replica has shown: theirs is the part of the status that is ours to change."""
    uid: str = ""
    lease_at: float = float("-inf")
    has_registered: bool = False
    """Here, and not at another replica."""


class AgentBook(SilentFleetListener):
    """Hears of registrations and sessions; `start` begins to write."""

    def __init__(
        self,
        cluster: Cluster,
        store: KubernetesStore,
        *,
        clock: Callable[[], float] = time.time,
        lease_every_s: float = LEASE_EVERY_S,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._clock = clock
        self._lease_every_s = lease_every_s
        self._entries: dict[AgentKey, _Entry] = {}
        self._writes = GatheredWrites(
            self._write_and_renew, self._describe, log, concurrent=CONCURRENT, again_s=TRY_AGAIN_S
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._agents: Informer[Object] = Informer(cluster, AGENT)
        self._agents.on_change(self._agent_changed)
        self._key_by_name: dict[Key, AgentKey] = {}
        self.on_shown: Shown = lambda *_: None
        """Hears of the exit nodes that each agent's status names, also those that other replicas wrote."""
        self.writes_total = 0
        self.lease_writes_total = 0

    def start(self) -> None:
        self._agents.start()
        self._tasks = [
            asyncio.create_task(self._writes.run(), name="write agents"),
            asyncio.create_task(self._sweep_now_and_then(), name="look at agents"),
        ]

    async def close(self) -> None:
        """Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        await self._agents.close()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def failures_total(self) -> int:
        """Writes that failed."""
        return self._writes.failures_total

    def whereabouts(self) -> Iterator[AgentSeen]:
        """Agents with sessions at nodes that follow this replica: where they are, and where control has placed them."""
        for (token_id, agent_id), entry in self._entries.items():
            if not entry.sessions:
                continue
            shown = (self._agents.get(entry.name, entry.token.namespace) or {}).get("status") or {}
            placed = entry.placed or str(shown.get("placed") or "")
            yield AgentSeen(
                f"{token_id}/{agent_id}",
                frozenset(filter(None, placed.split(","))),
                tuple(SessionSeen(node.name, session_id) for session_id, (node, _) in entry.sessions.items()),
                frozenset(map(str, shown.get("nodes") or ())) if shown.get("sessions") else frozenset(),
            )

    # ---- what happens

    def registered(self, request: EnrollRequest, token: TokenRecord, services: tuple[str, ...], placed: Placed) -> None:
        """An agent registered or renewed."""
        entry = self._entry(token.id, request.agent_id)
        if entry is None:
            return
        entry.has_registered = True
        entry.services = services[:MOST_TUNNELS]
        entry.software = request.software[:128]
        entry.placed = placed.placed[:MOST_PLACED]
        entry.has_been_placed = True
        first = placed.placed.partition(",")[0]
        entry.pool, _, entry.region = first.partition("/")
        if placed.rtt_s is not None:
            entry.rtt_s = placed.rtt_s
        self._mark(token.id, request.agent_id)

    def session_opened(self, node: FollowingNode, session: SessionInfo) -> None:
        if not self._store.note_sessions_token(session.token_id):
            return
        entry = self._entry(session.token_id, session.agent_id)
        if entry is None:
            return
        entry.sessions[session.session_id] = node, session
        entry.software = entry.software or session.software[:128]
        if not entry.rtt_s or session.rtt_s:
            entry.rtt_s = session.rtt_s or entry.rtt_s
        self._mark(session.token_id, session.agent_id)

    def session_closed(self, node: FollowingNode, session: SessionInfo) -> None:
        entry = self._entries.get((session.token_id, session.agent_id))
        held = entry.sessions.get(session.session_id) if entry is not None else None
        # A session that was opened anew at another node keeps its id.
        if entry is not None and held is not None and held[0] is node:
            del entry.sessions[session.session_id]
            self._mark(session.token_id, session.agent_id)

    def node_left(self, node: FollowingNode) -> None:
        """A node whose stream broke serves on: its sessions count until it had time to come back, here or at another replica."""
        asyncio.get_running_loop().call_later(NODE_AWAY_S, self._forget_node, node)

    def _forget_node(self, node: FollowingNode) -> None:
        # Nothing is written: another replica may have the node by now. The sweep says who is gone, by the Leases.
        for entry in self._entries.values():
            for session_id in [one for one, (held_by, _) in entry.sessions.items() if held_by is node]:
                del entry.sessions[session_id]
                entry.nodes_told.discard(node.name.node)
                entry.written = None

    def _agent_changed(self, change: Change[Object]) -> None:
        """Another replica wrote at the same time as we did: what it overwrote of ours is written again."""
        status = (change.new.get("status") or {}) if change.new is not None else {}
        shares = _shares_shown(status)
        holders: dict[ExitNodeName, tuple[Endpoint, int]] = {}
        for relay, share in shares.items():
            parsed = parse_relay(relay)
            if parsed is not None:
                holders[parsed[0]] = parsed[1], share
        self.on_shown(f"{change.key.namespace}/{change.key.name}", holders, frozenset(status.get("serves") or ()))
        key = self._key_by_name.get(change.key)
        entry = self._entries.get(key) if key is not None else None
        if key is None or entry is None or change.new is None or entry.written is None:
            return
        before, now = ((one or {}).get("status") or {} for one in (change.old, change.new))
        if now.get("placed") != before.get("placed") and not entry.has_been_placed:
            where = str(now.get("placed") or "")
            if where != entry.placed:  # it has registered anew, at another replica
                entry.placed = where
                entry.written = None
                self._mark(*key)
        if _is_overwritten(entry, now):
            entry.written = None
            self._mark(*key)

    def _entry(self, token_id: str, agent_id: str) -> _Entry | None:
        entry = self._entries.get((token_id, agent_id))
        if entry is None:
            token = self._store.key_of_token(token_id)
            if token is None:
                return None
            entry = self._entries[token_id, agent_id] = _Entry(token, agent_id, agent_name(token.name, agent_id))
            self._key_by_name[Key(token.namespace, entry.name)] = (token_id, agent_id)
        return entry

    def _mark(self, token_id: str, agent_id: str) -> None:
        self._writes.mark((token_id, agent_id))

    # ---- writing

    async def _write_and_renew(self, key: AgentKey) -> None:
        entry = self._entries.get(key)
        if entry is not None:
            await self._write(entry)
            if entry.sessions:
                await self._renew(entry)

    def _describe(self, key: AgentKey) -> str:
        entry = self._entries.get(key)
        return f"agent {key[1] if entry is None else entry.name}"

    async def _write(self, entry: _Entry) -> None:
        # Our copy may be behind; what is missed so, `_agent_changed` mends when the watch brings it.
        stands = self._agents.get(entry.name, entry.token.namespace)
        wanted = self._wanted(entry, ((stands or {}).get("status") or {}))
        is_said = entry.written is not None and _without_rtt(entry.written) == _without_rtt(wanted)
        if stands is not None and is_said and not entry.has_been_placed:
            return
        if stands is None or entry.has_registered:
            stands = await self._write_spec(entry, wanted["spec"])
            if stands is None:
                return  # the token is gone, and its agents go with it
        entry.uid = stands["metadata"]["uid"]
        if entry.has_been_placed:
            where = entry.placed
            if where != ((stands.get("status") or {}).get("placed") or ""):
                await self._cluster.apply_status(AGENT, stands, {"placed": where}, manager=PLACEMENT_MANAGER)
            entry.has_been_placed = entry.placed != where
        if entry.sessions or entry.nodes_told or not stands.get("status"):
            status = wanted["status"]
            status["observedGeneration"] = stands["metadata"].get("generation") or 0
            status["conditions"] = self._conditions(bool(status["sessions"]), stands)
            stands = await self._cluster.apply_status(AGENT, stands, status, manager=MANAGER)
            entry.nodes_told |= {node.name.node for node, _ in entry.sessions.values()}
        self.writes_total += 1
        entry.written = wanted
        # Another replica's write may have come in after ours before we heard of our own.
        now = self._agents.get(entry.name, entry.token.namespace)
        if (
            now is not None
            and stands is not None
            and _is_newer(now, stands)
            and _is_overwritten(entry, now.get("status") or {})
        ):
            entry.written = None
            self._mark(*self._key_by_name[Key(entry.token.namespace, entry.name)])

    async def _write_spec(self, entry: _Entry, spec: Object) -> Object | None:
        uid = await self._uid_of(entry.token)
        if not uid:
            return None
        owner = {
            "apiVersion": AGENT_TOKEN.api_version,
            "kind": AGENT_TOKEN.kind,
            "name": entry.token.name,
            "uid": uid,
        }
        meta = {"name": entry.name, "namespace": entry.token.namespace, "ownerReferences": [owner]}
        obj: Object = {"metadata": meta, "spec": spec}
        if entry.has_registered:
            return await self._cluster.apply(AGENT, obj, manager=MANAGER)
        try:
            return await self._cluster.create(AGENT, obj, manager=MANAGER)
        except AlreadyExists:
            # The replica where it registered was quicker, and knows more.
            return await self._cluster.get(AGENT, entry.name, entry.token.namespace)

    async def _uid_of(self, token: Key) -> str:
        """Of an AgentToken; empty when it is gone. A thousand agents of one token are no thousand questions."""
        seen = self._store.tokens.get(token.name, token.namespace)
        if seen is not None and seen.uid:
            return seen.uid
        found = await self._cluster.get(AGENT_TOKEN, token.name, token.namespace)
        return str(found["metadata"]["uid"]) if found is not None else ""

    def _wanted(self, entry: _Entry, shown: Mapping[str, Any]) -> Object:
        """`shown` is the status as it stands, with nodes of other replicas."""
        sessions = [info for _, info in entry.sessions.values()]
        ours = {node.name.node for node, _ in entry.sessions.values()}
        others = set(shown.get("nodes") or ()) - ours - entry.nodes_told if shown.get("sessions") else set()
        shares = _shares_here(entry)
        serves = {tunnel for info in sessions for tunnel in info.tunnels}
        if others:
            shares |= {relay: share for relay, share in _shares_shown(shown).items() if _node_of(relay) in others}
            serves |= set(shown.get("serves") or ())
        where = [node.name for node, _ in entry.sessions.values()]
        pool, region = entry.pool, entry.region
        if where and (not pool or all((name.pool, name.region) != (pool, region) for name in where)):
            pool, region = where[0].pool, where[0].region
        if others:
            pool, region = shown.get("pool") or pool, shown.get("region") or region
        home = (entry.placed or str(shown.get("placed") or "")).partition(",")[0].partition("/")
        stems = {name.rpartition("-")[0].rpartition("-")[0] for name in others}
        if home[2] and (
            any((one.pool, one.region) == (home[0], home[2]) for one in where) or pod_stem(home[0], home[2]) in stems
        ):
            pool, region = home[0], home[2]
        rtts = [info.rtt_s for info in sessions if info.rtt_s > 0]
        rtt_s = min(rtts, default=entry.rtt_s)
        tunnels = entry.services or ()
        transports = {info.transport for info in sessions}
        if others:
            transports |= set(filter(None, str(shown.get("transport") or "").split(",")))
        status: dict[str, Any] = {
            "pool": pool,
            "region": region,
            "nodes": sorted(ours | others)[:MOST_NODES],
            "relays": sorted(shares)[:MOST_NODES],
            "serves": sorted(serves)[:MOST_TUNNELS],
            "transport": ",".join(sorted(transports)),
            "rtt": f"{rtt_s * 1000:.3g}ms" if rtt_s > 0 else str(shown.get("rtt") or ""),
            "sessions": len(sessions) + len(others),
        }
        if set(shares.values()) - {1}:
            status["shares"] = [shares[relay] for relay in status["relays"]]
        since = [timestamp(min(info.since for info in sessions))] if sessions else []
        if others and shown.get("since"):
            since.append(str(shown["since"]))
        if since:
            status["since"] = min(since)
        spec = {
            "agentId": entry.agent_id,
            "token": entry.token.name,
            "tunnels": sorted(name.partition("/")[2] for name in tunnels),
            "software": entry.software,
        }
        return {"spec": spec, "status": status}

    def _conditions(self, is_connected: bool, applied: Object) -> list[Object]:
        before = {one["type"]: one for one in (applied.get("status") or {}).get("conditions") or ()}
        reason = Reason.AGENT_CONNECTED if is_connected else Reason.AGENT_GONE
        said = "True" if is_connected else "False"
        message = "" if is_connected else "the agent holds no session; start edgetun-agent again"
        found = []
        for type_, why in ((ConditionType.AGENT_CONNECTED, reason), (ConditionType.READY, reason)):
            old = before.get(type_)
            since = old["lastTransitionTime"] if old and old["status"] == said else timestamp(self._clock())
            if type_ == ConditionType.READY and is_connected:
                why = Reason.READY
            found.append(
                {
                    "type": type_,
                    "status": said,
                    "reason": why,
                    "message": message,
                    "observedGeneration": applied["metadata"].get("generation") or 0,
                    "lastTransitionTime": since,
                }
            )
        return found

    async def _renew(self, entry: _Entry) -> None:
        """At most one write of an agent's Lease per `lease_every_s`."""
        now = self._clock()
        if now - entry.lease_at < self._lease_every_s or not entry.uid:
            return
        entry.lease_at = now
        lease = lease_object(entry.name, entry.token.namespace, entry.agent_id, LEASE_S, now)
        lease["metadata"]["labels"] = {"app.kubernetes.io/part-of": "edgetun", LEASE_LABEL: "true"}
        lease["metadata"]["ownerReferences"] = [
            {"apiVersion": AGENT.api_version, "kind": AGENT.kind, "name": entry.name, "uid": entry.uid}
        ]
        await self._cluster.apply(LEASE, lease, manager=MANAGER)
        self.lease_writes_total += 1

    # ---- looking

    async def _sweep_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_EVERY_S, self._lease_every_s))
            now = self._clock()
            due = [
                key
                for key, entry in self._entries.items()
                if entry.sessions and now - entry.lease_at >= self._lease_every_s
            ]
            await self._writes.write(due)
            for key in [key for key, entry in self._entries.items() if self._store.key_of_token(key[0]) is None]:
                entry = self._entries.pop(key)
                self._key_by_name.pop(Key(entry.token.namespace, entry.name), None)
            try:
                await self._end_those_gone()
            except ClusterError as error:
                log.debug("agents that have gone cannot be told: %s; looking again", error)
            except Exception:
                # The edge of a task: without it, no Lease would be renewed any more.
                log.exception("looking at agents failed")

    async def _end_those_gone(self) -> None:
        """Agents that nobody serves any more: their Lease has run out, whichever replica renewed it."""
        mine = {(entry.token.namespace, entry.name) for entry in self._entries.values() if entry.sessions}
        leases: dict[tuple[str, str], str] | None = None
        for agent in self._agents:
            meta, status = agent["metadata"], agent.get("status") or {}
            where = meta["namespace"], meta["name"]
            if where in mine:
                continue
            if not status.get("sessions"):
                ready = next(
                    (one for one in status.get("conditions") or () if one["type"] == ConditionType.READY), None
                )
                if ready is not None and parse_timestamp(ready["lastTransitionTime"]) + FORGET_S < self._clock():
                    await self._cluster.delete(AGENT, meta["name"], meta["namespace"], uid=meta["uid"])
                continue
            if leases is None:
                leases = await self._leases()
            renewed = leases.get((meta["namespace"], meta["name"]))
            if renewed and parse_timestamp(renewed) + LEASE_S > self._clock():
                continue
            if not renewed and parse_timestamp(meta["creationTimestamp"]) + LEASE_S > self._clock():
                continue
            conditions = self._conditions(False, agent)
            nobody: Object = {"sessions": 0, "nodes": [], "relays": [], "serves": [], "transport": ""}
            now_gone = {**status, **nobody, "conditions": conditions}
            for name in ("since", "placed", "shares"):
                now_gone.pop(name, None)
            await self._cluster.apply_status(AGENT, agent, now_gone, manager=MANAGER)
            self.writes_total += 1

    async def _leases(self) -> dict[tuple[str, str], str]:
        """When each agent's Lease was renewed, in one question for all of them."""
        found = await self._cluster.list(LEASE, label_selector=LEASE_SELECTOR)
        return {
            (lease["metadata"]["namespace"], lease["metadata"]["name"]): str(
                (lease.get("spec") or {}).get("renewTime") or ""
            )
            for lease in found.items
        }


def agent_name(token: str, agent_id: str) -> str:
    """Name of an agent's resource: its id as far as names allow, and what keeps two tokens' agents apart."""
    stem = re.sub(r"[^a-z0-9-]+", "-", agent_id.lower()).strip("-")[:50].strip("-") or "agent"
    return f"{stem}-{hashlib.sha256(f'{token}/{agent_id}'.encode()).hexdigest()[:6]}"


def render_relay(name: ExitNodeName, relay: Endpoint) -> str:
    """As it stands in an agent's status; see `parse_relay`."""
    host = f"[{relay.host}]" if ":" in relay.host else relay.host
    return f"{name}@{host}:{relay.tls_port}"


def parse_relay(text: str) -> tuple[ExitNodeName, Endpoint] | None:
    """Which exit node, and where others reach it; None for anything else."""
    who, _, where = text.partition("@")
    host, _, port = where.rpartition(":")
    parts = who.split("/")
    if len(parts) != 3 or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    name = ExitNodeName(*parts)
    return name, Endpoint(host.strip("[]"), int(port), 0, name.node, inner_name(name.pool, name.region))


def _shares_here(entry: _Entry) -> dict[str, int]:
    """By the way to each node that follows here: the summed weight of the agent's sessions there, negative when all are on standby."""
    found: dict[str, list[int]] = {}
    for node, info in entry.sessions.values():
        if node.hello.relay is not None:
            found.setdefault(render_relay(node.name, node.hello.relay), []).append(info.share)
    return {relay: sum(share for share in shares if share > 0) or sum(shares) for relay, shares in found.items()}


def _shares_shown(status: Mapping[str, Any]) -> dict[str, int]:
    """The same as an agent's status has it. A replica of an earlier version wrote no shares."""
    relays, shares = status.get("relays") or (), status.get("shares") or ()
    if len(shares) != len(relays):
        shares = [1] * len(relays)
    return {str(relay): int(share) for relay, share in zip(relays, shares, strict=True)}


def _is_overwritten(entry: _Entry, status: Mapping[str, Any]) -> bool:
    """Whether an agent's status lacks what this replica knows of its nodes, or has what is over."""
    shown = set(status.get("nodes") or ())
    if len(shown) >= MOST_NODES:
        return False
    ours = {node.name.node for node, _ in entry.sessions.values()}
    shares = _shares_shown(status)
    is_told_otherwise = any(shares.get(relay) != share for relay, share in _shares_here(entry).items())
    return not ours <= shown or bool(shown & (entry.nodes_told - ours)) or is_told_otherwise


def _is_newer(one: Object, other: Object) -> bool:
    """Versions of a resource grow; what is no number is taken for newer."""
    versions = [str(obj["metadata"].get("resourceVersion") or "") for obj in (one, other)]
    if not all(version.isdecimal() for version in versions):
        return versions[0] != versions[1]
    return int(versions[0]) > int(versions[1])


def _node_of(relay: str) -> str:
    return relay.partition("@")[0].rpartition("/")[2]


def _without_rtt(written: Object) -> Object:
    """What makes a write worth it: a round trip that wavers does not."""
    status = {name: value for name, value in written["status"].items() if name not in _WAVERING}
    return {"spec": written["spec"], "status": status}


_WAVERING: Final = frozenset({"rtt", "conditions", "observedGeneration"})

"""The mesh: sessions with other exit nodes, over which requests are relayed to whoever holds a session of their tunnel.

Peers are dialled when they are first needed, over TLS at which both ends show their certificate; one session carries both
directions, whoever dialled. Nobody is dialled who is not needed, and a session that carried nothing for `IDLE_S` is closed by the end
that dialled it. What is not known is asked: `Remote.pick` starts the asking, and the visitors who wait are woken when it is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from edgetun_core import __version__
from edgetun_core.control_stream import Peers
from edgetun_core.control_stream.messages import MOST_TUNNELS_PER_MESSAGE
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import AuthError, Draining, EdgetunError, NotFound, SessionLost, UpstreamUnreachable
from edgetun_core.fleet_identity import ExitNodeName, PeerContexts, exit_node_of
from edgetun_core.pki import ServerIdentity
from edgetun_core.purge import PurgeOrder, PurgeReport
from edgetun_core.transport.link import Link, LinkUser
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.transport.tls import TlsLink
from edgetun_core.transport.tls_dial import dial_tls
from edgetun_core.transport.tls_listen import TlsListener, listen_tls
from edgetun_core.wire.hello import Hello, Refusal, Welcome
from edgetun_exitnode.cache.store import Store
from edgetun_exitnode.mesh.calls import (
    ALIVE,
    HOLDERS,
    INVALIDATE,
    MOST_HOLDERS,
    PURGE,
    SPEND,
    STORED,
    TELL,
    Holder,
    HoldersAnswer,
    Invalidated,
    Purging,
    Spending,
    Told,
    Wanted,
    ask_holders,
    call,
    read,
    send_invalidated,
    tell,
    unknown_call,
)
from edgetun_exitnode.mesh.holders import Holders
from edgetun_exitnode.mesh.lateness import TICK_S, Lateness
from edgetun_exitnode.mesh.links import Accepted, Dialled
from edgetun_exitnode.mesh.outliers import SLOW_S, Outliers
from edgetun_exitnode.mesh.ownership import rank_owners
from edgetun_exitnode.mesh.peer import Peer
from edgetun_exitnode.mesh.purging import Spreading
from edgetun_exitnode.mesh.remote import Remote
from edgetun_exitnode.mesh.serving import Serving, Tunnels
from edgetun_exitnode.mesh.sharing import Sharing
from edgetun_exitnode.mesh.siblings import Siblings
from edgetun_exitnode.pipeline.forward import Session
from edgetun_exitnode.pipeline.limits import RateLimit

log = logging.getLogger("edgetun.exitnode.mesh")

DIAL_TIMEOUT_S: Final = 1.5
IDLE_S: Final = 120.0
LOOK_EVERY_S: Final = 15.0
MOST_ASKED: Final = 16
"""Peers that are asked who holds a tunnel, and told what changed while control is away."""
ASK_AGAIN_FIRST_S: Final = 1.0
ASK_AGAIN_MOST_S: Final = 30.0
"""How long what was asked is not asked again; longer each time while nobody holds it, for a laptop may be off for hours."""
ASK_FOR_PRIMARY_S: Final = 10.0
"""The same where visitors are served meanwhile, by a standby of this node."""
MOST_ASKED_FOR: Final = 10_000
TELL_S: Final = 0.05
PROBE_S: Final = 1.0
ACTIVE_S: Final = 10.0
"""How long after its last exchange a peer is still probed."""
LAGGING_S: Final = 0.2
"""A node whose own loop was late by more judges nobody: it could not tell a slow peer from its own slowness."""
FORGET_AFTER: Final = 4
"""Failed dials of a peer that control does not know (any more)."""
MAX_LINKS: Final = 4_096
FEATURE: Final = "relay"


class Mesh:
    """All of it for one exit node. `listen` where others shall reach it, `close` in the end."""

    def __init__(
        self,
        name: ExitNodeName,
        identity: ServerIdentity,
        ca_pem: Callable[[], bytes],
        holders: Holders,
        tunnels: Tunnels,
        *,
        wake: Callable[[str], None],
        clock: Callable[[], float],
        store: Store,
        purge: Callable[[PurgeOrder], PurgeReport],
        rates: Mapping[str, RateLimit],
        shares: Callable[[], dict[str, int]],
        share: Callable[[str], int],
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.holders = holders
        self.relay: Endpoint | None = None
        """Where others reach this node, once it listens."""
        self.is_draining = False
        self._served_before = 0
        self.asked_total = 0
        self.dials_failed = 0
        self._identity = identity
        self._contexts = PeerContexts(identity, ca_pem)
        self._tunnels = tunnels
        self._store = store
        self.purging = Spreading(self, purge)
        self.sharing = Sharing(self, rates)
        self.siblings = Siblings(self, store)
        self._stale: dict[str, dict[bytes, None]] = {}
        """Keys that their owners are to be told are stale, by owner."""
        self._wake = wake
        self.clock: Callable[[], float] = clock
        self._shares = shares
        self._share = share
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - which peers are asked is no secret
        self._peers: dict[str, Peer] = {}
        self._by_runner: dict[SessionRunner, Peer] = {}
        self._dialled: set[SessionRunner] = set()
        self._remotes: dict[str, Remote] = {}
        self._asking: set[str] = set()
        self._asked: dict[str, tuple[float, float]] = {}
        """Tunnels that were asked for: until when they are not again, and for how long that was."""
        self._told: dict[str, int] = {}
        self._telling: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: TlsListener | None = None
        self._all_closed: asyncio.Event | None = None
        self.outliers = Outliers()
        self._start(self._look_now_and_then(), "look at peers")
        self._start(self._probe_now_and_then(), "probe peers")

    async def listen(self, host: str, port: int, reached_at: Endpoint) -> int:
        """Takes sessions of other exit nodes; returns the port. Raises `ConfigError` when it cannot be used."""
        self._listener = await listen_tls(
            host,
            port,
            self._identity,
            self._accept,
            max_links=MAX_LINKS,
            handshake_timeout_s=5.0,
            reuse_port=False,
            other_protocols={},
            select_context=self._contexts.server,
            entrance=self._contexts.entrance,
        )
        self.relay = msgspec.structs.replace(reached_at, tls_port=reached_at.tls_port or self._listener.port)
        return self._listener.port

    async def drain(self, deadline_s: float) -> None:
        """After the fronts are drained: what was relayed here may end until the deadline, then all is closed."""
        runners = list(self._by_runner)
        for runner in runners:
            runner.drain(deadline_s, "the exit node is going away")
        if runners:
            self._all_closed = asyncio.Event()
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    await self._all_closed.wait()
        await self.close()

    async def close(self) -> None:
        """Idempotent."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self.sharing.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for runner in list(self._by_runner):
            runner.close(Draining("the exit node went away"))
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()
        elif self._by_runner:
            await asyncio.sleep(0)

    # ---- what the pipeline asks

    def remote(self, tunnel: str) -> Remote:
        """The exit nodes that hold the tunnel, as the pipeline sees them."""
        found = self._remotes.get(tunnel)
        if found is None:
            found = self._remotes[tunnel] = Remote(self, tunnel)
        return found

    def forget(self, tunnels: Iterable[str]) -> None:
        """These tunnels are no longer configured."""
        for tunnel in tunnels:
            self._remotes.pop(tunnel, None)
            self._asked.pop(tunnel, None)

    @property
    def tunnels(self) -> list[str]:
        """Every tunnel that something is remembered of."""
        return list(self._remotes)

    def peer(self, node: str) -> Peer:
        found = self._peers.get(node)
        if found is None:
            found = self._peers[node] = Peer(node)
        return found

    def share(self, tunnel: str) -> int:
        """This node's own share of the tunnel (`PeerChange.shares`); 0 when it holds no session, or goes away."""
        return 0 if self.is_draining else self._share(tunnel)

    def invalidated(self, tunnel: str, keys: list[bytes]) -> None:
        """An unsafe request made these keys stale: their owners must not answer with what they hold, nor who owns them next with copies."""
        candidates = self.remote(tunnel).candidates()
        if not candidates:
            return
        if not self._stale:
            asyncio.get_running_loop().call_soon(self._tell_stale)
        for key in keys:
            for owner in rank_owners(key, candidates)[:2]:
                if owner != str(self.name):
                    self._stale.setdefault(owner, {})[key] = None

    def _tell_stale(self) -> None:
        stale, self._stale = self._stale, {}
        for owner, keys in stale.items():
            peer = self.peer(owner)
            if peer.runner is not None:
                send_invalidated(peer.runner, keys)
            elif self.dial(peer):
                peer.stale.update(keys)

    def account_of(self, tunnel: str) -> str | None:
        """See `sharing.Accounts`."""
        candidates = self.remote(tunnel).candidates()
        if not candidates:
            return None
        owner = rank_owners(b"rates " + tunnel.encode(), candidates)[0]
        return owner if owner != str(self.name) else None

    def is_asking(self, tunnel: str) -> bool:
        return tunnel in self._asking

    # ---- from control

    def take(self, message: Peers) -> None:
        """Control's word of who holds what."""
        before = dict(self.holders.peers)
        for tunnel in self.holders.take(message, self.clock()):
            self._asked.pop(tunnel, None)
            remote = self._remotes.get(tunnel)
            if remote is not None:
                remote.candidates()  # who owned what before is remembered
                self._wake(tunnel)
        for node, relay in before.items():
            peer = self._peers.get(node)
            if peer is None or self.holders.peers.get(node) == relay:
                continue
            peer.reached()  # another address is another chance
            if node not in self.holders.peers and not peer.runners and peer.dialling is None:
                del self._peers[node]
                self.outliers.forget(node)

    # ---- presence to peers

    def sessions_changed(self) -> None:
        """A session of an agent was opened or is gone; cheap, callable at any rate."""
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_S, self._tell_changes)

    def going_away(self) -> None:
        """Tells those we have sessions with that no more is to be relayed here. What comes all the same is served, or passed on."""
        self.is_draining = True
        for peer in self._linked():
            self._tell(peer, Told(self.relay, True))

    def _tell_changes(self) -> None:
        self._telling = None
        shares, before = self._shares(), self._told
        opened = sorted(tunnel for tunnel, share in shares.items() if before.get(tunnel) != share)
        closed = sorted(before.keys() - shares.keys())
        self._told = shares
        if not opened and not closed:
            return
        peers = self._linked()
        if not self.holders.is_complete:
            known = {peer.name for peer in peers}
            peers += [self.peer(node) for node in self._some_peers(MOST_ASKED) if node not in known]
        most = MOST_TUNNELS_PER_MESSAGE
        for start in range(0, max(len(opened), len(closed)), most):
            some = tuple(opened[start : start + most])
            weighed = {tunnel: shares[tunnel] for tunnel in some if shares[tunnel] != 1}
            told = Told(self.relay, self.is_draining, some, tuple(closed[start : start + most]), weighed)
            for peer in peers:
                self._tell(peer, told)

    def _tell(self, peer: Peer, told: Told) -> None:
        self._start(self._tell_one(peer, told), f"tell {peer.name}")

    async def _tell_one(self, peer: Peer, told: Told) -> None:
        runner = await self._reach(peer)
        if runner is not None:
            try:
                await tell(runner, told)
            except EdgetunError as error:
                log.debug("%s could not be told: %s", peer.name, error)

    def _linked(self) -> list[Peer]:
        return [peer for peer in self._peers.values() if peer.runners]

    def nodes_to_ask(self, holders: Iterable[str]) -> list[str]:
        """See `siblings.Peers`."""
        now = self.clock()
        nodes = dict.fromkeys(
            node
            for node in holders
            if node in self.holders.peers and (self.peer(node).runner or self.peer(node).may_dial(now))
        )
        nodes.update(dict.fromkeys(peer.name for peer in self._linked()))
        return [node for node in nodes if not self.outliers.is_out(node)][:MOST_ASKED]

    def _some_peers(self, most: int) -> list[str]:
        """Peers to ask: those we have sessions with first, then any."""
        linked = [peer.name for peer in self._linked()]
        now = self.clock()
        others = [
            node
            for node in self.holders.peers
            if node not in linked and (node not in self._peers or self._peers[node].may_dial(now))
        ]
        if len(others) > most:
            others = self._rng.sample(others, most)
        return (linked + others)[:most]

    # ---- asking

    def ask(self, tunnel: str) -> None:
        """Asks peers who holds the tunnel, unless it was just asked; the tunnel's visitors are woken when that is over."""
        now = self.clock()
        if tunnel in self._asking or self._asked.get(tunnel, (0.0, 0.0))[0] > now:
            return
        nodes = self._some_peers(MOST_ASKED)
        if not nodes:
            return
        self._asking.add(tunnel)
        self.asked_total += 1
        self._start(self._ask(tunnel, nodes), f"ask for {tunnel}")

    async def _ask(self, tunnel: str, nodes: list[str]) -> None:
        try:
            await asyncio.gather(*(self._ask_one(tunnel, self.peer(node)) for node in nodes))
        finally:
            self._asking.discard(tunnel)
            now = self.clock()
            _, before_s = self._asked.pop(tunnel, (0.0, 0.0))
            for_s = ASK_AGAIN_FIRST_S
            if self.share(tunnel):
                for_s = ASK_FOR_PRIMARY_S
            elif self.holders.is_complete and not self.holders.holders(tunnel, now):
                for_s = min(ASK_AGAIN_MOST_S, before_s * 2 or ASK_AGAIN_FIRST_S)  # control will tell
            self._asked[tunnel] = now + for_s, for_s
            if len(self._asked) > MOST_ASKED_FOR:
                del self._asked[next(iter(self._asked))]
            self._wake(tunnel)

    async def _ask_one(self, tunnel: str, peer: Peer) -> None:
        runner = await self._reach(peer)
        if runner is None:
            return
        try:
            answer = await ask_holders(runner, tunnel)
        except EdgetunError as error:
            log.debug("%s could not be asked: %s", peer.name, error)
            return
        now = self.clock()
        for holder in answer.others[:MOST_HOLDERS]:
            self._learn(holder.node, holder.relay)
            self.holders.answered(tunnel, holder.node, now, holder.share, is_own_word=False)
        if answer.is_held:
            self.holders.answered(tunnel, peer.name, now, answer.share)
        if answer.is_held or answer.others:
            self._asked.pop(tunnel, None)
            self._wake(tunnel)  # the first to know is enough

    # ---- answering

    def answer(self, node: str, path: bytes, tunnel: str, body: bytes) -> bytes:
        """Answers a peer's call. Raises `EdgetunError`."""
        if path == TELL:
            self._hear(node, read(body, Told))
            return b""
        if path == INVALIDATE:
            for key in read(body, Invalidated).keys:
                self._store.invalidate(key, self.clock())
            return b""
        if path == PURGE:
            return msgspec.json.encode(self.purging.take(node, read(body, Purging)))
        if path == STORED:
            return msgspec.json.encode(self.siblings.answer(read(body, Wanted)))
        if path == SPEND:
            return msgspec.json.encode(self.sharing.take(read(body, Spending)))
        if path == ALIVE:
            return b""
        if path == HOLDERS:
            others = (
                Holder(node, self.holders.peers[node], self.holders.share(tunnel, node))
                for node in self.holders.holders(tunnel, self.clock())[:MOST_HOLDERS]
            )
            share = self.share(tunnel)
            return msgspec.json.encode(HoldersAnswer(bool(share), tuple(others), share or 1))
        raise unknown_call(path)

    def _hear(self, node: str, told: Told) -> None:
        now = self.clock()
        if told.relay is not None:
            self._learn(node, told.relay)
        self.holders.drains(node, told.is_draining)
        for tunnel in told.closed:
            self.holders.closed(tunnel, node)
        for tunnel in told.opened:
            self.holders.answered(tunnel, node, now, told.shares.get(tunnel, 1))
            self._asked.pop(tunnel, None)
            if tunnel in self._remotes:
                self._wake(tunnel)

    def _learn(self, node: str, relay: Endpoint) -> None:
        name = ExitNodeName.parse(f"edgetun://exitnode/{node}")
        if name is not None and name.pool == self.name.pool and relay.tls_port:
            self.holders.meet(node, relay)

    # ---- sessions

    async def _reach(self, peer: Peer) -> SessionRunner | None:
        """A session with the peer, dialled if there is none; None when it cannot be reached now."""
        if peer.runner is None:
            self.dial(peer)
            if peer.dialling is not None:
                await asyncio.wait((peer.dialling,))
        return peer.runner

    def dial(self, peer: Peer) -> bool:
        """Begins to dial a peer, if it may be; whether it is being dialled."""
        if peer.dialling is None and peer.may_dial(self.clock()) and peer.name in self.holders.peers:
            peer.dialling = self._start(self._dial(peer), f"dial {peer.name}")
        return peer.dialling is not None

    async def _dial(self, peer: Peer) -> None:
        relay = self.holders.peers[peer.name]
        opened: asyncio.Future[SessionRunner] = asyncio.get_running_loop().create_future()
        opened.add_done_callback(lambda done: done.cancelled() or done.exception())
        listener = Dialled(self, peer, opened)
        hello = Hello(agent_id=str(self.name), software=f"edgetun/{__version__}", features=(FEATURE,))
        runner = SessionRunner.dialling(hello, Serving(self._tunnels, self.answer, peer.name), listener)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await dial_tls(
                    relay.host, relay.tls_port, self._contexts, runner, DIAL_TIMEOUT_S, relay.server_name or None
                )
                await opened
        except (EdgetunError, TimeoutError) as error:
            self.dials_failed += 1
            peer.failed(self.clock())
            log.info("exit node %s cannot be reached: %s", peer.name, error or "no answer in time")
            runner.close(UpstreamUnreachable("the exit node did not answer in time"))
            if self.holders.is_complete and peer.failures >= FORGET_AFTER and not self.holders.is_listed(peer.name):
                self.holders.forget(peer.name)  # only peers spoke of it, some time ago
        except asyncio.CancelledError:
            runner.close(None)
            raise
        finally:
            peer.dialling = None
            self._wake_for(peer)
        if peer.runner is not None:
            self._tell(peer, Told(self.relay, self.is_draining))

    def _wake_for(self, peer: Peer) -> None:
        wanted, peer.wanted_for = peer.wanted_for, set()
        for tunnel in wanted:
            self._wake(tunnel)

    def _accept(self) -> LinkUser:
        serving = Serving(self._tunnels, self.answer, "")
        return SessionRunner.accepting(self._decide, serving, Accepted(self, serving))

    def _decide(self, hello: Hello, link: Link) -> Welcome | Refusal:
        name = self.who(link)
        if name is None or FEATURE not in hello.features:
            return _refuse(AuthError("this port is for exit nodes of the same pool, who show their certificate"))
        return Welcome(node=str(self.name), software=f"edgetun/{__version__}", features=(FEATURE,))

    def who(self, link: Link | None) -> ExitNodeName | None:
        """Which exit node of the pool is at the other end; None: none of them."""
        name = exit_node_of(link.peer_certificate) if isinstance(link, TlsLink) else None
        return name if name is not None and name.pool == self.name.pool and name != self.name else None

    def opened(self, peer: Peer, runner: SessionRunner, is_dialled: bool) -> None:
        """A session is up."""
        peer.runners.append(runner)
        peer.reached()
        peer.used_at = self.clock()
        self._by_runner[runner] = peer
        if peer.stale:
            send_invalidated(runner, peer.stale)
            peer.stale.clear()
        if is_dialled:
            self._dialled.add(runner)
        self._wake_for(peer)

    def takes_no_more(self, peer: Peer, runner: SessionRunner) -> None:
        """It drains; `closed` follows."""
        if runner in peer.runners:
            peer.runners.remove(runner)

    @property
    def served_total(self) -> int:
        """Requests (and calls) taken from other exit nodes."""
        return self._served_before + sum(runner.exchanges_served for runner in self._by_runner)

    def closed(self, peer: Peer, runner: SessionRunner, error: EdgetunError | None) -> None:
        """A session is over."""
        was_up = self._by_runner.pop(runner, None) is not None
        self._served_before += runner.exchanges_served if was_up else 0
        self._dialled.discard(runner)
        self.takes_no_more(peer, runner)
        if self._all_closed is not None and not self._by_runner:
            self._all_closed.set()
        if was_up and isinstance(error, SessionLost):
            self._judged(self.outliers.failed(peer.name, self.clock()), peer)
        if was_up and error is not None and not isinstance(error, Draining):
            log.info("the session with exit node %s ended: %s", peer.name, error)
            if not peer.runners:
                peer.failed(self.clock())

    async def reach(self, node: str) -> SessionRunner | None:
        """A session with a peer, dialled if there is none; None when it cannot be reached now."""
        return await self._reach(self.peer(node))

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs something beside; its failure is logged, and it ends with the mesh."""
        self._start(work, name)

    def peer_of(self, runner: Session) -> Peer | None:
        return self._by_runner.get(runner) if isinstance(runner, SessionRunner) else None

    @property
    def links(self) -> int:
        """Sessions with other exit nodes that stand."""
        return len(self._by_runner)

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = self.clock()
            for runner in list(self._dialled):
                peer = self._by_runner[runner]
                if runner.in_flight or runner.exchanges_opened + runner.exchanges_served != peer.exchanges:
                    peer.exchanges = runner.exchanges_opened + runner.exchanges_served
                    peer.used_at = now
                elif now - peer.used_at > IDLE_S:
                    runner.drain(5.0, "not used")

    # ---- probing

    async def _probe_now_and_then(self) -> None:
        """Those that are used, and those that are out, are asked whether they live."""
        while True:
            await asyncio.sleep(PROBE_S)
            now = self.clock()
            for peer in list(self._peers.values()):
                runner = peer.runner
                if runner is not None:
                    opened = runner.exchanges_opened - peer.probes
                    if runner.in_flight or opened != peer.opened_before:
                        peer.opened_before, peer.active_until = opened, now + ACTIVE_S
                if not peer.is_probing and (now < peer.active_until or self.outliers.is_out(peer.name)):
                    peer.is_probing = True
                    self._start(self._probe(peer), f"probe {peer.name}")

    async def _probe(self, peer: Peer) -> None:
        watching: asyncio.Task[None] | None = None
        try:
            runner = await self._reach(peer)
            if runner is None:
                return  # a failed dial has its own consequences
            own = Lateness(self.clock)
            watching = asyncio.create_task(own.watch(), name="watch the clock")
            began = self.clock()
            peer.probes += 1
            try:
                await call(runner, b"GET", ALIVE)
            except EdgetunError as error:
                if isinstance(error, Draining | NotFound | SessionLost):
                    return  # it goes away in good order, or is older than this call, or its end is counted already
                await asyncio.sleep(2 * TICK_S)  # the clock's own watch may come after the time-out that it explains
                if own.late_s > LAGGING_S:
                    return  # this node stood still itself, and can blame nobody
                self._judged(self.outliers.failed(peer.name, self.clock()), peer)
                if self.outliers.is_out(peer.name) and runner in self._by_runner:
                    # What waits for it is asked elsewhere, where that does no harm; the next probe dials.
                    runner.close(SessionLost("the exit node does not answer"))
            else:
                took_s = self.clock() - began
                if took_s > SLOW_S:
                    await asyncio.sleep(2 * TICK_S)  # if it was this node's own slowness, the next tick knows
                if own.late_s <= LAGGING_S:
                    self._judged(self.outliers.answered(peer.name, took_s, self.clock()), peer)
        finally:
            peer.is_probing = False
            if watching is not None:
                watching.cancel()

    def _judged(self, has_changed: bool, peer: Peer) -> None:
        if has_changed:
            self.holders.epoch += 1
            is_out = self.outliers.is_out(peer.name)
            log.warning(
                "exit node %s %s", peer.name, "is left out: it fails, or is slow" if is_out else "does well again"
            )

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", task.get_name(), exc_info=task.exception())


def _refuse(error: EdgetunError) -> Refusal:
    return Refusal(code=error.presentation.close_code, reason=str(error), retry_after_s=-1.0)

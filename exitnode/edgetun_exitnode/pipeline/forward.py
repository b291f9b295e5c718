"""The last stage: chooses a session that serves the tunnel, and passes the exchange down.

Where this node holds no session, the exchange goes to another exit node that does (`Remote`), by the same rules.

Hot path of everything that is not answered at the edge. Per exchange: one small object, two clock reads, one memo lookup
for the head. While no session is up, visitors wait for at most `reconnect_grace_s`, bounded in number and in bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgetun_core.errors import Cancelled, Draining, EdgetunError, LimitExceeded, NoSession, SessionLost
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.http.stream import STREAMS
from edgetun_core.snapshot import RouteRule, TunnelRule
from edgetun_core.wire.exchanges import Incoming
from edgetun_exitnode.cache.freshness import Told
from edgetun_exitnode.observe.counters import Histogram, TunnelCounters
from edgetun_exitnode.pipeline.answer import refuse
from edgetun_exitnode.pipeline.forwarded import LoopDetected, build_forwarded_head
from edgetun_exitnode.pipeline.limits import TooManyConcurrent
from edgetun_exitnode.pipeline.relaying import MAX_HOPS, RelayedPeer, build_relayed_head, hops_of, take_told
from edgetun_exitnode.pipeline.splicing import Splicing
from edgetun_exitnode.stage_memos import StageMemos, next_serial

MAX_WAITING = 1_000
"""Visitors of one tunnel that wait for a session; one more is refused at once."""
MAX_HELD_BYTES = 320 * 1024
"""Body of a waiting visitor that is kept: what was under way when it was paused, which is one read (uvloop's: 250 KiB) and a little."""
MAX_TRIES = 3
MAX_RELAYED_TRIES = 6
"""The same for exit nodes: one that dies may be lost, dialled once more, and say that it holds nothing, before the next is asked."""
RELAY_WAIT_S = 3.0
"""How long a visitor waits for another exit node to be reached or found, whatever the tunnel's own grace."""
SAFE_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS"))


class Session(Protocol):
    """One session (or the origin itself, in one process) that takes exchanges of a tunnel."""

    @property
    def in_flight(self) -> int: ...

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink: ...


class SessionPool(Protocol):
    """The sessions that serve one tunnel, see sessions/registry.py."""

    def pick(self, avoid: Session | None) -> Session | None:
        """The least busy session that takes new exchanges; `avoid` only when there is no other."""

    def wait(self, callback: Callable[[], None], grace_s: float, is_hopeful: bool) -> Callable[[], None] | None:
        """Calls back when a session is up or the grace is over; None when waiting is pointless or too many wait.

        `is_hopeful` says that it is not pointless. Returns what cancels the wait.
        """

    @property
    def is_on_standby(self) -> bool:
        """Whether there are sessions, and all of them are on standby."""

    @property
    def remote(self) -> Remote | None:
        """The other exit nodes, where there are any."""


class FetchClient(ResponseSink, Protocol):
    """Who fetches for all: a flight of the cache."""

    @property
    def owned_key(self) -> bytes:
        """By which the owner is found."""

    @property
    def takes_copies(self) -> bool:
        """Whether what another exit node has stored and may still use would do."""

    def owner_says(self, told: Told) -> None:
        """What the owner says of the response whose head comes next."""


class Way(Protocol):
    """A way to other exit nodes, see mesh/remote.py."""

    def pick(self, avoid: Session | None, sender: str) -> Session | None:
        """The link to one of them, none when none is up: then it is dialled, or asked for, and waiting visitors hear.

        Never `avoid`, nor `sender`, from whom the exchange came.
        """

    @property
    def is_hopeful(self) -> bool:
        """Whether one is being dialled or asked for just now."""

    def failed(self, session: Session, error: EdgetunError) -> None:
        """An exchange on this link ended so."""


class Remote(Way, Protocol):
    """The exit nodes that hold sessions of one tunnel. `pick`: the least busy for its weight; one with only standbys if there is no other."""

    @property
    def has_primary(self) -> bool:
        """Whether one that can be reached, as far as is known, has a session that is not on standby."""

    def pick_primary(self, avoid: Session | None, sender: str) -> Session | None:
        """The same as `pick`, only of those."""

    @property
    def is_reaching_primary(self) -> bool:
        """Whether one of those is being dialled just now."""


class NoAgent(NoSession):
    """Nobody serves the tunnel now."""

    def __init__(self, tunnel_id: str) -> None:
        super().__init__(
            f"tunnel {tunnel_id} has no agent connected; the laptop is offline or its agent is not running"
        )
        self.retry_after_s = 5


class ForwardStage:
    """Passes exchanges of one route to a session of its tunnel."""

    __slots__ = (
        "_memo",
        "_serial",
        "clock",
        "counters",
        "grace_s",
        "in_flight",
        "latency",
        "max_concurrent",
        "pool",
        "service",
        "strip",
        "tunnel_id",
    )

    def __init__(
        self,
        tunnel: TunnelRule,
        route: RouteRule,
        pool: SessionPool,
        counters: TunnelCounters,
        clock: Callable[[], float],
        memos: StageMemos | None = None,
    ) -> None:
        self.tunnel_id = tunnel.id
        default = tunnel.origins[0].name
        self.service = tunnel.id if route.origin in ("", default) else f"{tunnel.id}#{route.origin}"
        self.strip = route.path.rstrip("/").encode() if route.strip_prefix else b""
        self.grace_s = tunnel.reconnect_grace_s
        self.pool = pool
        self.counters = counters
        self.latency: Histogram = counters.upstream_seconds
        self.in_flight = 0
        self.max_concurrent = route.limits.max_concurrent_requests
        self.clock = clock
        memos = memos or StageMemos()
        self._memo = memos.forwarded
        self._serial = next_serial()

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        if self.max_concurrent and self.in_flight >= self.max_concurrent:
            self.counters.refused += 1
            return refuse(client, TooManyConcurrent(self.max_concurrent))
        prepared = self._prepare(head, peer, client)
        if prepared is None:
            return CLOSED
        if client.__class__ is Incoming and head.protocol is None:
            spliced = Splicing(self, prepared, peer).start(end, client)
            if spliced is not None:
                return spliced
        exchange = _Forwarded(self, prepared, peer, end, client, self.clock())
        exchange.start(None)
        return CLOSED if exchange.is_over else exchange

    def splicing(self, head: RequestHead, peer: Peer) -> Splicing | None:
        """Opens exchanges with this head from another exit node; None when each is to be looked at by `open`."""
        try:
            prepared = self._find_prepared(head, peer) if head.protocol is None else None
        except LoopDetected:
            return None
        return None if prepared is None else Splicing(self, prepared, peer)

    def go_on(
        self,
        prepared: RequestHead,
        peer: Peer,
        end: bool,
        client: ResponseSink,
        started: float,
        lost: Session,
        has_answered: bool,
        error: EdgetunError,
    ) -> RequestSink:
        """An exchange that was handed to the session `lost` without this stage failed there: as it would go on with it."""
        self.in_flight += 1
        self.counters.in_flight += 1
        exchange = _Forwarded(self, prepared, peer, end, client, started)
        exchange.fail_on(lost, has_answered, error)
        return CLOSED if exchange.is_over else exchange

    def open_at(self, owner: Way, home: Session, head: RequestHead, peer: Peer, client: FetchClient) -> RequestSink:
        """The same for a fetch whose answer goes to all: from the exit node that owns it. `home` when that turns out to be this one."""
        prepared = self._prepare(head, peer, client)
        if prepared is None:
            return CLOSED
        exchange = _FetchedFromOwner(self, prepared, peer, client, self.clock(), owner, home)
        exchange.start(None)
        return CLOSED if exchange.is_over else exchange

    def _prepare(self, head: RequestHead, peer: Peer, client: ResponseSink) -> RequestHead | None:
        """The head for the agent, and counts; None when the client was told why not."""
        try:
            prepared = self._find_prepared(head, peer)
        except LoopDetected as error:
            refuse(client, error)
            return None
        self.in_flight += 1
        self.counters.in_flight += 1
        self.counters.forwarded += 1
        return prepared

    def _find_prepared(self, head: RequestHead, peer: Peer) -> RequestHead:
        key = (head, peer.address, self._serial)
        prepared = self._memo.get(key) if head.protocol not in STREAMS else head  # TCP and UDP have no fields to add
        if prepared is None:
            prepared = build_forwarded_head(head, peer, self.tunnel_id, self.service, self.strip)
            prepared.view = _MadeOf(head)
            if head.recurs:
                prepared.recurs = self._memo.put(key, prepared)
        return prepared

    def now(self) -> float:
        return self.clock()

    def relayed_head(self, prepared: RequestHead, peer: Peer, *, is_fetch: bool = False) -> RequestHead:
        """What goes to another exit node in the place of what would go to an agent."""
        made_of = prepared.view
        if not isinstance(made_of, _MadeOf):
            return build_relayed_head(prepared, peer, self.tunnel_id, is_fetch=is_fetch)
        relayed = made_of.fetched if is_fetch else made_of.relayed
        if relayed is None:
            relayed = build_relayed_head(made_of.head, peer, self.tunnel_id, is_fetch=is_fetch)
            if relayed.protocol is None and prepared.recurs:
                relayed.recurs = True
                if is_fetch:
                    made_of.fetched = relayed
                else:
                    made_of.relayed = relayed
        return relayed


class _MadeOf:
    """What a head for an agent was made of, and what goes to another exit node in its place: one per visitor's address, as that is."""

    __slots__ = ("fetched", "head", "relayed")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.relayed: RequestHead | None = None
        self.fetched: RequestHead | None = None
        """The same for a fetch."""


class _Held:
    """What came of a request's body before a session was there."""

    __slots__ = ("pieces", "size_bytes", "trailers")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size_bytes = 0
        self.trailers: Fields | None = None


class _Forwarded:
    """One exchange on its way down; requester to the session, answering side to the visitor."""

    __slots__ = (
        "_body_done",
        "_cancel_wait",
        "_client",
        "_end",
        "_has_answered",
        "_head",
        "_held",
        "_holds_back",
        "_paused",
        "_peer",
        "_remote",
        "_session",
        "_session_pauses",
        "_sink",
        "_stage",
        "_started",
        "_tries",
        "is_over",
    )

    def __init__(
        self, stage: ForwardStage, head: RequestHead, peer: Peer, end: bool, client: ResponseSink, now: float
    ) -> None:
        self._stage = stage
        self._head = head
        self._peer = peer
        self._end = end
        self._client = client
        self._started = now
        self._sink: RequestSink | None = None
        self._session: Session | None = None
        self._remote: Way | None = None
        """Set while `_session` is a link to another exit node."""
        self._held: _Held | None = None
        self._body_done = end
        self._cancel_wait: Callable[[], None] | None = None
        self._has_answered = False
        self._paused = False
        self._holds_back = False
        """The requester was paused since there was no session."""
        self._session_pauses = False
        self._tries = 0
        self.is_over = False

    def start(self, avoid: Session | None) -> None:
        """Tries a session, or waits for one."""
        pool = self._stage.pool
        if pool.is_on_standby and self._start_at_primary(avoid):
            return
        session = pool.pick(avoid)
        head = self._head
        if session is None or session is avoid:
            session = self._pick_relay(avoid) or session
            if session is None:
                remote = self._stage.pool.remote
                self._wait(remote is not None and remote.is_hopeful)
                return
            if self._remote is not None:
                head = self._stage.relayed_head(head, self._peer)
        self._hand(session, head)

    def _start_at_primary(self, avoid: Session | None) -> bool:
        """While this node has nothing but standbys: by a node that has better, now or when it is reached. False: by a standby, then."""
        remote = self._stage.pool.remote
        peer = self._peer
        if remote is None or hops_of(peer) >= MAX_HOPS or self._tries >= MAX_TRIES:
            return False
        session = remote.pick_primary(avoid, peer.sender if isinstance(peer, RelayedPeer) else "")
        if session is None:
            return remote.is_reaching_primary and self._begin_wait(True)
        self._remote = remote
        self._stage.counters.relayed += 1
        self._hand(session, self._stage.relayed_head(self._head, peer))
        return True

    def fail_on(self, session: Session, has_answered: bool, error: EdgetunError) -> None:
        """It was handed to this session before, which failed."""
        self._tries = 1
        self._session = session
        self._has_answered = has_answered
        self.on_reset(error)

    def _hand(self, session: Session, head: RequestHead) -> None:
        """Opens the exchange on a session."""
        self._tries += 1
        self._session = session
        self._session_pauses = False
        sink = session.open(head, self._peer, self._end, self)
        if self.is_over or self._session is not session:
            return  # answered, or failed and started again, within open
        self._sink = sink
        if self._paused:
            sink.pause_response()
        if self._held is not None:
            held, self._held = self._held, None
            self._send_held(sink, held)
        if self._holds_back:
            self._holds_back = False
            if not self._session_pauses:
                self._client.resume_request()

    def _pick_relay(self, avoid: Session | None) -> Session | None:
        """A link to another exit node that holds a session, where there is none here."""
        remote = self._stage.pool.remote
        if remote is None:
            return None
        peer = self._peer
        sender = ""
        if isinstance(peer, RelayedPeer):
            if peer.hops >= MAX_HOPS:
                return None
            sender = peer.sender
        session = remote.pick(avoid, sender)
        if session is not None:
            self._remote = remote
            self._stage.counters.relayed += 1
        return session

    def _wait(self, is_hopeful: bool) -> None:
        if not self._begin_wait(is_hopeful):
            self._finish()
            self._stage.counters.no_session += 1
            self._client.on_reset(NoAgent(self._stage.tunnel_id))

    def _begin_wait(self, is_hopeful: bool) -> bool:
        """False when it would be pointless, or has been long enough, or too many wait."""
        stage = self._stage
        # Whose visitor it is waits for the agent; the others say at once that they hold no session.
        hops = hops_of(self._peer)
        grace_s = stage.grace_s if not hops else 0.0
        if is_hopeful and hops < MAX_HOPS:
            grace_s = max(grace_s, RELAY_WAIT_S)
        grace_s -= stage.now() - self._started
        cancel = stage.pool.wait(self._waited, grace_s, is_hopeful) if grace_s > 0 else None
        if cancel is None:
            return False
        self._cancel_wait = cancel
        if not self._body_done:
            self._holds_back = True
            self._client.pause_request()
        return True

    def _waited(self) -> None:
        self._cancel_wait = None
        if not self.is_over:
            self.start(None)

    def _send_held(self, sink: RequestSink, held: _Held) -> None:
        for piece in held.pieces:
            sink.send_data(piece, False)
        if held.trailers is not None:
            sink.send_trailers(held.trailers)
        elif self._body_done:
            sink.send_data(b"", True)

    def _finish(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._stage.in_flight -= 1
            self._stage.counters.in_flight -= 1
            if self._cancel_wait is not None:
                self._cancel_wait()
                self._cancel_wait = None

    # From the visitor.

    def send_data(self, data: bytes, end: bool) -> None:
        self._body_done = self._body_done or end
        if self._sink is not None:
            self._sink.send_data(data, end)
        elif not self.is_over:
            self._hold(data)

    def send_trailers(self, fields: Fields) -> None:
        self._body_done = True
        if self._sink is not None:
            self._sink.send_trailers(fields)
        elif not self.is_over:
            self._hold(b"").trailers = fields

    def _hold(self, data: bytes) -> _Held:
        held = self._held = self._held or _Held()
        if data:
            held.pieces.append(data)
            held.size_bytes += len(data)
            if held.size_bytes > MAX_HELD_BYTES:
                self._finish()
                self._client.on_reset(LimitExceeded("the request's body came before an agent was there to take it"))
        return held

    def reset(self, error: EdgetunError) -> None:
        self._finish()
        if self._sink is not None:  # also after the response's end: an upgraded exchange has a second direction
            self._sink.reset(error)

    def pause_response(self) -> None:
        self._paused = True
        if self._sink is not None:
            self._sink.pause_response()

    def resume_response(self) -> None:
        self._paused = False
        if self._sink is not None:
            self._sink.resume_response()

    # From the session.

    def on_interim(self, head: ResponseHead) -> None:
        self._client.on_interim(head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        self._has_answered = True
        stage = self._stage
        stage.latency.observe(stage.now() - self._started)
        if end:
            self._finish()
        self._client.on_head(head, end)

    def on_data(self, data: bytes, end: bool) -> None:
        if end:
            self._finish()
        self._client.on_data(data, end)

    def on_trailers(self, fields: Fields) -> None:
        self._finish()
        self._client.on_trailers(fields)

    def on_reset(self, error: EdgetunError) -> None:
        if self.is_over:
            if self._head.protocol in STREAMS and not self._body_done:
                self._client.on_reset(error)  # only one direction was over (exchange.py, rule 7)
            return
        if self._remote is not None and self._session is not None:
            self._remote.failed(self._session, error)
        if self._may_retry(error):
            lost, self._session, self._sink, self._remote = self._session, None, None, None
            self._stage.counters.retried += 1
            self.start(lost)
            return
        self._finish()
        if not isinstance(error, Cancelled):
            self._stage.counters.failed += 1
        self._client.on_reset(error)

    def _may_retry(self, error: EdgetunError) -> bool:
        """Whether another session may be asked: nothing was answered, and asking twice does no harm (RFC 9110 §9.2.2)."""
        if self._has_answered or self._tries >= (MAX_TRIES if self._remote is None else MAX_RELAYED_TRIES):
            return False
        if isinstance(error, Draining) or (isinstance(error, NoSession) and self._remote is not None):
            return self._end  # refused before it was started
        return isinstance(error, SessionLost) and self._end and self._head.method in SAFE_METHODS

    def pause_request(self) -> None:
        self._session_pauses = True
        self._client.pause_request()

    def resume_request(self) -> None:
        self._session_pauses = False
        if not self._holds_back:
            self._client.resume_request()


class _FetchedFromOwner(_Forwarded):
    """A fetch that goes to the exit node that owns its key; a GET or HEAD without a body."""

    __slots__ = ("_fetch_client", "_home", "_owner")

    def __init__(
        self,
        stage: ForwardStage,
        head: RequestHead,
        peer: Peer,
        client: FetchClient,
        now: float,
        owner: Way,
        home: Session,
    ) -> None:
        super().__init__(stage, head, peer, True, client, now)
        self._fetch_client = client
        self._owner = owner
        self._home = home

    def start(self, avoid: Session | None) -> None:
        owner = self._owner
        session = owner.pick(avoid, "")
        if session is not None:
            self._remote = owner
            self._stage.counters.relayed += 1
            self._hand(session, self._stage.relayed_head(self._head, self._peer, is_fetch=True))
        elif owner.is_hopeful:
            self._wait(True)
        else:
            # This node owns it now, or nobody else is reached: into what the other nodes' requests join here.
            made_of = self._head.view
            assert isinstance(made_of, _MadeOf)
            self._hand(self._home, made_of.head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        told, head = take_told(head)
        if told is not None:
            self._fetch_client.owner_says(told)
        super().on_head(head, end)

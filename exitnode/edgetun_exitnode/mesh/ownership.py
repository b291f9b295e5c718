"""Which exit node fetches a key for the whole fleet, and how a node's cache asks it.

A key's owner is the first by rendezvous hashing among the nodes that hold a session of the tunnel, so that nodes that know the same
holders agree without a word, and a holder that goes moves its keys and no others. The owner's cache collapses what all nodes
ask; the node at which a visitor is caches too, for as long as the owner may. So a node that has just become an owner looks for a
copy at the others before it asks the laptop (siblings.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Protocol, cast

from edgetun_core.errors import Cancelled, EdgetunError, NoSession
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, Relayed, RequestHead, ResponseHead
from edgetun_exitnode.cache.freshness import Told, current_age_s
from edgetun_exitnode.cache.response import stored_behind
from edgetun_exitnode.cache.stage import CacheStage
from edgetun_exitnode.cache.store import Store
from edgetun_exitnode.cache.stored import RETRY_S
from edgetun_exitnode.pipeline.forward import FetchClient, ForwardStage, Way
from edgetun_exitnode.pipeline.relaying import (
    LEAST_FRESH_S,
    RelayedPeer,
    build_relayed_head,
    take_told,
    with_told,
)


def rank_owners(key: bytes, nodes: Iterable[str]) -> list[str]:
    """The nodes in the order in which they own the key; the first does, the next when that is gone. Pure."""
    return sorted(nodes, key=lambda node: (blake2b(key, digest_size=8, key=_digest(node)).digest(), node), reverse=True)


def _digest(node: str) -> bytes:
    return blake2b(node.encode(), digest_size=16).digest()


class Owners(Protocol):
    """Who owns the keys of one tunnel."""

    def is_elsewhere(self, key: bytes) -> bool:
        """Whether another node owns the key."""

    def owner(self, key: bytes) -> Way:
        """The way to it."""

    def has_moved(self, key: bytes) -> bool:
        """Whether another node owned the key until lately, or still does by what this one knows: then others may have copies."""

    def find_copy(self, key: bytes, found: Callable[[Handler | None], None]) -> None:
        """Looks for a node that has a fresh copy; calls back once, perhaps at once, with the session to it or None."""


class OwnersOf(Protocol):
    """The exit node, whose mesh comes when it has a certificate."""

    def owners(self, tunnel: str) -> Owners | None:
        """None while there are no other exit nodes."""


class AtOwner:
    """The `Elsewhere` of one route's cache, and where the fetches of the stage for other nodes' keys go."""

    def __init__(
        self,
        nodes: OwnersOf,
        tunnel: str,
        forward: ForwardStage,
        entry: Handler,
        build: Callable[[ForwardStage], CacheStage],
    ) -> None:
        """`entry` is where other nodes' requests enter the route."""
        self._nodes = nodes
        self._tunnel = tunnel
        self._forward = forward
        self._build = build
        self._stage: CacheStage | None = None
        self._home = _Home(entry)

    def stage(self, key: bytes, peer: Peer) -> CacheStage | None:
        """See `cache.stage.Elsewhere`. What another node hands on is fetched here: it took this one for the owner."""
        owners = self._nodes.owners(self._tunnel)
        if owners is None or isinstance(peer, RelayedPeer) or not owners.is_elsewhere(key):
            return None
        stage = self._stage
        if stage is None:
            stage = self._stage = self._build(self._forward)
            stage.fetch_next = self
        return stage

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """A fetch of the stage for other nodes' keys."""
        flight = cast("FetchClient", client)
        owners = self._nodes.owners(self._tunnel)
        if owners is None:
            return self._forward.open(head, peer, end, client)
        return self._forward.open_at(owners.owner(flight.owned_key), self._home, head, peer, flight)


class _Home:
    """This node as the owner of what another one was taken for, until all hear that it is gone."""

    __slots__ = ("_entry", "in_flight")

    def __init__(self, entry: Handler) -> None:
        self._entry = entry
        self.in_flight = 0

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        own = Relayed(0, peer.address, peer.port, peer.version, peer.sni, True)
        return self._entry.open(head, RelayedPeer(own, peer.scheme, ""), end, client)


class AskingOthers:
    """Where a route's own stage fetches: from the origin, or a copy from another exit node where the key was another's until lately."""

    def __init__(
        self, nodes: OwnersOf, tunnel: str, forward: ForwardStage, store: Store, clock: Callable[[], float]
    ) -> None:
        self._nodes = nodes
        self.tunnel = tunnel
        self.forward = forward
        self.store = store
        self.clock = clock

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        flight = cast("FetchClient", client)
        owners = self._nodes.owners(self.tunnel)
        if owners is None or not flight.takes_copies or not owners.has_moved(flight.owned_key):
            return self.forward.open(head, peer, end, client)
        copy = _Copy(self, head, peer, flight)
        owners.find_copy(flight.owned_key, copy.found)
        return copy


class _Copy:
    """A fetch that looks for a copy first, and goes to the origin when there is none that may be used."""

    __slots__ = ("_client", "_head", "_is_answering", "_is_over", "_is_paused", "_peer", "_sink", "_stage")

    def __init__(self, stage: AskingOthers, head: RequestHead, peer: Peer, client: FetchClient) -> None:
        self._stage = stage
        self._head = head
        self._peer = peer
        self._client = client
        self._sink: RequestSink | None = None
        self._is_paused = False
        self._is_answering = False
        self._is_over = False
        """Nobody waits any more, or the origin is asked."""

    def found(self, session: Handler | None) -> None:
        if self._is_over:
            return
        if session is None:
            self._go_on()
            return
        head = build_relayed_head(self._head, self._peer, self._stage.tunnel, is_fetch=True, only_stored=True)
        sink = session.open(head, self._peer, True, self)
        if not self._is_over:
            self._take(sink)

    def _take(self, sink: RequestSink) -> None:
        self._sink = sink
        if self._is_paused:
            sink.pause_response()

    def _go_on(self) -> None:
        """To the origin, from which the client hears without a detour."""
        self._is_over = True
        self._take(self._stage.forward.open(self._head, self._peer, True, self._client))

    def _is_usable(self, told: Told | None) -> bool:
        """A copy of before the key was last made stale is none, though it is fresh where it is."""
        stage = self._stage
        if told is None or told.fresh_s <= 0:
            return False
        return stage.clock() - told.age_s > stage.store.invalidated_at(self._client.owned_key, stage.tunnel)

    # From the node with the copy.

    def on_interim(self, head: ResponseHead) -> None: ...

    def on_head(self, head: ResponseHead, end: bool) -> None:
        told, head = take_told(head)
        if not self._is_usable(told):
            sink, self._sink = self._sink, None
            if sink is not None:
                sink.reset(Cancelled("the copy may not be used"))
            self._go_on()
            return
        assert told is not None
        self._is_answering = True
        self._client.owner_says(told)
        self._client.on_head(head, end)

    def on_data(self, data: bytes, end: bool) -> None:
        if self._is_answering:
            self._client.on_data(data, end)

    def on_trailers(self, fields: Fields) -> None:
        if self._is_answering:
            self._client.on_trailers(fields)

    def on_reset(self, error: EdgetunError) -> None:
        if self._is_answering:
            self._client.on_reset(error)
        elif not self._is_over:
            self._sink = None
            self._go_on()

    def pause_request(self) -> None: ...
    def resume_request(self) -> None: ...

    # From the flight.

    def send_data(self, data: bytes, end: bool) -> None: ...
    def send_trailers(self, fields: Fields) -> None: ...

    def reset(self, error: EdgetunError) -> None:
        self._is_over = True
        if self._sink is not None:
            self._sink.reset(error)

    def pause_response(self) -> None:
        self._is_paused = True
        if self._sink is not None:
            self._sink.pause_response()

    def resume_response(self) -> None:
        self._is_paused = False
        if self._sink is not None:
            self._sink.resume_response()


class RelayedEntry:
    """Where the requests that other exit nodes hand on enter a route: its cache, while this node answers by its own sessions.

    Without one, or with standbys while another node has better, they only pass. A flight that waits for another node must not be joined from there, or each may wait for the other.
    """

    __slots__ = ("_answers_itself", "_cache", "_clock", "_forward")

    def __init__(
        self,
        forward: ForwardStage,
        cache: CacheStage | None,
        answers_itself: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._forward = forward
        self._cache = cache
        self._answers_itself = answers_itself
        self._clock = clock

    def handler_for(self, head: RequestHead, peer: Peer) -> Handler:
        """What opens exchanges with this head: without a cache, an agent's session straight away."""
        if self._cache is not None or (isinstance(peer, RelayedPeer) and peer.only_stored):
            return self
        return self._forward.splicing(head, peer) or self

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        if isinstance(peer, RelayedPeer) and peer.only_stored:
            sink = self._cache.open_stored(head, _Telling(client, self._clock)) if self._cache is not None else None
            if sink is None:
                client.on_reset(NoSession("this exit node has no copy that is fresh"))
            return sink or CLOSED
        if self._cache is None or not self._answers_itself():
            return self._forward.open(head, peer, end, client)
        if isinstance(peer, RelayedPeer) and peer.is_fetch:
            client = _Telling(client, self._clock)
        return self._cache.open_relayed(head, peer, end, client)


class _Telling:
    """Tells the node that asked how old a stored response is, and how long it may be used."""

    __slots__ = ("_client", "_clock")

    def __init__(self, client: ResponseSink, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock

    def on_head(self, head: ResponseHead, end: bool) -> None:
        told = None
        response = stored_behind(head)
        if response is not None:
            now = self._clock()
            timing = response.timing
            fresh_s = timing.fresh_until - now
            if fresh_s <= 0:
                # One that may answer when it is stale is not asked for again at once, here and there; one whose time ended on its
                # way is; one that never was fresh (`no-cache`, `max-age=0`) is confirmed for each visitor, wherever they are.
                was_fresh = timing.fresh_until > timing.received_at
                fresh_s = (RETRY_S if timing.useful_until > timing.fresh_until else LEAST_FRESH_S) if was_fresh else 0.0
            told = Told(current_age_s(timing, now), fresh_s)
        self._client.on_head(with_told(head, told), end)

    def on_interim(self, head: ResponseHead) -> None:
        self._client.on_interim(head)

    def on_data(self, data: bytes, end: bool) -> None:
        self._client.on_data(data, end)

    def on_trailers(self, fields: Fields) -> None:
        self._client.on_trailers(fields)

    def on_reset(self, error: EdgetunError) -> None:
        self._client.on_reset(error)

    def pause_request(self) -> None:
        self._client.pause_request()

    def resume_request(self) -> None:
        self._client.resume_request()

"""The exit nodes that hold one tunnel, as its pipeline and its caches see them; and the way to the owner of one key."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import Draining, EdgetunError, NoSession
from edgetun_core.http.exchange import Handler
from edgetun_core.memo import Memo
from edgetun_core.transport.runner import SessionRunner
from edgetun_exitnode.mesh.ownership import rank_owners
from edgetun_exitnode.mesh.peer import Peer
from edgetun_exitnode.pipeline.forward import Session

if TYPE_CHECKING:
    from edgetun_exitnode.mesh.mesh import Mesh

MOVED_S: Final = 60.0
"""How long after a key came to this node others are asked for copies of it."""
MOST_FORMER: Final = 8
"""Changes of who holds the tunnel that are remembered; of those before, nobody asks any more."""


class _Holder:
    """One of them, among which relayed exchanges are shared out."""

    __slots__ = ("peer", "turn", "weight")

    def __init__(self, peer: Peer, weight: int, turn: float) -> None:
        self.peer = peer
        self.weight = weight
        self.turn = turn
        """What it has had, for its weight: among equally busy ones the least has its turn."""


class Remote:
    """The exit nodes that hold one tunnel; see `pipeline.forward.Remote`."""

    __slots__ = (
        "_candidates",
        "_elsewhere",
        "_epoch",
        "_former",
        "_mesh",
        "_nodes",
        "_nodes_before",
        "_own_before",
        "_primaries",
        "_standbys",
        "_tunnel",
        "_until",
    )

    def __init__(self, mesh: Mesh, tunnel: str) -> None:
        self._mesh = mesh
        self._tunnel = tunnel
        self._nodes: list[Peer] = []
        self._primaries: list[_Holder] = []
        self._standbys: list[_Holder] = []
        """Those with nothing but standbys."""
        self._epoch = -1
        self._until = 0.0
        self._own_before = 0
        self._nodes_before: list[Peer] | None = None
        self._candidates: tuple[str, ...] = ()
        self._elsewhere: Memo[bytes, bool] = Memo(4096)
        # Who held it beside those that it hears of, before this node was there, it cannot know.
        self._former: deque[tuple[float, tuple[str, ...] | None]] = deque(
            ((mesh.clock() + MOVED_S, None),), MOST_FORMER
        )
        """Who might own keys until lately, and until when that matters."""

    def is_elsewhere(self, key: bytes) -> bool:
        """See `ownership.Owners`. Kept for as long as the same nodes hold the tunnel."""
        candidates = self.candidates()
        if not candidates:
            return False
        found = self._elsewhere.get(key)
        if found is None:
            found = rank_owners(key, candidates)[0] != str(self._mesh.name)
            self._elsewhere.put(key, found)
        return found

    def has_moved(self, key: bytes) -> bool:
        """See `ownership.Owners`."""
        candidates = self.candidates()
        former, own = self._former, str(self._mesh.name)
        if former:
            now = self._mesh.clock()
            while former and former[0][0] <= now:
                former.popleft()
            for _, names in former:
                if bool(candidates) if names is None else rank_owners(key, names)[0] != own:
                    return True
        return bool(candidates) and self.is_elsewhere(key)

    def find_copy(self, key: bytes, found: Callable[[Handler | None], None]) -> None:
        """See `ownership.Owners`."""
        holders = [name for names in (self.candidates(), *(names for _, names in self._former)) for name in names or ()]
        self._mesh.siblings.find(key, holders, found)

    def owner(self, key: bytes) -> OwnerRemote:
        """The way to the owner of a key."""
        return OwnerRemote(self._mesh, self._tunnel, key)

    def candidates(self) -> tuple[str, ...]:
        """Who may own keys: the peers that hold the tunnel, and this node when it does; nobody while this node is the only one.

        Those with nothing but standbys own none while there is one with better: what they own, they would only relay.
        """
        mesh = self._mesh
        nodes = self._present()
        own = mesh.share(self._tunnel)
        if self._candidates and nodes is self._nodes_before and own == self._own_before:
            return self._candidates
        self._nodes_before, self._own_before = nodes, own
        best = self._primaries or (self._standbys if own <= 0 else ())
        names = [holder.peer.name for holder in best]
        if names and (own > 0 or (own < 0 and not self._primaries)):
            names.append(str(mesh.name))
        if tuple(names) != self._candidates:
            if self._candidates:
                self._former.append((mesh.clock() + MOVED_S, self._candidates))
            self._candidates = tuple(names)
            self._elsewhere = Memo(4096)
        return self._candidates

    def pick(self, avoid: Session | None, sender: str) -> Session | None:
        self._present()
        found = self._choose(self._primaries, avoid, sender)
        if found is None and not _is_dialling(self._primaries):
            found = self._choose(self._standbys, avoid, sender)
            if found is None and not _is_dialling(self._standbys):
                self._mesh.ask(self._tunnel)
        return found

    def pick_primary(self, avoid: Session | None, sender: str) -> Session | None:
        if self.has_primary:
            return self._choose(self._primaries, avoid, sender)
        if not self._mesh.holders.is_complete:
            self._mesh.ask(self._tunnel)  # nobody tells
        return None

    def _choose(self, holders: list[_Holder], avoid: Session | None, sender: str) -> SessionRunner | None:
        """The least busy for its weight, in turn among equals; whoever is not linked yet is dialled."""
        best: _Holder | None = None
        chosen: SessionRunner | None = None
        load = least = 0.0
        for holder in holders:
            peer = holder.peer
            if peer.name == sender:
                continue
            runner = peer.runner
            if runner is None:
                if self._mesh.dial(peer):
                    peer.wanted_for.add(self._tunnel)
                continue
            if runner is avoid:
                continue
            load = runner.in_flight / holder.weight
            if best is None or load < least or (load == least and holder.turn < best.turn):
                best, chosen, least = holder, runner, load
        if best is not None:
            best.turn += 1.0 / best.weight
        return chosen

    @property
    def has_primary(self) -> bool:
        self._present()
        mesh, primaries = self._mesh, self._primaries
        if not primaries or mesh.outliers.is_out(primaries[0].peer.name):
            return False  # none, or all of them are left out
        now = mesh.clock()
        return any(one.peer.runners or one.peer.dialling is not None or one.peer.may_dial(now) for one in primaries)

    @property
    def is_hopeful(self) -> bool:
        self._present()
        return self._mesh.is_asking(self._tunnel) or _is_dialling(self._primaries) or _is_dialling(self._standbys)

    @property
    def is_reaching_primary(self) -> bool:
        return _is_dialling(self._primaries)

    def failed(self, session: Session, error: EdgetunError) -> None:
        peer = self._mesh.peer_of(session)
        if peer is not None and isinstance(error, NoSession):
            self._mesh.holders.deny(self._tunnel, peer.name, self._mesh.clock())
        elif peer is not None and isinstance(error, Draining):
            self._mesh.takes_no_more(peer, session)  # type: ignore[arg-type]

    def _present(self) -> list[Peer]:
        mesh = self._mesh
        now = mesh.clock()
        if self._epoch != mesh.holders.epoch or now > self._until:
            self._epoch = mesh.holders.epoch
            self._until = now + 1.0
            nodes = mesh.outliers.usable(mesh.holders.holders(self._tunnel, now))
            self._nodes = [mesh.peer(node) for node in nodes]
            self._weigh()
        return self._nodes

    def _weigh(self) -> None:
        """Sorts them into those with a primary and those without. A newcomer has no claim to what went by before it came."""
        turns = {holder.peer: holder.turn for holder in (*self._primaries, *self._standbys)}
        first = min(turns.values(), default=0.0)
        self._primaries, self._standbys = [], []
        for peer in self._nodes:
            share = self._mesh.holders.share(self._tunnel, peer.name)
            holder = _Holder(peer, abs(share), turns.get(peer, first))
            (self._primaries if share > 0 else self._standbys).append(holder)


def _is_dialling(holders: list[_Holder]) -> bool:
    return any(holder.peer.dialling is not None for holder in holders)


class OwnerRemote:
    """The way to the exit node that owns one key; to the next when that cannot be reached. For one fetch."""

    __slots__ = ("_key", "_mesh", "_tunnel", "is_hopeful")

    def __init__(self, mesh: Mesh, tunnel: str, key: bytes) -> None:
        self._mesh = mesh
        self._tunnel = tunnel
        self._key = key
        self.is_hopeful = False
        """The one to ask is being dialled."""

    def pick(self, avoid: Session | None, sender: str) -> Session | None:
        mesh, own = self._mesh, str(self._mesh.name)
        self.is_hopeful = False
        for node in rank_owners(self._key, mesh.remote(self._tunnel).candidates()):
            if node == own:
                return None
            peer = mesh.peer(node)
            runner = peer.runner
            if runner is None:
                if mesh.dial(peer):
                    peer.wanted_for.add(self._tunnel)
                    self.is_hopeful = True
                    return None
            elif runner is not avoid:
                return runner
        return None

    def failed(self, session: Session, error: EdgetunError) -> None:
        self._mesh.remote(self._tunnel).failed(session, error)

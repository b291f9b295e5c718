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
        "_tunnel",
        "_until",
        "_was_held",
    )

    def __init__(self, mesh: Mesh, tunnel: str) -> None:
        self._mesh = mesh
        self._tunnel = tunnel
        self._nodes: list[Peer] = []
        self._epoch = -1
        self._until = 0.0
        self._was_held = False
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
        """Who may own keys: the peers that hold the tunnel, and this node when it does; nobody while this node is the only one."""
        mesh = self._mesh
        nodes = self._present()
        is_held = mesh.holds(self._tunnel)
        if self._candidates and nodes is self._nodes_before and is_held == self._was_held:
            return self._candidates
        self._nodes_before, self._was_held = nodes, is_held
        names = [peer.name for peer in nodes]
        if is_held and names:
            names.append(str(mesh.name))
        if tuple(names) != self._candidates:
            if self._candidates:
                self._former.append((mesh.clock() + MOVED_S, self._candidates))
            self._candidates = tuple(names)
            self._elsewhere = Memo(4096)
        return self._candidates

    def pick(self, avoid: Session | None, sender: str) -> Session | None:
        mesh = self._mesh
        best: SessionRunner | None = None
        for peer in self._present():
            runner = peer.runner
            if peer.name == sender:
                continue
            if runner is None:
                if mesh.dial(peer):
                    peer.wanted_for.add(self._tunnel)
            elif runner is not avoid and (best is None or runner.in_flight < best.in_flight):
                best = runner
        if best is None and not self._is_dialling():
            mesh.ask(self._tunnel)
        return best

    @property
    def is_hopeful(self) -> bool:
        return self._mesh.is_asking(self._tunnel) or self._is_dialling()

    def failed(self, session: Session, error: EdgetunError) -> None:
        peer = self._mesh.peer_of(session)
        if peer is not None and isinstance(error, NoSession):
            self._mesh.holders.deny(self._tunnel, peer.name, self._mesh.clock())
        elif peer is not None and isinstance(error, Draining):
            self._mesh.takes_no_more(peer, session)  # type: ignore[arg-type]

    def _is_dialling(self) -> bool:
        return any(peer.dialling is not None for peer in self._present())

    def _present(self) -> list[Peer]:
        mesh = self._mesh
        now = mesh.clock()
        if self._epoch != mesh.holders.epoch or now > self._until:
            self._epoch = mesh.holders.epoch
            self._until = now + 1.0
            nodes = mesh.outliers.usable(mesh.holders.holders(self._tunnel, now))
            self._nodes = [mesh.peer(node) for node in nodes]
        return self._nodes


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

"""Which exit nodes hold a session of which tunnel, as far as this node knows. Pure; times are the monotonic clock's seconds.

Three sources, in the order of how much they count: control's list, which holds until control says otherwise; what peers answered or
told, which is remembered briefly; and what was known when the last list ended or the node stopped, remembered briefly too. A peer that
said it holds no session after all is left out until there is news of it. What a holder's share is (`PeerChange.shares`) is as it or
control said last; who says nothing of it is of an older version, and has a share of 1.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from edgetun_core.control_stream import Peers
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import ProtocolError

FOREVER: Final = float("inf")
REMEMBERED_S: Final = 60.0
"""How long what control told before a new list began still counts, as long as the new list does not repeat it."""
ANSWERED_S: Final = 30.0
"""How long a peer's word counts."""
DENIED_S: Final = 5.0
"""How long a peer that turned a tunnel's exchange down is not asked for that tunnel again."""
MOST_PEERS: Final = 2_000
"""Peers that are remembered beside those on control's list."""
MOST_ANSWERS: Final = 100_000
"""Tunnels that are remembered by peers' word; the first is forgotten for one more."""


class _Kept(Struct, frozen=True):
    peers: dict[str, Endpoint]
    holders: dict[str, tuple[str, ...]]
    shares: dict[str, dict[str, int]] = {}
    """By tunnel and node, where it is not 1."""


class Holders:
    """The table. Nodes are named `pool/region/node`; `own` is this one, which is left out."""

    def __init__(self, own: str) -> None:
        self.own = own
        self.peers: dict[str, Endpoint] = {}
        """Where peers are reached; what was learnt last is last."""
        self.draining: set[str] = set()
        self.is_complete = False
        """Whether control's list has come over the present stream."""
        self.epoch = 0
        """Grows with every change of who holds what."""
        self._told: dict[str, dict[str, float]] = {}
        """Control's: tunnel -> node -> until when."""
        self._answered: dict[str, dict[str, float]] = {}
        self._denied: dict[tuple[str, str], float] = {}
        self._shares: dict[str, dict[str, int]] = {}
        """By tunnel and node, where it is not 1."""
        self._listed: set[str] = set()
        """Peers on control's present list."""

    def holders(self, tunnel: str, now: float) -> list[str]:
        """Peers that hold a session of the tunnel and do not drain, in the order of their names."""
        found: set[str] = set()
        for source in (self._told, self._answered):
            nodes = source.get(tunnel)
            if nodes:
                found.update(node for node, until in nodes.items() if until > now)
        if not found:
            return []
        denied, draining, peers = self._denied, self.draining, self.peers
        return sorted(
            node for node in found if node in peers and node not in draining and denied.get((tunnel, node), 0.0) <= now
        )

    def share(self, tunnel: str, node: str) -> int:
        """A holder's share of the tunnel: negative when it has nothing but standbys."""
        shares = self._shares.get(tunnel)
        return shares.get(node, 1) if shares is not None else 1

    # ---- from control

    def stream_ended(self) -> None:
        """Control is away: its list still holds, but is not added to."""
        self.is_complete = False

    def take(self, message: Peers, now: float) -> set[str]:
        """Takes control's word; returns the tunnels whose holders may be others now."""
        changed: set[str] = set()
        if message.reset:
            self._listed.clear()
            self._expire_told(now)
        for change in message.changed:
            if change.node == self.own:
                continue
            if change.relay is not None:
                self.peers.pop(change.node, None)
                self.peers[change.node] = change.relay
            self._listed.add(change.node)
            (self.draining.add if change.is_draining else self.draining.discard)(change.node)
            for tunnel in change.opened:
                self._told.setdefault(tunnel, {})[change.node] = FOREVER
                self._set_share(tunnel, change.node, change.shares.get(tunnel, 1))
                self._denied.pop((tunnel, change.node), None)
                changed.add(tunnel)
            for tunnel in change.closed:
                self._drop(tunnel, change.node)
                changed.add(tunnel)
        for node in message.gone:
            changed |= self.forget(node)
        if message.is_complete:
            self.is_complete = True
        self._bound(now)
        self.epoch += 1
        return changed

    def _expire_told(self, now: float) -> None:
        """A control that has just begun has not heard of everybody yet: what the last one said counts for a while."""
        for tunnel, nodes in list(self._told.items()):
            kept = {node: min(until, now + REMEMBERED_S) for node, until in nodes.items() if until > now}
            if kept:
                self._told[tunnel] = kept
            else:
                del self._told[tunnel]
            for node in nodes.keys() - kept.keys():
                self._forget_share(tunnel, node)

    # ---- from peers

    def meet(self, node: str, relay: Endpoint) -> None:
        """A peer is there, at this address."""
        if node != self.own and self.peers.get(node) != relay:
            self.peers.pop(node, None)
            self.peers[node] = relay

    def answered(self, tunnel: str, node: str, now: float, share: int = 1, *, is_own_word: bool = True) -> None:
        """A peer's word that `node` holds a session of the tunnel.

        What it says of itself ends a denial and tells its share; hearsay ends none, and tells the share of one that was no holder.
        """
        if node == self.own or node not in self.peers:
            return
        if tunnel not in self._answered and len(self._answered) >= MOST_ANSWERS:
            forgotten = next(iter(self._answered))
            for other in self._answered.pop(forgotten):
                self._forget_share(forgotten, other)
        if is_own_word or not self._is_known(tunnel, node, now):
            self._set_share(tunnel, node, share)
        self._answered.setdefault(tunnel, {})[node] = now + ANSWERED_S
        if is_own_word:
            self._denied.pop((tunnel, node), None)
        self.epoch += 1

    def closed(self, tunnel: str, node: str) -> None:
        """A peer's word that it holds none any more."""
        self._drop(tunnel, node)
        self.epoch += 1

    def deny(self, tunnel: str, node: str, now: float) -> None:
        """The peer turned an exchange of the tunnel down: it holds no session of it, whatever was said."""
        self._denied[tunnel, node] = now + DENIED_S
        if len(self._denied) > MOST_ANSWERS:
            del self._denied[next(iter(self._denied))]
        self.epoch += 1

    def drains(self, node: str, is_draining: bool) -> None:
        """The peer goes away, or takes relayed exchanges again."""
        (self.draining.add if is_draining else self.draining.discard)(node)
        self.epoch += 1

    def is_listed(self, node: str) -> bool:
        """Whether control's present list has it."""
        return node in self._listed

    def forget(self, node: str) -> set[str]:
        """The peer is gone for good; returns the tunnels that it held."""
        changed: set[str] = set()
        for source in (self._told, self._answered):
            for tunnel in [tunnel for tunnel, nodes in source.items() if node in nodes]:
                self._drop(tunnel, node)
                changed.add(tunnel)
        self.peers.pop(node, None)
        self.draining.discard(node)
        self._listed.discard(node)
        self.epoch += 1
        return changed

    # ---- to disk and back

    def encode(self, now: float) -> bytes:
        """What to remember when the node stops."""
        holders = {
            tunnel: tuple(sorted(node for node, until in nodes.items() if until > now))
            for tunnel, nodes in self._told.items()
        }
        kept = {tunnel: nodes for tunnel, nodes in holders.items() if nodes}
        return msgspec.msgpack.encode(
            _Kept(self.peers, kept, {one: self._shares[one] for one in kept if one in self._shares})
        )

    def restore(self, data: bytes, now: float) -> None:
        """Takes what `encode` made, to be remembered briefly. Raises `ProtocolError` for anything else."""
        try:
            kept = msgspec.msgpack.decode(data, type=_Kept)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ProtocolError("not a list of peers") from None
        for node, relay in kept.peers.items():
            self.meet(node, relay)
        for tunnel, nodes in kept.holders.items():
            for node in nodes:
                if node in self.peers:
                    self._told.setdefault(tunnel, {})[node] = now + REMEMBERED_S
                    self._set_share(tunnel, node, kept.shares.get(tunnel, {}).get(node, 1))
        self.epoch += 1

    # ---- bounds

    def _bound(self, now: float) -> None:
        """Forgets peers that only peers spoke of when they are too many, and what is over."""
        strangers = [node for node in self.peers if node not in self._listed]
        for node in strangers[: max(0, len(strangers) - MOST_PEERS)]:
            self.forget(node)
        if len(self._denied) > 1_000:
            self._denied = {key: until for key, until in self._denied.items() if until > now}

    def _drop(self, tunnel: str, node: str) -> None:
        for source in (self._told, self._answered):
            nodes = source.get(tunnel)
            if nodes is not None and nodes.pop(node, None) is not None and not nodes:
                del source[tunnel]
        self._forget_share(tunnel, node)

    def _is_known(self, tunnel: str, node: str, now: float) -> bool:
        return any(source.get(tunnel, {}).get(node, 0.0) > now for source in (self._told, self._answered))

    def _set_share(self, tunnel: str, node: str, share: int) -> None:
        if share not in (0, 1):
            self._shares.setdefault(tunnel, {})[node] = share
        else:
            self._remove_share(tunnel, node)

    def _forget_share(self, tunnel: str, node: str) -> None:
        """Of one that is a holder no more, by anybody's word."""
        if not any(node in source.get(tunnel, ()) for source in (self._told, self._answered)):
            self._remove_share(tunnel, node)

    def _remove_share(self, tunnel: str, node: str) -> None:
        shares = self._shares.get(tunnel)
        if shares is not None and shares.pop(node, None) is not None and not shares:
            del self._shares[tunnel]

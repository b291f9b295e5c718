"""Control's end of one exit node's stream: what to send next, given what the node has. Sans-I/O.

`History` is shared by all nodes of a pool's region: the present snapshot and those of before, and every message encoded once
however many nodes get it. `Feed` is one node: at most one change is on its way; what changes meanwhile is told in one step.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from edgetun_core.control_stream.delta import diff_snapshots
from edgetun_core.control_stream.digest import RuleHashes
from edgetun_core.control_stream.messages import Ack, Full, NodeHello, Resync, Standing, encode
from edgetun_core.snapshot import Snapshot, find_rule

KEPT_SNAPSHOTS: Final = 64
"""They share nearly all of their tunnels, so this is cheap; a node that is further behind gets the whole."""
KEPT_MESSAGES: Final = 16


class _Kept(NamedTuple):
    snapshot: Snapshot
    step: int
    """When it was the present one last."""


class History:
    """The snapshots of one pool's region. `put` the next one; `message_from` tells what a node with another one needs."""

    def __init__(self) -> None:
        self._snapshots: OrderedDict[str, _Kept] = OrderedDict()
        self._messages: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._hashes = RuleHashes()
        self._steps: deque[tuple[int, frozenset[str] | None]] = deque(maxlen=KEPT_SNAPSHOTS)
        """The latest steps, and which tunnels may have changed with each; None where that is not known."""
        self._step = 0
        self._digest = ""

    @property
    def digest(self) -> str:
        """Of the present snapshot; empty while there is none."""
        return self._digest

    @property
    def current(self) -> Snapshot | None:
        kept = self._snapshots.get(self._digest)
        return kept.snapshot if kept is not None else None

    def put(self, snapshot: Snapshot, changed: Iterable[str] | None = None) -> bool:
        """Takes the next snapshot; False when it says what the present one says (then the present one stays).

        `changed` are the ids of at least all tunnels that differ from the present snapshot's; None when that is not known.
        """
        present = self.current
        ids = frozenset(changed) if changed is not None and present is not None else None
        if ids is None:
            self._hashes = RuleHashes(snapshot.tunnels)
        else:
            for tunnel_id in ids:
                rule = find_rule(snapshot.tunnels, tunnel_id)
                if rule is not None:
                    self._hashes.put(rule)
                else:
                    self._hashes.drop(tunnel_id)
        digest = self._hashes.digest(snapshot)
        if digest == self._digest:
            return False
        self._step += 1
        self._steps.append((self._step, ids))
        self._digest = digest
        self._snapshots[digest] = _Kept(snapshot, self._step)
        self._snapshots.move_to_end(digest)
        while len(self._snapshots) > KEPT_SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return True

    def message_from(self, have: str) -> bytes:
        """What brings a node that has `have` to the present, encoded. There must be a present snapshot."""
        key = have, self._digest
        message = self._messages.get(key)
        if message is None:
            message = self._messages[key] = self._build(have)
            while len(self._messages) > KEPT_MESSAGES:
                self._messages.popitem(last=False)
        return message

    def _build(self, have: str) -> bytes:
        present = self._snapshots[self._digest].snapshot
        if have == self._digest:
            return encode(Standing(present.version, self._digest))
        base = self._snapshots.get(have)
        whole = Full(present, self._digest)
        if base is None:
            return encode(whole)
        changed = self._changed_since(base.step)
        delta = diff_snapshots(base.snapshot, present, base=have, digest=self._digest, changed=changed)
        if len(delta.put) > len(present.tunnels) // 2 + 1:
            return encode(whole)
        return encode(delta)

    def _changed_since(self, step: int) -> frozenset[str] | None:
        """Tunnels that may have changed after a step; None when that is not known any more."""
        if not self._steps or self._steps[0][0] > step + 1:
            return None
        found: set[str] = set()
        for later, ids in self._steps:
            if later > step:
                if ids is None:
                    return None
                found |= ids
        return frozenset(found)


class Feed:
    """One node's place in the history. Every method returns the message to send now, or None."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._have = ""
        self._sent = ""
        self._is_open = False
        self.acknowledged_version = 0

    @property
    def is_waiting(self) -> bool:
        """Whether an acknowledgement is due."""
        return bool(self._sent)

    @property
    def is_current(self) -> bool:
        return self._is_open and not self._sent and self._have == self._history.digest

    def opened(self, hello: NodeHello) -> bytes | None:
        """The node said what it has."""
        self._is_open = True
        self._have = hello.have_digest
        self._sent = ""
        if self._have and self._have == self._history.digest:
            self._sent = self._have
            return self._history.message_from(self._have)
        return self._next()

    def published(self) -> bytes | None:
        """The history has a new present."""
        return self._next()

    def acknowledged(self, ack: Ack) -> bytes | None:
        """The node obeys what it acknowledges; whatever has changed since it was sent follows."""
        self._have = ack.digest
        self._sent = ""
        self.acknowledged_version = ack.version
        return self._next()

    def lost(self, _: Resync) -> bytes | None:
        """The node cannot use what it was sent."""
        self._have = ""
        self._sent = ""
        return self._next()

    def _next(self) -> bytes | None:
        digest = self._history.digest
        if not self._is_open or self._sent or not digest or self._have == digest:
            return None
        self._sent = digest
        return self._history.message_from(self._have)

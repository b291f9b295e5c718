"""Control's end of one exit node's stream: what to send next, given what the node has. Sans-I/O.

`History` is shared by all nodes of a pool's region: the present snapshot and those of before, and every message encoded once
however many nodes get it. `Feed` is one node: at most one change is on its way; what changes meanwhile is told in one step.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from edgetun_core.control_stream.delta import build_delta, compare_rules
from edgetun_core.control_stream.digest import RuleHashes
from edgetun_core.control_stream.messages import Ack, Full, NodeHello, Resync, Standing, encode
from edgetun_core.snapshot import Snapshot, TunnelRule

KEPT_SNAPSHOTS: Final = 64
"""Of each is kept what turned it into the next; a node that is further behind gets the whole."""
KEPT_MESSAGES: Final = 16

Changes = Mapping[str, TunnelRule | None]
"""Tunnels by id; None: it is gone."""


class _Kept(NamedTuple):
    head: Snapshot
    """Without the tunnels."""
    step: int
    """When it was the present one last."""


class _Step(NamedTuple):
    number: int
    before: Changes
    """The rules that changed, as they were; None: it was not there."""


class History:
    """The snapshots of one pool's region. `put` or `change` to the next one; `message_from` tells what a node with another one needs.

    Tunnels are held once, as they are now, with what each step changed: a step costs what it changes, not what there is.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._messages: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._rules = RuleHashes()
        self._steps: deque[_Step] = deque(maxlen=KEPT_SNAPSHOTS)
        self._step = 0
        self._digest = ""
        self._whole: Snapshot | None = None
        self.told_version = 0
        """Of the snapshot that was put in last, also when it said what the present one says."""

    @property
    def digest(self) -> str:
        """Of the present snapshot; empty while there is none."""
        return self._digest

    @property
    def current(self) -> Snapshot | None:
        """The present snapshot. Costs sorting all tunnels after a change."""
        if self._whole is None and self._digest:
            head = self._kept[self._digest].head
            self._whole = msgspec.structs.replace(head, tunnels=self._rules.sorted())
        return self._whole

    def put(self, snapshot: Snapshot) -> bool:
        """Takes the next snapshot; False when it says what the present one says (then the present one stays)."""
        before = {rule.id: rule for rule in self.current.tunnels} if self.current is not None else {}
        return self.change(msgspec.structs.replace(snapshot, tunnels=()), compare_rules(before, snapshot.tunnels))

    def change(self, head: Snapshot, changes: Changes) -> bool:
        """The same, given the next snapshot without its tunnels, and at least all tunnels that are others than in the present one."""
        self.told_version = head.version
        before: dict[str, TunnelRule | None] = {}
        for tunnel_id, rule in changes.items():
            was = self._rules.get(tunnel_id)
            if was is rule or was == rule:
                continue
            before[tunnel_id] = was
            if rule is not None:
                self._rules.put(rule)
            else:
                self._rules.drop(tunnel_id)
        if not before and self._digest:
            present = self._kept[self._digest].head
            if msgspec.structs.replace(head, version=present.version) == present:
                return False
        self._step += 1
        self._steps.append(_Step(self._step, before))
        self._digest = self._rules.digest(head)
        self._whole = None
        self._kept[self._digest] = _Kept(head, self._step)
        self._kept.move_to_end(self._digest)
        while len(self._kept) > KEPT_SNAPSHOTS:
            self._kept.popitem(last=False)
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
        present = self._kept[self._digest].head
        if have == self._digest:
            return encode(Standing(present.version, self._digest))
        base = self._kept.get(have)
        changes = self._changes_since(base.step) if base is not None else None
        if base is None or changes is None or len(changes) > len(self._rules) // 2 + 1:
            whole = self.current
            assert whole is not None
            return encode(Full(whole, self._digest))
        return encode(build_delta(base.head, present, changes, base=have, digest=self._digest))

    def _changes_since(self, step: int) -> Changes | None:
        """How the tunnels differ from those after a step; None when that is not known any more."""
        if not self._steps or self._steps[0].number > step + 1:
            return None
        before: dict[str, TunnelRule | None] = {}
        for later in self._steps:
            if later.number > step:
                before = {**later.before, **before}
        now = {tunnel_id: self._rules.get(tunnel_id) for tunnel_id in before}
        return {tunnel_id: rule for tunnel_id, rule in now.items() if rule != before[tunnel_id]}


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

"""Writes a status when it says something new, and the event that goes with it. Its own field manager, so that spec and status never meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetun_cluster.client import Cluster
from edgetun_cluster.events import EventRecorder
from edgetun_cluster.kinds import HOSTNAME_RESERVATION, Kind
from edgetun_core.api.conditions import Verdict
from edgetun_operator.decide.conditions import build_conditions, conditions_of, decide_notes, to_raw
from edgetun_operator.desired.labels import STATUS_MANAGER
from edgetun_operator.reconcile.compare import covers
from edgetun_operator.world import Seen


class StatusWriter:
    """Counts its writes; `skipped` are those that had nothing new to say."""

    def __init__(self, cluster: Cluster, events: EventRecorder) -> None:
        self.written = 0
        self.skipped = 0
        self._cluster = cluster
        self._events = events

    async def write(
        self, kind: Kind, seen: Seen[Any], verdicts: Mapping[str, Verdict], facts: Mapping[str, Any], now: float
    ) -> bool:
        """Writes the status unless it stands already; True when it was written."""
        before = conditions_of(seen.status)
        after = build_conditions(before, verdicts, seen.generation, now)
        status = {**facts, "observedGeneration": seen.generation, "conditions": to_raw(after)}
        if _stands(seen.status, status):
            self.skipped += 1
            return False
        named = {"metadata": seen.metadata}
        if await self._cluster.apply_status(kind, named, status, manager=STATUS_MANAGER) is None:
            return False  # gone meanwhile
        self.written += 1
        for note in decide_notes(before, after):
            # Events are for whom wrote the object. Most reservations are made here: that they are well is no news to anybody.
            if kind is not HOSTNAME_RESERVATION or note.type == "Warning":
                self._events.note(kind, named, *note)
        return True


def _stands(observed: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every field says what we would say. Conditions of other writers may stand beside ours."""
    conditions = {condition.get("type"): condition for condition in observed.get("conditions") or ()}
    for name, value in wanted.items():
        if name == "conditions":
            if not all(conditions.get(item["type"]) == item for item in value):
                return False
        elif isinstance(value, list):
            # Lists are compared as they are: one that has shrunk is new.
            if len(observed.get(name) or ()) != len(value) or not covers(observed.get(name), value):
                return False
        elif observed.get(name, type(value)()) != value:
            return False
    return True

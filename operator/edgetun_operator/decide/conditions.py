"""Conditions as a whole: from verdicts to what is written, and from a change to the event about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from edgetun_cluster.events import EventKind
from edgetun_core.api.conditions import (
    Condition,
    ConditionType,
    Reason,
    Verdict,
    decide_ready,
    find_condition,
    set_condition,
)
from edgetun_core.problem import Problem

_WELL = {Reason.ACCEPTED: "obeyed as it is written", Reason.READY: "all is well"}


class Note(NamedTuple):
    """An event to write on the resource."""

    type: EventKind
    reason: str
    message: str


def conditions_of(status: Mapping[str, Any]) -> list[Condition]:
    """The conditions that stand in a status; what cannot be read is as if it were not there."""
    found = []
    for raw in status.get("conditions") or ():
        try:
            found.append(Condition.model_validate(raw))
        except ValidationError:
            continue
    return found


def build_conditions(
    before: Sequence[Condition], verdicts: Mapping[str, Verdict], generation: int, now: float
) -> list[Condition]:
    """Our conditions, `Ready` first; `lastTransitionTime` stays where a status does."""
    everything = {ConditionType.READY: decide_ready(verdicts.values()), **verdicts}
    found = [condition for condition in before if condition.type in everything]
    for type_, verdict in everything.items():
        found = set_condition(found, type_, verdict.status, verdict.reason, verdict.message, generation, now)
    order = list(everything)
    return sorted(found, key=lambda condition: order.index(condition.type))


def decide_notes(before: Sequence[Condition], after: Sequence[Condition]) -> list[Note]:
    """The events that a change deserves: that the resource is obeyed or not, and that it became ready or ceased to be."""
    found: list[Note] = []
    for type_ in (ConditionType.ACCEPTED, ConditionType.READY):
        old, new = find_condition(before, type_), find_condition(after, type_)
        if new is None or new.status == "Unknown":
            continue
        if old is not None and (old.status, old.reason) == (new.status, new.reason):
            continue
        if type_ == ConditionType.READY and new.status == "False" and old is None:
            continue  # what has only just been made is not ready, and nothing is wrong with that
        kind: EventKind = "Normal" if new.status == "True" and new.reason != Reason.PARTIALLY_ACCEPTED else "Warning"
        if not any(note.reason == new.reason for note in found):
            found.append(Note(kind, new.reason, new.message or _WELL.get(new.reason, f"{new.type} is {new.status}")))
    return found


def decide_accepted(problems: Sequence[Problem], served: bool = False) -> Verdict:
    """`Accepted` from what loader and compiler found. `served`: a part of the resource is obeyed all the same."""
    errors = [problem for problem in problems if problem.severity == "error"]
    warnings = [problem for problem in problems if problem.severity == "warning"]
    if not errors:
        return Verdict("True", Reason.ACCEPTED, "; ".join(_line(problem) for problem in warnings))
    message = "; ".join(_line(problem) for problem in errors)
    return (
        Verdict("True", Reason.PARTIALLY_ACCEPTED, message) if served else Verdict("False", errors[0].reason, message)
    )


def _line(problem: Problem) -> str:
    return f"{problem.field}: {problem.message}" if problem.field else problem.message


def to_raw(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    """As they are written."""
    return [condition.model_dump(by_alias=True) for condition in conditions]

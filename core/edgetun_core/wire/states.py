"""The states of a session and what moves it from one to another: a table, and nothing outside the table."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """Where a session stands."""

    CONNECTING = "connecting"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class Event(Enum):
    """What moves a session."""

    ACCEPTED = "hello accepted"
    REFUSED = "hello refused"
    DRAIN_SAID = "drain said"
    DRAIN_HEARD = "drain heard"
    FINISHED = "both ends said close"
    CLOSE_SAID = "close said"
    CLOSE_HEARD = "close heard"
    BROKEN = "protocol broken"
    SILENT = "peer silent"
    LOST = "link lost"


_ENDS: Final = (Event.CLOSE_SAID, Event.CLOSE_HEARD, Event.BROKEN, Event.SILENT, Event.LOST)

TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.CONNECTING, Event.ACCEPTED): State.OPEN,
    (State.CONNECTING, Event.REFUSED): State.CLOSED,
    (State.OPEN, Event.DRAIN_SAID): State.DRAINING,
    (State.OPEN, Event.DRAIN_HEARD): State.DRAINING,
    (State.DRAINING, Event.DRAIN_SAID): State.DRAINING,
    (State.DRAINING, Event.DRAIN_HEARD): State.DRAINING,
    (State.DRAINING, Event.FINISHED): State.CLOSED,
} | {(state, event): State.CLOSED for state in (State.CONNECTING, State.OPEN, State.DRAINING) for event in _ENDS}

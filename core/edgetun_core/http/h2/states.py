"""The states of a stream (RFC 9113 §5.1), without those of server push, which neither of our ends allows."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class State(IntEnum):
    """Where a stream stands; "local" and "remote" say which end has said its last."""

    IDLE = 0
    OPEN = 1
    HALF_CLOSED_REMOTE = 2
    HALF_CLOSED_LOCAL = 3
    CLOSED = 4


class Event(IntEnum):
    """What moves a stream on."""

    HEADERS = 0
    REMOTE_END = 1
    LOCAL_END = 2
    RESET = 3


TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.IDLE, Event.HEADERS): State.OPEN,
    (State.OPEN, Event.REMOTE_END): State.HALF_CLOSED_REMOTE,
    (State.OPEN, Event.LOCAL_END): State.HALF_CLOSED_LOCAL,
    (State.OPEN, Event.RESET): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Event.LOCAL_END): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Event.RESET): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Event.REMOTE_END): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Event.RESET): State.CLOSED,
}
"""What is not in the table must not happen."""


def after(state: State, event: Event) -> State:
    """The state that follows. Raises ValueError with both names for what is not in the table: a mistake of ours."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ValueError(f"{event.name} cannot happen to a stream that is {state.name}") from None

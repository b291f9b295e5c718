"""What is done to a fleet, and when. Pure: the same seed gives the same schedule, and a schedule's text gives the schedule back."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

KILL, STOP, PAUSE, BLACK_HOLE = "kill", "stop", "pause", "black-hole"
"""SIGKILL and a new start; SIGTERM and a new start; SIGSTOP and SIGCONT; nothing passes between the agents and an exit node."""

EXIT_NODE, AGENT, CONTROL = "exit-node", "agent", "control"
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    EXIT_NODE: (KILL, KILL, STOP, PAUSE, BLACK_HOLE),
    AGENT: (KILL, KILL, STOP, PAUSE),
    CONTROL: (KILL, STOP, PAUSE),
}
LONGEST_S: Final = {KILL: 1.5, STOP: 1.5, PAUSE: 1.5, BLACK_HOLE: 2.5}
SHORTEST_S: Final = 0.1
GAP_S: Final = (0.2, 1.2)
REST_S: Final = 1.0
"""How long a target is left alone after an action: otherwise its process is hardly ever past its start."""
AT_ONCE: Final = 2
"""Targets under an action at one time. With all of them down nobody is answered, which shows nothing."""


@dataclass(frozen=True, slots=True, order=True)
class Action:
    """From `at_s` on, for `lasts_s`, this is done to the target; both count from the schedule's begin."""

    at_s: float
    kind: str
    target: str
    lasts_s: float

    @property
    def ends_s(self) -> float:
        return self.at_s + self.lasts_s

    def __str__(self) -> str:
        return f"{self.at_s:.2f} {self.kind} {self.target} {self.lasts_s:.2f}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """Actions in the order of their begin. Two of one target never overlap."""

    seed: int
    seconds: float
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        return "\n".join((f"seed {self.seed} seconds {self.seconds:g}", *map(str, self.actions)))


def generate(seed: int, seconds: float, targets: Mapping[str, str]) -> Schedule:
    """A schedule over `targets` (name -> `EXIT_NODE`, `AGENT` or `CONTROL`); every action has ended by `seconds`."""
    rng = random.Random(seed)
    free_at = dict.fromkeys(targets, 0.0)
    actions: list[Action] = []
    at_s = rng.uniform(*GAP_S)
    while at_s + SHORTEST_S < seconds:
        free = [name for name in targets if free_at[name] <= at_s]
        if free and sum(action.ends_s > at_s for action in actions) < AT_ONCE:
            target = rng.choice(free)
            kind = rng.choice(KINDS[targets[target]])
            longest_s = min(LONGEST_S[kind], seconds - at_s)
            action = Action(round(at_s, 2), kind, target, round(rng.uniform(SHORTEST_S, longest_s), 2))
            actions.append(action)
            free_at[target] = action.ends_s + REST_S
        at_s += rng.uniform(*GAP_S)
    return Schedule(seed, seconds, tuple(actions))


def parse(text: str) -> Schedule:
    """Reads what `str(schedule)` wrote. Raises ValueError that names the line."""
    head, *lines = [line.strip() for line in text.strip().splitlines()]
    try:
        word, seed, another, seconds = head.split()
        if (word, another) != ("seed", "seconds"):
            raise ValueError
        schedule = Schedule(int(seed), float(seconds), tuple(map(_parse_action, lines)))
    except ValueError as error:
        raise ValueError(f'"{head}" is not "seed N seconds S", or: {error}') from error
    return schedule


def _parse_action(line: str) -> Action:
    try:
        at_s, kind, target, lasts_s = line.split()
        if kind not in LONGEST_S:
            raise ValueError
        return Action(float(at_s), kind, target, float(lasts_s))
    except ValueError:
        raise ValueError(f'"{line}" is not "AT KIND TARGET LASTS", KIND one of {", ".join(LONGEST_S)}') from None


def overlapping(actions: Sequence[Action]) -> list[tuple[Action, Action]]:
    """Pairs of actions of one target that overlap; a generated schedule has none."""
    found = []
    last: dict[str, Action] = {}
    for action in sorted(actions):
        before = last.get(action.target)
        if before is not None and before.ends_s > action.at_s:
            found.append((before, action))
        last[action.target] = action
    return found

"""Which exchanges the peer has opened, and what came of them before their HEAD.

Ids are given one after the other, but lanes are independent, so they may arrive out of order. `expected` is the lowest that
has not come; `ahead` holds the few beyond it that have. So an exchange that is not here is known to be over, or still to
come, without a list of all that ever were.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.wire.early import Early
from edgetun_core.wire.frames import SessionBroken
from edgetun_core.wire.lanes import Lane

MAX_IDS_AHEAD: Final = 65_536
"""How far the ids of exchanges that arrive on fast lanes may run ahead of those on a slow one."""

MAX_UNOPENED: Final = 1024
"""Exchanges of which something came on a bulk lane before their HEAD."""


_NONE: Final[frozenset[int]] = frozenset()


class Openings:
    """The peer's exchange ids, as far as they have come in."""

    __slots__ = ("_first", "ahead", "early", "expected")

    def __init__(self, first: int) -> None:
        self._first = first
        self.expected = first
        self.ahead: set[int] | frozenset[int] = _NONE
        self.early: dict[int, Early] = {}
        """By id: what came before the HEAD."""

    def arrive(self, number: int) -> None:
        """A HEAD opens this exchange. Each comes once, and none is left out."""
        if number == self.expected:
            number += 2
            ahead = self.ahead
            while number in ahead:
                assert isinstance(ahead, set)
                ahead.remove(number)
                number += 2
            self.expected = number
            return
        if self.has_come(number):
            raise SessionBroken(f"exchange {number}: opened twice")
        ahead = self.ahead
        if not isinstance(ahead, set):
            ahead = self.ahead = set()
        ahead.add(number)
        if len(ahead) > MAX_IDS_AHEAD:
            raise SessionBroken(f"exchange {self.expected} never came, {MAX_IDS_AHEAD} later ones did")

    def has_come(self, number: int) -> bool:
        """Whether the peer has opened this exchange."""
        return number < self.expected or number in self.ahead

    @property
    def total(self) -> int:
        """How many have come."""
        return (self.expected - self._first) // 2 + len(self.ahead)

    def early_of(self, lane: Lane, number: int) -> Early:
        """Where to keep what comes on `lane` for an exchange whose HEAD has not come."""
        early = self.early.get(number)
        if early is None:
            if len(self.early) >= MAX_UNOPENED:
                raise SessionBroken(f"frames of {MAX_UNOPENED} exchanges came before their HEAD")
            early = self.early[number] = Early(lane)
        elif early.lane is not lane:
            raise SessionBroken(f"exchange {number}: frames on three lanes")
        return early

"""How long a path may be left silent: a search between what has held and what has not. Pure; one object per path.

A NAT on the way forgets a UDP binding that nothing used for a while, and then nothing from outside gets in until the agent speaks
again. How long that is nobody tells. So the agent begins with the interval that nearly every NAT bears and lets it grow while
replies come from where they came before: to twice as much, or, once a binding was lost, half-way to what lost it. A reply that
shows another address after silence, or a session that died of silence, says that the interval was too long: it falls
back to what has held. The bound is the caller's: no interval is so long that the other end would take the silence for death.
"""

from __future__ import annotations

from typing import Final

FEATURE: Final = "observed-address"
"""In HELLO: append to PONG the address that the PING came from. In WELCOME: this end does, and lets a silent agent keep the path open."""

LEAST_S: Final = 1.0
PROOFS: Final = 3
"""Replies after as much silence that make an interval proven."""
CLOSE_ENOUGH: Final = 1.15
"""The search ends when what lost a binding is within this factor of what has held."""
FORGET_S: Final = 900.0
FORGET_INTERVALS: Final = 100
"""After this long (the longer of both) a lost binding may have been that of another network; the search goes on."""
SHARE_OF_DEAD_AFTER: Final = 2 / 3
"""The longest interval, as a share of the silence after which a peer is dead: there is time to say a lost packet again."""


class KeepAlive:
    """The search on one path. Times are monotonic seconds; it outlives the sessions of its path."""

    __slots__ = (
        "_first_s",
        "_most_s",
        "_replies",
        "_seen",
        "failed_at",
        "failed_s",
        "interval_s",
        "lost_total",
        "proven_s",
    )

    def __init__(self) -> None:
        self._first_s = 0.0
        self._most_s = 0.0
        self._replies = 0
        self._seen = b""
        self.interval_s = 0.0
        """How long the path is left silent now."""
        self.proven_s = 0.0
        self.failed_s = float("inf")
        """The shortest interval that lost a binding."""
        self.failed_at = 0.0
        self.lost_total = 0

    def begin(self, first_s: float, dead_after_s: float, idle_timeout_s: float = float("inf")) -> None:
        """A session is open on the path: what the exit node asks for, and how much silence either end bears."""
        self._most_s = max(first_s, SHARE_OF_DEAD_AFTER * min(dead_after_s, idle_timeout_s))
        self._seen = b""
        self._replies = 0
        if self._first_s != first_s:
            self._first_s = self.proven_s = self.interval_s = first_s
            self.failed_s = float("inf")
        self.interval_s = min(self.interval_s, self._most_s)
        self.proven_s = min(self.proven_s, self._most_s)

    def answered(self, seen: bytes, silence_s: float, now: float) -> None:
        """A reply came. `seen` is our address as the other end sees it, `silence_s` how long nothing had come before it was asked for."""
        was_silent = silence_s >= 0.9 * self.interval_s
        if self._seen and seen != self._seen:
            self._seen = seen
            if was_silent:
                self._lost(now)
            else:
                self._begin_anew()  # in the middle of traffic: another network
            return
        self._seen = seen
        if now - self.failed_at > max(FORGET_S, FORGET_INTERVALS * self.failed_s):
            self.failed_s = float("inf")
        if not was_silent:
            return
        self._replies += 1
        if self._replies >= PROOFS:
            self._replies = 0
            self.proven_s = max(self.proven_s, self.interval_s)
            self.interval_s = self._next_s()

    def died(self, now: float) -> None:
        """The session was lost while the path was silent."""
        if self.interval_s > 0:
            self._lost(now)

    def _lost(self, now: float) -> None:
        self.lost_total += 1
        self._replies = 0
        self.failed_at = now
        self.failed_s = min(self.failed_s, self.interval_s)
        if self.interval_s <= self.proven_s:  # what has held before does so no longer
            self.proven_s = max(min(LEAST_S, self._first_s), self.interval_s / 2)
        self.interval_s = self.proven_s

    def _begin_anew(self) -> None:
        self.interval_s = self.proven_s = self._first_s
        self.failed_s = float("inf")
        self._replies = 0

    def _next_s(self) -> float:
        if self.failed_s <= self.proven_s * CLOSE_ENOUGH:
            return self.proven_s
        longer_s = 2 * self.proven_s if self.failed_s == float("inf") else (self.proven_s + self.failed_s) / 2
        return min(longer_s, self._most_s)

"""When to try again: full-jitter exponential backoff, slow retries after a refusal. Pure: time and chance are handed in.

Full jitter (a delay anywhere between nothing and the bound) spreads a thousand agents that lost the same exit node over
the whole interval; a session that stood for a minute forgets the failures before it. Where the host itself says that nobody listens, a
try costs it one packet, so that one of the agent's slots may look often: it is back within a twentieth of the time it was away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_BOUND_S: Final = 0.25
MOST_S: Final = 30.0
STABLE_S: Final = 60.0
AWAY_LEAST_S: Final = 0.5
AWAY_SHARE: Final = 0.05
DRAIN_SHARE: Final = 0.1
DRAIN_MOST_S: Final = 1.0
REFUSED_LEAST_S: Final = 30.0
REFUSED_MOST_S: Final = 300.0
"""After a refusal that the same hello cannot change: slow, but not never, since somebody may mend it at the other end."""


def decide_delay_s(attempt: int, chance: float) -> float:
    """The delay before attempt 1, 2, ...; `chance` is in [0, 1)."""
    return chance * min(MOST_S, FIRST_BOUND_S * 2.0 ** min(max(attempt, 1) - 1, 16))


def decide_away_delay_s(away_s: float, chance: float) -> float:
    """The delay while nobody listens where the exit node was: a share of the time it has been away for."""
    return chance * min(MOST_S, max(AWAY_LEAST_S, AWAY_SHARE * away_s))


def decide_drained_delay_s(deadline_s: float, chance: float) -> float:
    """The delay before a session in place of one that drains: many are told so in the same moment, and none is in a hurry."""
    return chance * min(DRAIN_MOST_S, DRAIN_SHARE * deadline_s)


def decide_refused_delay_s(attempt: int, retry_after_s: float, chance: float) -> float:
    """The delay after the exit node refused a hello: what it asked for and a little more, or slower and slower when it said never."""
    if retry_after_s > 0:
        return min(retry_after_s, REFUSED_MOST_S) * (1.0 + 0.5 * chance)
    if retry_after_s == 0:
        return decide_delay_s(attempt, chance)
    bound_s = min(REFUSED_MOST_S, REFUSED_LEAST_S * 2.0 ** min(max(attempt, 1) - 1, 16))
    return bound_s * (0.5 + 0.5 * chance)


@dataclass(slots=True)
class Backoff:
    """Counts failures of one session slot."""

    attempt: int = 0
    opened_at: float | None = None
    away_since: float | None = None

    def opened(self, now: float) -> None:
        """A session is up."""
        self.opened_at = now
        self.away_since = None

    def lost(self, now: float, chance: float) -> float:
        """A session that was up is gone: seconds until the next attempt."""
        if self.opened_at is not None and now - self.opened_at >= STABLE_S:
            self.attempt = 0
        self.opened_at = None
        self.away_since = now
        self.attempt += 1
        return decide_delay_s(self.attempt, chance)

    def failed(self, chance: float) -> float:
        """An attempt failed: seconds until the next."""
        self.attempt += 1
        return decide_delay_s(self.attempt, chance)

    def nobody_listens(self, now: float, chance: float) -> float:
        """An attempt was turned away by the host, at no cost to any exit node: seconds until the next."""
        if self.away_since is None:
            self.away_since = now
        self.attempt += 1
        return decide_away_delay_s(now - self.away_since, chance)

    def refused(self, retry_after_s: float, chance: float) -> float:
        """The exit node said no: seconds until the next attempt."""
        self.attempt += 1
        return decide_refused_delay_s(self.attempt, retry_after_s, chance)

"""What an agent remembers of UDP to one exit node: whether QUIC is worth trying first, and when it may come back. Pure.

QUIC that lost to TLS is dead for a while. Then it is probed, and only after `HEALTHY_S` of probes that all answered do sessions go
back to it: a network that lets a packet through now and then is no reason to move. Failures are remembered over the way back:
from the third within `WINDOW_S` on, both the time until the next probe and the health that is asked for double each time,
so a path that comes and goes moves sessions less often.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

DEAD_FIRST_S: Final = 30.0
DEAD_MOST_S: Final = 600.0
HEALTHY_S: Final = 30.0
HEALTHY_MOST_S: Final = 600.0
PROBES_WHILE_HEALTHY: Final = 4
"""Probes that have to answer over the time of health, the first and the last included."""
OVERDUE_S: Final = 60.0
"""A probe that comes so much later than it was due begins the time of health anew."""
WINDOW_S: Final = 600.0
PATIENCE: Final = 2
"""Failures within the window that slow nothing."""

PathState = Literal["preferred", "fallback", "recovering"]
"""On the best transport; on another since QUIC does not get through; on another while QUIC shows how well it is."""
STATES: Final[tuple[PathState, ...]] = ("preferred", "fallback", "recovering")


@dataclass(slots=True)
class UdpMemory:
    """Of one endpoint. Times are monotonic seconds, `chance` in [0, 1) spreads the agents' probes."""

    dead_until: float = 0.0
    misses: int = 0
    """Since QUIC was last in use."""
    healthy_since: float | None = None
    answered_at: float = 0.0
    """When the last probe that was answered was."""
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    """When QUIC failed although TLS worked, those of the window."""

    def is_dead(self, now: float) -> bool:
        """Whether to start with TLS at once."""
        return now < self.dead_until or self.healthy_since is not None

    @property
    def is_in_doubt(self) -> bool:
        """Whether QUIC has to show that it works before a session goes back to it."""
        return self.misses > 0

    @property
    def probe_at(self) -> float:
        """When QUIC is to be tried next, in doubt or not."""
        return self.dead_until

    @property
    def state(self) -> PathState:
        """As of a session that is not on QUIC."""
        return "fallback" if self.healthy_since is None else "recovering"

    def healthy_at(self, now: float) -> float | None:
        """When sessions go back, should every probe until then answer."""
        return None if self.healthy_since is None else self.healthy_since + self._health_wanted_s(now)

    def lost_to_tls(self, now: float, chance: float) -> None:
        """TLS opened and QUIC did not."""
        self.failures.append(now)
        self._missed(now, chance)

    def opened(self) -> None:
        """A QUIC session opened. The failures before it are not forgotten."""
        self.dead_until = 0.0
        self.misses = 0
        self.healthy_since = None

    def claim(self, now: float) -> None:
        """Somebody probes now: the others wait for what comes of it."""
        self.dead_until = now + self._probe_every_s(now)

    def probed(self, answered: bool, now: float, chance: float) -> bool:
        """A probe came to its end; True when QUIC has been well for long enough to go back to it."""
        if not answered:
            self.healthy_since = None
            self._missed(now, chance)
            return False
        if self.healthy_since is None or now - self.answered_at > self._probe_every_s(now) + OVERDUE_S:
            self.healthy_since = now  # nobody probed for a while: what was known then says nothing of now
        self.answered_at = now
        left_s = self.healthy_since + self._health_wanted_s(now) - now
        if left_s <= 0:
            return True
        self.dead_until = now + min(left_s, self._probe_every_s(now))
        return False

    def _missed(self, now: float, chance: float) -> None:
        self.misses += 1
        self.healthy_since = None
        doublings = min(self.misses - 1 + self._flaps(now), 16)
        self.dead_until = now + min(DEAD_MOST_S, DEAD_FIRST_S * 2.0**doublings) * (0.75 + 0.5 * chance)

    def _flaps(self, now: float) -> int:
        """Failures of the window beyond those that slow nothing."""
        while self.failures and self.failures[0] < now - WINDOW_S:
            self.failures.popleft()
        return max(0, len(self.failures) - PATIENCE)

    def _health_wanted_s(self, now: float) -> float:
        return min(HEALTHY_MOST_S, HEALTHY_S * 2.0 ** min(self._flaps(now), 16))

    def _probe_every_s(self, now: float) -> float:
        return self._health_wanted_s(now) / (PROBES_WHILE_HEALTHY - 1)

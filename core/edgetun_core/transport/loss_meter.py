"""Whether a path loses packets at random, read off a connection's counts. Pure.

A controller that takes loss for congestion makes an episode of it and then sends on for a long while: on a path of 10 Mbit/s and 50 ms
cubic loses in one episode per 3,000 packets. Random loss comes in an episode per hundred packets, whatever the window.
"""

from __future__ import annotations

from typing import Final, Literal

Verdict = Literal["lossy", "clean"]

LOSSY_EPISODES: Final = 5
LOSSY_SHARE: Final = 0.005
"""Episodes per packet sent; half a percent is where the other controller begins to win (bench/congestion.py)."""
CLEAN_SHARE: Final = 0.001
"""Lost packets per packet sent."""
WINDOW_PACKETS: Final = 4000


class LossMeter:
    """Fed with a connection's running totals; says something when it is sure of it."""

    __slots__ = ("_episode_ends", "_episodes", "_from_lost", "_from_sent", "_lost")

    def __init__(self) -> None:
        self._from_sent = 0
        self._from_lost = 0
        self._lost = 0
        self._episodes = 0
        self._episode_ends = 0.0

    def observe(self, sent: int, lost: int, rtt_s: float, now: float) -> Verdict | None:
        """`sent` and `lost` are packets since the connection began; what is lost within a round trip is one episode."""
        if lost > self._lost:
            self._lost = lost
            if now >= self._episode_ends:
                self._episode_ends = now + rtt_s
                self._episodes += 1
        packets = sent - self._from_sent
        if self._episodes >= LOSSY_EPISODES and self._episodes >= LOSSY_SHARE * packets:
            self._begin(sent)
            return "lossy"
        if packets < WINDOW_PACKETS:
            return None
        is_clean = lost - self._from_lost <= CLEAN_SHARE * packets
        self._begin(sent)
        return "clean" if is_clean else None

    def _begin(self, sent: int) -> None:
        self._from_sent = sent
        self._from_lost = self._lost
        self._episodes = 0

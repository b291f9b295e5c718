"""Whether a path loses packets at random, read off a connection's counts. Pure.

A controller that takes loss for congestion makes an episode of it and then sends on for a long while: on a path of 10 Mbit/s and 50 ms
cubic loses in one episode per 3,000 packets. Random loss comes in an episode per hundred packets, whatever the window.

Where a round trip is long, five episodes take long to come: a window that loss has made small sends few packets. There three are enough, if
the round trip has not grown when they come (no queue) and they are not most of what was sent (no start that ran over a short queue).
"""

from __future__ import annotations

from typing import Final, Literal

Verdict = Literal["lossy", "clean"]

LOSSY_EPISODES: Final = 5
LOSSY_SHARE: Final = 0.005
"""Episodes per packet sent; half a percent is where the other controller begins to win (bench/congestion.py)."""
QUIET_EPISODES: Final = 3
QUIET_FROM_RTT_S: Final = 0.02
QUIET_GROWTH: Final = 1.125
QUIET_SLACK_S: Final = 0.004
QUIET_MOST_LOST: Final = 0.15
"""Packets lost per packet sent; a slow start that doubles into a full queue loses more."""
CLEAN_SHARE: Final = 0.001
"""Lost packets per packet sent."""
WINDOW_PACKETS: Final = 4000


class LossMeter:
    """Fed with a connection's running totals; says something when it is sure of it."""

    __slots__ = ("_episode_ends", "_episodes", "_from_lost", "_from_sent", "_least_rtt_s", "_lost", "_quiet_episodes")

    def __init__(self) -> None:
        self._from_sent = 0
        self._from_lost = 0
        self._lost = 0
        self._episodes = 0
        self._quiet_episodes = 0
        self._least_rtt_s = float("inf")
        self._episode_ends = 0.0

    def observe(self, sent: int, lost: int, rtt_s: float, now: float) -> Verdict | None:
        """`sent` and `lost` are packets since the connection began; what is lost within a round trip is one episode."""
        if 0 < rtt_s < self._least_rtt_s:
            self._least_rtt_s = rtt_s
        if lost > self._lost:
            self._lost = lost
            if now >= self._episode_ends:
                self._episode_ends = now + rtt_s
                self._episodes += 1
                self._quiet_episodes += rtt_s <= self._least_rtt_s * QUIET_GROWTH + QUIET_SLACK_S
        packets = sent - self._from_sent
        if self._is_lossy(packets, lost - self._from_lost):
            self._begin(sent)
            return "lossy"
        if packets < WINDOW_PACKETS:
            return None
        is_clean = lost - self._from_lost <= CLEAN_SHARE * packets
        self._begin(sent)
        return "clean" if is_clean else None

    def _is_lossy(self, packets: int, lost: int) -> bool:
        episodes = self._episodes
        if episodes < QUIET_EPISODES or episodes < LOSSY_SHARE * packets:
            return False
        if episodes >= LOSSY_EPISODES:
            return True
        is_quiet = self._quiet_episodes >= QUIET_EPISODES and lost <= QUIET_MOST_LOST * packets
        return is_quiet and self._least_rtt_s >= QUIET_FROM_RTT_S

    def _begin(self, sent: int) -> None:
        self._from_sent = sent
        self._from_lost = self._lost
        self._episodes = self._quiet_episodes = 0

"""One direction of a bad network, as a decision per packet. Pure: time and a seed are handed in."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Impairment:
    """What a direction does to packets. Times are in seconds, one way; sizes are of the packet as the path sees it.

    `loss` and `reorder` are shares in [0, 1]; a reordered packet overtakes those that are delayed. `jitter_s` is added to the delay,
    uniformly from nothing. `rate_bytes_s` of 0 is no bound; behind it at most `queue_bytes` wait, the rest is lost (drop-tail).
    `mtu_bytes` of 0 is no bound; a larger packet is lost without a word, as where ICMP is filtered.
    """

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    reorder: float = 0.0
    rate_bytes_s: float = 0.0
    queue_bytes: int = 256 * 1024
    mtu_bytes: int = 0
    is_black_hole: bool = False


GOOD = Impairment()


class Wire:
    """One direction. `carry` is asked once per packet, in order of time."""

    def __init__(self, impairment: Impairment = GOOD, seed: int = 1) -> None:
        self.impairment = impairment
        self.lose_next = 0
        """So many packets are lost from now on, whatever the share."""
        self.carried = 0
        self.lost = 0
        self.too_large = 0
        self.overflowed = 0
        self._random = random.Random(seed)
        self._sent_at = 0.0
        self._last_arrival = 0.0

    def carry(self, size_bytes: int, now: float) -> float | None:
        """When the packet arrives; None when it is lost. Packets keep their order but for those that `reorder` chooses."""
        it = self.impairment
        if self.lose_next:
            self.lose_next -= 1
            self.lost += 1
            return None
        if it.is_black_hole or (it.loss and self._random.random() < it.loss):
            self.lost += 1
            return None
        if it.mtu_bytes and size_bytes > it.mtu_bytes:
            self.too_large += 1
            return None
        sent_at = now
        if it.rate_bytes_s:
            starts_at = max(now, self._sent_at)
            if (starts_at - now) * it.rate_bytes_s > it.queue_bytes:
                self.overflowed += 1
                return None
            sent_at = self._sent_at = starts_at + size_bytes / it.rate_bytes_s
        self.carried += 1
        if it.reorder and self._random.random() < it.reorder:
            return sent_at
        jitter_s = self._random.random() * it.jitter_s if it.jitter_s else 0.0
        self._last_arrival = max(self._last_arrival, sent_at + it.delay_s + jitter_s)
        return self._last_arrival

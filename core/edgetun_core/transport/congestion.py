"""A congestion controller for paths that lose packets at random: what the path delivers sets the window, not what it loses.

A window of `HEADROOM` x (delivery rate x least round trip): the model of BBR (draft-ietf-ccwg-bbr), sampled as in
draft-cheng-iccrg-delivery-rate-estimation, with a window alone since the library paces at window / round trip. Loss counts as
congestion in two cases only, per round trip: more than usual by `LOSS_WITH_QUEUE` of the bytes while the round trip has grown (usual
is what is lost while it has not), or more than `LOSS_ALWAYS` (a policer, a shallow buffer). Then a ceiling 0.7 x the window holds, and
rises by an eighth per quiet round.

aioquic takes controllers by name (`register_congestion_control`); qh3's is inside its packet core and cannot be replaced. Hot
path: `on_packet_sent` and `on_packet_acked` run once per packet, the rest once per acknowledgement.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aioquic.quic.congestion.base import K_MINIMUM_WINDOW, QuicCongestionControl, register_congestion_control
from aioquic.quic.packet_builder import QuicSentPacket

NAME: Final = "rate"

HEADROOM: Final = 1.5
"""Times the bandwidth-delay product; what is beyond 1 is queue at the bottleneck, and what finds new bandwidth."""
ALLOWANCE_BYTES: Final = 32 * 1024
"""On top, for receivers that acknowledge in bursts and for processes that are not scheduled at once."""
MAX_WINDOW_BYTES: Final = 8 * 1024 * 1024
RATE_ROUNDS: Final = 10
"""How many round trips the highest delivery rate is remembered."""
MIN_RTT_S: Final = 10.0
"""How long the least round trip is believed; then the queue is let run empty for a round trip to measure it anew."""
FULL_ROUNDS: Final = 3
FULL_GROWTH: Final = 1.25
LOSS_WITH_QUEUE: Final = 0.02
LOSS_ALWAYS: Final = 0.25
NOISE_WEIGHT: Final = 0.25
BETA: Final = 0.7
QUEUE_RATIO: Final = 1.25
QUEUE_SLACK_S: Final = 0.005
QUEUE_SAMPLES: Final = 8


class RateController(QuicCongestionControl):
    """See above; the shape is aioquic's."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.sent = 0
        self.lost = 0
        """Packets, since the connection began."""
        self._packet_bytes = max_datagram_size
        self._delivered = 0
        self._delivered_at = 0.0
        self._least_rtt_s = float("inf")
        self._least_rtt_at = 0.0
        self._rates: list[tuple[int, float]] = []
        """(round, bytes per second), rates falling: the highest of the last rounds is the first."""
        self._round = 0
        self._round_ends = 0
        self._round_least_rtt_s = float("inf")
        self._round_samples = 0
        self._round_lost = 0
        self._round_began = 0
        self._is_starting = True
        self._full_rate = 0.0
        self._full_rounds = 0
        self._noise = 0.0
        """The share that is lost while the path has no queue."""
        self._draining_until = 0
        self._ceiling: float = MAX_WINDOW_BYTES
        self._sample: tuple[int, float, bool] | None = None

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        if not self.bytes_in_flight:
            self._delivered_at = packet.sent_time or 0.0
        self.bytes_in_flight += packet.sent_bytes
        self.sent += 1
        packet.__dict__["sample"] = (
            self._delivered,
            self._delivered_at,
            self.bytes_in_flight * 2 < self.congestion_window,
        )

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        size = packet.sent_bytes
        self.bytes_in_flight -= size
        self._delivered += size
        self._delivered_at = now
        self._sample = packet.__dict__["sample"]
        if self._is_starting:
            self.congestion_window = min(self.congestion_window + size, MAX_WINDOW_BYTES, int(self._ceiling))

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        sample = self._sample
        if sample is None:
            return
        self._sample = None
        before, before_at, is_idle = sample
        self._round_least_rtt_s = min(self._round_least_rtt_s, rtt)
        self._round_samples += 1
        if rtt <= self._least_rtt_s:
            self._least_rtt_s, self._least_rtt_at = rtt, now
        elapsed = now - before_at
        if elapsed >= self._least_rtt_s * 0.5 and elapsed > 0:
            self._learn((self._delivered - before) / elapsed, is_idle=is_idle)
        if before >= self._round_ends:
            self._end_round(now, is_idle=is_idle)
        elif self._is_starting and self._round_samples == QUEUE_SAMPLES and self._has_queue:
            self._is_starting = False
        if not self._is_starting:
            self._set_window()

    @property
    def _has_queue(self) -> bool:
        """Not one packet of this round found the path empty."""
        return self._round_least_rtt_s > self._least_rtt_s * QUEUE_RATIO + QUEUE_SLACK_S

    def _learn(self, rate: float, *, is_idle: bool) -> None:
        rates = self._rates
        if is_idle and rates and rate < rates[0][1]:
            return  # says what was asked of the path, not what it can
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((self._round, rate))
        while rates[0][0] < self._round - RATE_ROUNDS:
            rates.pop(0)

    def _end_round(self, now: float, *, is_idle: bool) -> None:
        self._round += 1
        self._round_ends = self._delivered + self.bytes_in_flight
        delivered = self._delivered - self._round_began
        loss = self._round_lost / (self._round_lost + delivered) if self._round_lost else 0.0
        has_queue = self._has_queue
        is_enough = self._round_lost > 4 * self._packet_bytes
        if not has_queue:
            self._noise += NOISE_WEIGHT * (min(loss, LOSS_ALWAYS) - self._noise)
        if is_enough and (loss > LOSS_ALWAYS or (has_queue and loss > 1.5 * self._noise + LOSS_WITH_QUEUE)):
            self._is_starting = False
            self._ceiling = max(self.congestion_window * BETA, K_MINIMUM_WINDOW * self._packet_bytes)
        elif self._ceiling < MAX_WINDOW_BYTES:
            self._ceiling *= 1.125
        if self._is_starting and not is_idle and self._rates:
            rate = self._rates[0][1]
            if rate >= self._full_rate * FULL_GROWTH:
                self._full_rate, self._full_rounds = rate, 0
            else:
                self._full_rounds += 1
            self._is_starting = self._full_rounds < FULL_ROUNDS and not has_queue
        if now - self._least_rtt_at > MIN_RTT_S and not self._draining_until:
            self._draining_until = self._round + 2
        elif self._draining_until and self._round >= self._draining_until:
            self._draining_until = 0
            self._least_rtt_s, self._least_rtt_at = self._round_least_rtt_s, now
        self._round_began = self._delivered
        self._round_lost = 0
        self._round_samples = 0
        self._round_least_rtt_s = float("inf")

    def _set_window(self) -> None:
        rate = self._rates[0][1] if self._rates else 0.0
        product = rate * self._least_rtt_s
        wanted = product * 0.5 if self._draining_until else min(product * HEADROOM + ALLOWANCE_BYTES, self._ceiling)
        self.congestion_window = int(max(K_MINIMUM_WINDOW * self._packet_bytes, min(wanted, MAX_WINDOW_BYTES)))

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self._round_lost += packet.sent_bytes
            self.lost += 1

    def on_persistent_congestion(self) -> None:
        self.congestion_window = K_MINIMUM_WINDOW * self._packet_bytes
        self._rates.clear()
        self._is_starting = True
        self._full_rate = 0.0
        self._full_rounds = 0


register_congestion_control(NAME, RateController)

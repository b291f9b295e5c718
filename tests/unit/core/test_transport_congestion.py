"""The rate controller on simulated paths: what it makes of random loss, of a bottleneck's queue, of a policer, of silence."""

from __future__ import annotations

import heapq
import random

from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery
from aioquic.tls import Epoch

from edgetun_core.transport.congestion import MAX_WINDOW_BYTES, NAME, RateController

PACKET = 1200


class Path:
    """A sender that always has data, a bottleneck with a queue in front of it, and a receiver that acknowledges each packet."""

    def __init__(self, round_trip_s: float, loss: float = 0.0, rate: float = 100e6, queue_bytes: float = 1e9) -> None:
        self.controller = RateController(max_datagram_size=PACKET)
        self.round_trip_s = round_trip_s
        self.loss = loss
        self.rate = rate
        self.queue_bytes = queue_bytes
        self.now = 1.0
        self.delivered = 0
        self.round_trips: list[float] = []
        self._free_at = 0.0
        self._random = random.Random(7)
        self._number = 0
        self._due: list[tuple[float, int, QuicSentPacket, bool]] = []

    def _send(self) -> None:
        self._number += 1
        packet = QuicSentPacket(
            epoch=Epoch.ONE_RTT,
            in_flight=True,
            is_ack_eliciting=True,
            is_crypto_packet=False,
            packet_number=self._number,
            packet_type=QuicPacketType.ONE_RTT,
            sent_time=self.now,
            sent_bytes=PACKET,
        )
        self.controller.on_packet_sent(packet=packet)
        starts_at = max(self.now, self._free_at)
        is_lost = self._random.random() < self.loss or (starts_at - self.now) * self.rate > self.queue_bytes
        if not is_lost:
            self._free_at = starts_at + PACKET / self.rate
        at = starts_at + PACKET / self.rate + self.round_trip_s
        heapq.heappush(self._due, (at, self._number, packet, is_lost))

    def run(self, seconds: float) -> float:
        """Bytes per second that arrived."""
        until, before = self.now + seconds, self.delivered
        while self.now < until:
            while self.controller.bytes_in_flight + PACKET <= self.controller.congestion_window:
                self._send()
            self.now, _, packet, is_lost = heapq.heappop(self._due)
            assert packet.sent_time is not None
            if is_lost:
                self.controller.on_packets_lost(now=self.now, packets=[packet])
            else:
                self.delivered += PACKET
                self.round_trips.append(self.now - packet.sent_time)
                self.controller.on_packet_acked(now=self.now, packet=packet)
                self.controller.on_rtt_measurement(now=self.now, rtt=self.now - packet.sent_time)
        return (self.delivered - before) / seconds


def test_random_loss_does_not_take_the_path_away() -> None:
    path = Path(0.05, loss=0.1, rate=1e6)
    path.run(2)
    assert path.run(2) > 0.75 * 1e6


def test_a_bottleneck_is_filled_and_its_queue_stays_short() -> None:
    path = Path(0.05, rate=2e6)
    path.run(2)
    path.round_trips.clear()
    assert path.run(2) > 0.9 * 2e6
    assert (
        max(path.round_trips) < 0.05 * 2
    )  # the path itself, half of it again, and the allowance of 16 ms at this rate


def test_a_queue_that_overflows_is_not_run_over() -> None:
    """Loss that comes with a queue is congestion: most of what is sent arrives."""
    path = Path(0.02, rate=1e6, queue_bytes=20_000)
    path.run(5)
    sent, delivered = path._number, path.delivered
    path.run(5)
    arrived = (path.delivered - delivered) / PACKET / (path._number - sent)
    assert arrived > 0.85
    assert path.delivered > 0.8 * 10 * 1e6


def test_a_path_that_loses_most_gets_the_least() -> None:
    path = Path(0.02, loss=0.6)
    path.run(2)
    assert path.controller.congestion_window < 100 * PACKET


def test_the_window_is_bounded() -> None:
    path = Path(2.0, rate=1e9)
    path.run(24)
    assert path.controller.congestion_window <= MAX_WINDOW_BYTES


def test_what_is_asked_of_an_idle_path_does_not_say_how_fast_it_is() -> None:
    path = Path(0.05, rate=1e6)
    path.run(2)
    window = path.controller.congestion_window
    controller = path.controller
    while path._due:
        path.now, _, packet, _ = heapq.heappop(path._due)
        controller.on_packet_acked(now=path.now, packet=packet)
        controller.on_rtt_measurement(now=path.now, rtt=0.05)
    for _ in range(30):  # one small packet per round trip
        path._send()
        path.now, _, packet, _ = heapq.heappop(path._due)
        controller.on_packet_acked(now=path.now, packet=packet)
        controller.on_rtt_measurement(now=path.now, rtt=0.05)
    assert controller.congestion_window > window / 2


def test_a_round_trip_that_grew_for_good_is_learnt() -> None:
    path = Path(0.02, rate=0.4e6)
    path.run(2)
    path.round_trip_s = 0.2
    path.run(25)
    assert path.run(2) > 0.8 * 0.4e6


def test_persistent_congestion_begins_anew() -> None:
    path = Path(0.05, rate=1e6)
    path.run(2)
    path.controller.on_persistent_congestion()
    assert path.controller.congestion_window == 2 * PACKET
    path.run(2)
    assert path.run(2) > 0.9 * 1e6


def test_the_library_takes_it_by_its_name() -> None:
    recovery = QuicPacketRecovery(
        congestion_control_algorithm=NAME,
        initial_rtt=0.3,
        max_datagram_size=PACKET,
        peer_completed_address_validation=True,
        send_probe=lambda: None,
    )
    assert isinstance(recovery._cc, RateController)
    assert recovery.congestion_window == 10 * PACKET

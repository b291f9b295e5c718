"""A peer that moves: where its packets go, and how much before it is known that they reach it."""

from __future__ import annotations

from edgetun_core.transport.peer_address import PROVE_WITHIN_S, PeerAddress
from edgetun_core.transport.udp import Address

HOME: Address = ("192.0.2.1", 1000)
HOME_AGAIN: Address = ("192.0.2.1", 2000)
TRAIN: Address = ("198.51.100.7", 1000)
PACKETS = [bytes(1000)] * 10


def test_another_port_of_the_same_host_is_followed_at_once() -> None:
    peer = PeerAddress(HOME)
    assert peer.heard(HOME_AGAIN, 100, 0.0) == 0
    assert peer.current == HOME_AGAIN
    assert peer.allowed(PACKETS, 0.0) == PACKETS


def test_another_host_gets_three_times_what_it_sent_until_it_answers() -> None:
    peer = PeerAddress(HOME)
    probe = peer.heard(TRAIN, 700, 0.0)
    assert probe
    assert peer.current == TRAIN
    assert len(peer.allowed(PACKETS, 0.1)) == 2
    assert peer.allowed(PACKETS, 0.1) == []
    peer.heard(TRAIN, 1000, 0.2)
    assert len(peer.allowed(PACKETS, 0.2)) == 3
    peer.acknowledged(probe)
    assert peer.allowed(PACKETS, 0.3) == PACKETS
    assert peer.current == TRAIN


def test_who_does_not_answer_is_sent_nothing_more() -> None:
    peer = PeerAddress(HOME)
    peer.heard(TRAIN, 700, 0.0)
    assert peer.allowed(PACKETS, PROVE_WITHIN_S) == PACKETS
    assert peer.current == HOME


def test_a_probe_of_an_earlier_address_proves_nothing_of_a_later_one() -> None:
    peer = PeerAddress(HOME)
    early = peer.heard(TRAIN, 700, 0.0)
    late = peer.heard(("203.0.113.9", 1), 700, 0.1)
    peer.acknowledged(early)
    assert peer.is_proving
    peer.acknowledged(late)
    assert not peer.is_proving


def test_another_port_while_the_host_is_unproven_keeps_the_bound() -> None:
    peer = PeerAddress(HOME)
    peer.heard(TRAIN, 700, 0.0)
    peer.allowed(PACKETS, 0.0)
    peer.heard((TRAIN[0], 2000), 100, 0.1)
    assert peer.is_proving
    assert peer.current == (TRAIN[0], 2000)
    assert peer.allowed(PACKETS, 0.1) == []


def test_probes_are_repeated_while_there_is_no_answer() -> None:
    peer = PeerAddress(HOME)
    probes = [peer.heard(TRAIN, 100, tick / 10) for tick in range(10)]
    assert [probe for probe in probes if probe] == [1, 2, 3, 4]


def test_back_at_a_proven_host_nothing_is_to_be_proven() -> None:
    peer = PeerAddress(HOME)
    peer.heard(TRAIN, 100, 0.0)
    assert peer.heard(HOME_AGAIN, 100, 0.1) == 0
    assert not peer.is_proving
    assert peer.current == HOME_AGAIN

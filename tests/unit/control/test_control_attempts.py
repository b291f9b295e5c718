"""Failed attempts are counted per address, in bounded memory."""

from __future__ import annotations

from edgetun_control.attempts import FailedAttempts, address_key


def test_whoever_fails_too_often_waits_out_the_window():
    attempts = FailedAttempts(most=3, window_s=60)
    for at in (0.0, 10.0, 20.0):
        assert attempts.wait_s("192.0.2.1", at) == 0
        attempts.note("192.0.2.1", at)
    assert attempts.wait_s("192.0.2.1", 25.0) == 35.0
    assert attempts.wait_s("192.0.2.2", 25.0) == 0
    assert attempts.wait_s("192.0.2.1", 60.0) == 0
    attempts.note("192.0.2.1", 60.0)
    assert attempts.wait_s("192.0.2.1", 61.0) == 0


def test_an_ipv6_network_counts_as_one_address_and_a_mapped_one_as_ipv4():
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:2") != address_key("2001:db8:0:1::1")
    assert address_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert len(address_key("x" * 1000)) <= 64


def test_a_million_addresses_need_no_more_memory_than_the_bound():
    attempts = FailedAttempts(most=1, most_addresses=100)
    for number in range(1000):
        attempts.note(f"10.0.{number >> 8}.{number & 255}", 0.0)
    assert len(attempts) == 100
    assert attempts.wait_s("10.0.3.231", 1.0) > 0

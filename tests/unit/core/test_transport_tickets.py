"""Session tickets: used once, bounded, and not for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from edgetun_core.transport.tickets import MAX_REMEMBERED, REMEMBERED_FOR_S, Remembered, Tickets


def ticket(number: int, name: str | None = "a") -> Any:
    return SimpleNamespace(ticket=b"%d" % number, server_name=name)


def test_a_listeners_ticket_is_good_for_one_use() -> None:
    tickets = Tickets()
    tickets.put(ticket(1))
    assert tickets.take_any(b"1") is not None
    assert tickets.take_any(b"1") is None


def test_a_ticket_for_another_name_is_used_up_and_refused() -> None:
    tickets = Tickets()
    tickets.put(ticket(1))
    assert tickets.take(b"1", "b") is None
    assert tickets.take(b"1", "a") is None


def test_a_listeners_tickets_are_bounded() -> None:
    tickets = Tickets(capacity=2)
    for number in range(3):
        tickets.put(ticket(number))
    assert len(tickets) == 2
    assert tickets.take_any(b"0") is None


def test_a_dialler_uses_the_newest_ticket_of_a_peer_once() -> None:
    remembered = Remembered()
    remembered.put("peer", "old", 0.0)
    remembered.put("peer", "new", 1.0)
    assert remembered.take("peer", 2.0) == "new"
    assert remembered.take("peer", 2.0) is None


def test_an_hour_later_a_peer_shows_its_certificate_again() -> None:
    remembered = Remembered()
    remembered.put("peer", "ticket", 0.0)
    assert remembered.take("peer", REMEMBERED_FOR_S) is None


def test_what_a_dialler_remembers_is_bounded() -> None:
    remembered = Remembered()
    for number in range(MAX_REMEMBERED + 1):
        remembered.put(number, number, 0.0)
    assert remembered.take(0, 1.0) is None
    assert remembered.take(1, 1.0) == 1

"""The invariant checker finds what it is there to find: each test takes a good history and spoils one thing."""

from __future__ import annotations

import dataclasses

import pytest

from support.chaos.history import CACHED, LEAVING, POST, SMALL, History, Rules, Served, Visit, check, summary
from support.chaos.pages import Page, Unreadable, body, length_bytes, read

RULES = Rules(ttl_s=1.0, stale_s={"pair": 2.0}, slack_s=1.0, late_s=2.0)
SENT = "d1gest"


def good() -> History:
    """Four answered visits of two tunnels, one that was refused, one that was broken off, and what the origins saw of them."""
    visits = [
        visit(1, SMALL, "shop", "/small?visit=1", page=page("shop", "/small?visit=1", 100.1)),
        visit(2, POST, "shop", "/echo?visit=2", page=page("shop", "/echo?visit=2", 100.1, took=SENT), sent=SENT),
        visit(3, CACHED, "pair", "/cached/0", page=page("pair", "/cached/0", 98.0)),
        visit(4, LEAVING, "pair", "/leaving?visit=4"),
        visit(5, SMALL, "pair", "/small?visit=5", status=503),
        visit(6, POST, "pair", "/echo?visit=6", status=None, error="reset", sent=SENT),
    ]
    served = [
        Served("shop", "GET", "/small?visit=1", 1, 100.1, 100.1),
        Served("shop", "POST", "/echo?visit=2", 2, 100.1, 100.1),
        Served("pair", "GET", "/cached/0", 0, 98.0, 98.0),
        Served("pair", "GET", "/leaving?visit=4", 4, 100.1, 100.2, was_cancelled=True),
        Served("pair", "POST", "/echo?visit=6", 6, 100.1, 100.2, was_cancelled=True),
    ]
    return History(visits, served)


def visit(number: int, kind: str, tunnel: str, target: str, **more: object) -> Visit:
    facts: dict[str, object] = {
        "node": "exit-1", "began": 100.0, "ended": 100.2, "deadline_s": 10.0, "status": 200, **more,
    }  # fmt: skip
    return Visit(number, kind, tunnel, target, **facts)  # type: ignore[arg-type]


def page(tunnel: str, target: str, made_at: float, took: str = "") -> Page:
    return Page(tunnel, target, made_at, 100, 1, took)


def spoil(number: int, **changes: object) -> History:
    history = good()
    index = number - 1
    history.visits[index] = dataclasses.replace(history.visits[index], **changes)  # type: ignore[arg-type]
    return history


def only_problem(history: History) -> str:
    problems = check(history, RULES)
    assert len(problems) == 1, problems
    return problems[0]


def test_a_good_history_has_no_problem() -> None:
    assert check(good(), RULES) == []


def test_wrong_bytes_a_wrong_tunnel_a_wrong_page_and_a_wrong_echo_are_found() -> None:
    assert "wrong bytes: the checksum" in only_problem(spoil(1, page=None, flaw="the checksum does not fit"))
    assert "wrong bytes: nothing was read" in only_problem(spoil(1, page=None))
    assert "wrong tunnel" in only_problem(spoil(1, page=page("pair", "/small?visit=1", 100.1)))
    assert "wrong page" in only_problem(spoil(1, page=page("shop", "/small?visit=9", 100.1)))
    assert "wrong echo" in only_problem(spoil(2, page=page("shop", "/echo?visit=2", 100.1, took="other")))


@pytest.mark.parametrize("status", [200, 500, 404, 421, 101, 206])
def test_a_status_that_no_fault_excuses_is_found(status: int) -> None:
    problems = check(spoil(5, status=status), RULES)
    assert len(problems) == 1


def test_a_visitor_who_waited_past_the_deadline_is_found() -> None:
    assert check(spoil(5, ended=111.9), RULES) == []
    assert "waited 12.1 s" in only_problem(spoil(5, ended=112.1))
    assert "waited 12.1 s" in only_problem(spoil(6, ended=112.1))


def test_a_request_that_is_still_open_at_the_origin_is_found() -> None:
    history = good()
    history.served[3].ended = None
    assert "still open" in only_problem(history)


def test_a_post_that_ran_twice_is_found_and_a_get_may() -> None:
    history = good()
    history.served.append(dataclasses.replace(history.served[0]))
    assert check(history, RULES) == []
    history.served.append(dataclasses.replace(history.served[1]))
    assert "ran 2 times" in only_problem(history)


def test_a_broken_off_post_that_ran_twice_is_found() -> None:
    history = good()
    history.served.append(dataclasses.replace(history.served[4]))
    assert "ran 2 times" in only_problem(history)


def test_a_post_that_was_answered_and_never_ran_or_ran_and_was_never_sent_is_found() -> None:
    history = good()
    del history.served[1]
    assert "never run" in only_problem(history)
    history = good()
    history.served.append(Served("shop", "POST", "/echo?visit=77", 77, 100.0, 100.1))
    assert "nobody sent" in only_problem(history)


def test_a_request_at_another_tunnels_origin_is_found() -> None:
    history = good()
    history.served[0].tunnel = "pair"
    assert "a request for shop at the origin of pair" in only_problem(history)


def test_an_answer_that_is_older_than_its_lifetime_and_what_is_allowed_beyond_is_found() -> None:
    assert check(spoil(3, page=page("pair", "/cached/0", 96.1)), RULES) == []
    assert "4.10 s old" in only_problem(spoil(3, page=page("pair", "/cached/0", 95.9)))
    of_shop = spoil(3, tunnel="shop", page=page("shop", "/cached/0", 97.9))
    assert "2.10 s old" in only_problem(of_shop)


def test_a_page_made_for_another_request_of_the_same_name_is_found() -> None:
    assert "made -1.00 s after" in only_problem(spoil(1, page=page("shop", "/small?visit=1", 99.0)))
    assert "made 3.00 s after" in only_problem(spoil(1, page=page("shop", "/small?visit=1", 103.0)))


def test_the_summary_counts_what_visitors_got() -> None:
    assert summary(good()) == (
        "cached: 1 x 200; leaving: 1 x 200; post: 1 x 200, 1 x broken off; small: 1 x 200, 1 x 503; "
        "origins: 5 requests, 2 cancelled"
    )


class TestPages:
    PAGE = Page("shop", "/large?visit=1", 100.0, 40_000, 7)

    def test_a_whole_body_says_what_it_is(self) -> None:
        assert read(body(self.PAGE)) == self.PAGE
        assert len(body(self.PAGE)) == length_bytes(self.PAGE)

    @pytest.mark.parametrize("at", [0, 20, 5_000, 39_999, -1, -30])
    def test_one_other_byte_is_found(self, at: int) -> None:
        data = bytearray(body(self.PAGE))
        data[at] ^= 1
        with pytest.raises(Unreadable):
            read(bytes(data))

    def test_a_cut_a_longer_and_a_mixed_body_are_found(self) -> None:
        data, other = body(self.PAGE), body(dataclasses.replace(self.PAGE, serial=8))
        for wrong in (data[:-1], data + b"x", data[:1000] + other[1000:], data[: len(data) // 2], b"", other[500:]):
            with pytest.raises(Unreadable):
                read(wrong)

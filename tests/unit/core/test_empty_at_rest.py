"""What many objects begin with and share as long as it is empty: one that gets something gets a place of its own."""

from __future__ import annotations

from edgetun_core import memo
from edgetun_core.memo import Memo
from edgetun_core.wire import lanes
from edgetun_core.wire.lanes import Lane
from edgetun_core.wire.openings import Openings


def test_memos_keep_apart_what_they_were_given() -> None:
    one, other = Memo[str, int](2), Memo[str, int](2)
    one.put("a", 1)
    assert (one.get("a"), other.get("a")) == (1, None)
    one.clear()
    one.put("b", 2)
    assert (one.get("a"), one.get("b"), len(one), len(other)) == (None, 2, 1, 0)
    assert memo._NOTHING == {}


def test_lanes_keep_apart_the_beginnings_of_their_frames() -> None:
    one, other = Lane(0), Lane(1)
    one.keep(b"ab")
    one.keep(b"c")
    assert (bytes(one.rest), bytes(other.rest), bytes(lanes.NO_REST)) == (b"abc", b"", b"")
    one.rest.clear()
    one.keep(b"d")
    assert (bytes(one.rest), bytes(lanes.NO_REST)) == (b"d", b"")


def test_sessions_keep_apart_the_exchanges_that_came_early() -> None:
    one, other = Openings(1), Openings(1)
    one.arrive(5)
    assert (one.has_come(5), other.has_come(5)) == (True, False)
    one.arrive(1)
    one.arrive(3)
    assert (one.expected, one.total, other.total) == (7, 3, 0)

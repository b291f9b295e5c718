"""In what order the bulk lanes of a QUIC link get at the library."""

from __future__ import annotations

from typing import Any

from edgetun_core.transport.quic_runs import RUN_BYTES, Runs

PIECE = bytes(RUN_BYTES // 4)


class Library:
    """Takes bytes of streams, and sends them when the test says so."""

    def __init__(self) -> None:
        self.is_congested = False
        self.taken: list[tuple[int, int]] = []
        self.waiting: dict[int, int] = {}

    def send_stream_data(self, stream_id: int, data: bytes) -> None:
        self.taken.append((stream_id // 4, len(data)))
        self.waiting[stream_id] = self.waiting.get(stream_id, 0) + len(data)

    def unsent(self, stream_id: int) -> int:
        return self.waiting.get(stream_id, 0)

    def send_all(self) -> None:
        self.waiting.clear()

    def lanes_in_turn(self) -> list[int]:
        """The lanes whose bytes were taken, neighbours of one lane counted once."""
        turns: list[int] = []
        for lane, _ in self.taken:
            if not turns or turns[-1] != lane:
                turns.append(lane)
        return turns


def _runs() -> tuple[Runs, Library]:
    library = Library()
    stand_in: Any = library
    return Runs(stand_in), library


def test_lanes_take_turns_of_a_run_each() -> None:
    runs, library = _runs()
    for _ in range(8):
        runs.put(4, PIECE)
        runs.put(5, PIECE)
    while runs.feed():
        library.send_all()
    assert library.lanes_in_turn() == [4, 5, 4, 5]
    assert sum(size for _, size in library.taken) == 16 * len(PIECE)
    assert not runs.waiting
    assert runs.bytes_of(4) == runs.bytes_of(5) == 0


def test_while_the_path_is_congested_no_second_lane_begins() -> None:
    runs, library = _runs()
    runs.put(4, PIECE)
    runs.put(5, PIECE)
    library.is_congested = True
    assert runs.feed()
    assert not runs.feed()
    library.send_all()
    assert runs.feed()
    assert library.lanes_in_turn() == [4, 5]


def test_a_lane_without_flow_control_credit_holds_up_no_other() -> None:
    runs, library = _runs()
    runs.put(4, PIECE)
    runs.put(5, PIECE)
    assert runs.feed()
    assert library.unsent(16)  # the peer takes no more of lane 4
    assert runs.feed()
    assert library.lanes_in_turn() == [4, 5]


def test_what_waits_is_counted_by_lane() -> None:
    runs, _ = _runs()
    runs.put(4, b"abc")
    runs.put(4, b"de")
    runs.put(7, b"f")
    assert (runs.bytes_of(4), runs.bytes_of(5), runs.bytes_of(7)) == (5, 0, 1)

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console, RenderableType

from edgetun.load_plan import ClosedLoop, Crowd, LoadPlan, OpenLoop
from edgetun.load_report import render_live, render_report
from edgetun.load_result import MAX_BODIES, LoadResult
from edgetun_core.terminal.figures import format_size, format_us, percent

PLAN = LoadPlan("http://shop.localhost:8080/")


def drawn(renderable: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def crowd() -> LoadResult:
    result = LoadResult(url=PLAN.url, planned=10_000, started=10_000, answered=9_998, elapsed_s=2.5)
    result.statuses.update({200: 9_998})
    result.errors.update({"timeout": 2})
    result.examples["timeout"] = "no complete answer within 10 s"
    result.cache.update({"hit": 9_000, "collapsed": 996, "miss": 2})
    result.bodies.update({b"12345678": 9_998})
    for latency_us in (150, 1_500, 1_600, 25_000):
        result.latency.record(latency_us)
    return result


def test_the_report_says_what_the_visitors_met() -> None:
    text = drawn(render_report(PLAN, crowd()))
    for said in (
        "10,000 visitors within 2 s",
        "9,998 of 10,000 in 2.50 s",
        "2 timeout: no complete answer within 10 s",
        "9,998 200",
        "9,000 hit, 996 collapsed, 2 miss (99.98 % did not reach the origin)",
        "1 distinct",
        "max 25.0 ms",
    ):
        assert said in text
    assert "1 ms - 2 ms" in text


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    for renderable in (render_report(PLAN, crowd(), width=width), render_live(PLAN, crowd())):
        assert max(len(line) for line in drawn(renderable, width).splitlines()) <= width


def test_bars_are_plain_where_the_terminal_has_no_blocks() -> None:
    assert drawn(render_report(PLAN, crowd(), ascii_only=True)).isascii()


def test_a_run_without_any_answer_can_be_reported() -> None:
    result = LoadResult(url=PLAN.url, planned=1, started=1)
    result.errors["refused"] = 1
    assert "1 refused" in drawn(render_report(PLAN, result))
    assert not result.is_clean


@pytest.mark.parametrize("arrivals", [Crowd(10), ClosedLoop(10, 5), OpenLoop(10, 5, 1)])
def test_every_kind_of_plan_can_be_shown_before_anything_happened(arrivals: Crowd | ClosedLoop | OpenLoop) -> None:
    drawn(render_live(LoadPlan("http://localhost/", arrivals), LoadResult()))
    drawn(render_report(LoadPlan("http://localhost/", arrivals), LoadResult()))


def test_a_server_error_is_an_answer_but_not_a_clean_run() -> None:
    result = LoadResult(answered=1)
    result.statuses[200] = 1
    assert result.is_clean
    result.statuses[503] = 1
    assert not result.is_clean


def test_bodies_beyond_the_bound_count_as_one_more() -> None:
    result = LoadResult()
    for number in range(MAX_BODIES + 10):
        result.count_body(number.to_bytes(8, "big"))
    result.count_body((5).to_bytes(8, "big"))
    assert result.distinct_bodies == MAX_BODIES + 1
    assert result.bodies[(5).to_bytes(8, "big")] == 2
    assert result.unlike_bodies == 10


def test_the_result_for_machines_is_json() -> None:
    data = json.loads(json.dumps(crowd().as_json()))
    assert data["requests"] == {"started": 10_000, "answered": 9_998, "failed": 2}
    assert data["latency_ms"]["max"] == 25.0
    assert data["cache"]["hit"] == 9_000


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 10, "0 %"), (10, 10, "100 %"), (9_998, 10_000, "99.98 %"), (1, 3, "33.3 %"), (1, 10**9, "more than 0 %"),
     (10**9 - 1, 10**9, "less than 100 %"), (0, 0, "0 %")],
)  # fmt: skip
def test_a_share_is_all_or_nothing_only_when_it_is(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


def test_times_and_sizes_read_well() -> None:
    assert [format_us(value) for value in (0, 178, 999.4, 999.6, 1480, 13_247, 999_499, 2_050_000)] == [
        "0 us", "178 us", "999 us", "1.00 ms", "1.48 ms", "13.2 ms", "999 ms", "2.05 s",
    ]  # fmt: skip
    assert [format_size(value) for value in (0, 1023, 1024, 5 << 20, 3 << 30)] == [
        "0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 GiB",
    ]  # fmt: skip

"""What a load test looks like to a person: while it runs, and its report at the end. Pure: results in, renderables out."""

from __future__ import annotations

from collections import Counter
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from edgetun.histogram import Histogram
from edgetun.load_plan import ClosedLoop, Crowd, LoadPlan
from edgetun.load_result import LoadResult
from edgetun_core.terminal.figures import format_size, format_us, percent

_BAR_WIDTH: Final = 32
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"
_PERCENTILES: Final = (50, 90, 99, 99.9)


def describe(plan: LoadPlan) -> str:
    """The plan in one line."""
    match plan.arrivals:
        case Crowd(visitors, within_s, requests, hold):
            when = f"within {within_s:g} s" if within_s else "at once"
            each = f", {requests} requests each" if requests > 1 else ""
            return f"{visitors:,} visitors {when}{each}{', staying connected' if hold else ''}"
        case ClosedLoop(concurrency, duration_s):
            return f"{concurrency:,} visitors asking again and again for {duration_s:g} s"
        case arrivals:
            return f"{arrivals.rate:,g} requests per second for {arrivals.duration_s:g} s, {arrivals.concurrency:,} connections"


def render_live(plan: LoadPlan, result: LoadResult) -> RenderableType:
    """A small picture of the test while it runs; cheap, since drawing it delays the visitors it measures."""
    if isinstance(plan.arrivals, ClosedLoop):
        done, total = result.elapsed_s, plan.arrivals.duration_s
    else:
        done, total = result.answered + result.failed, result.planned or 1
    counts = Text.assemble(
        (f"{result.answered:,}", "bold green"),
        " answered  ",
        (f"{result.asking:,}", "bold"),
        " waiting  ",
        (f"{result.open:,}", "bold"),
        " connected  ",
        (f"{result.failed:,}", "bold red" if result.failed else "bold"),
        " errors  ",
        no_wrap=True,
        overflow="ellipsis",
    )
    times = Text(
        f"{result.rate:,.0f}/s  p50 {format_us(result.latency.percentile(50))}  p99 {format_us(result.latency.percentile(99))}",
        style="dim",
        no_wrap=True,
        overflow="ellipsis",
    )
    rows = Table.grid()  # a progress bar ends without a new line of its own
    for row in (ProgressBar(total=total, completed=min(done, total), width=60), counts, times):
        rows.add_row(row)
    return rows


def render_report(plan: LoadPlan, result: LoadResult, *, width: int = 80, ascii_only: bool = False) -> RenderableType:
    """The report at the end. `ascii_only` draws bars for terminals that have no block characters."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("answered", _answered(result))
    if result.failed:
        for kind, count in result.errors.most_common():
            facts.add_row("error", Text.assemble((f"{count:,} {kind}", "red"), f": {result.examples.get(kind, '')}"))
    else:
        facts.add_row("errors", "none")
    facts.add_row("statuses", _counts(Counter({str(status): n for status, n in result.statuses.items()})))
    if set(result.cache) - {""}:
        facts.add_row("cache", _cache(result))
    facts.add_row("bodies", f"{result.distinct_bodies:,} distinct, {format_size(result.body_bytes)} in all")
    facts.add_row(
        "connections",
        f"{result.connections:,} made, {result.peak_open:,} open at once, {result.peak_asking:,} waiting at once",
    )
    facts.add_row("connecting", _percentiles(result.connecting))
    facts.add_row("latency", _percentiles(result.latency))
    title = Text(f"{describe(plan)}: {plan.method} {plan.url}", style="bold")
    return Group(
        title, "", facts, "", _bars(result.latency, min(_BAR_WIDTH, max(4, width - 36)), ascii_only=ascii_only)
    )


def _answered(result: LoadResult) -> Text:
    wanted = result.planned or result.started
    style = "green" if result.answered == wanted else "yellow"
    return Text.assemble(
        (f"{result.answered:,}", f"bold {style}"),
        f" of {wanted:,} in {result.elapsed_s:.2f} s, {result.rate:,.0f} a second",
    )


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "none"


def _cache(result: LoadResult) -> str:
    spared = result.cache["hit"] + result.cache["collapsed"]
    named = Counter({outcome or "without Cache-Status": count for outcome, count in result.cache.items()})
    return f"{_counts(named)} ({percent(spared, result.answered)} did not reach the origin)"


def _percentiles(histogram: Histogram) -> str:
    if not histogram.count:
        return "-"
    shown = [f"p{percentile:g} {format_us(histogram.percentile(percentile))}" for percentile in _PERCENTILES]
    return "  ".join([*shown, f"max {format_us(histogram.maximum)}"])


def _bars(histogram: Histogram, width: int, *, ascii_only: bool) -> Table:
    rows = histogram.rows()
    most = max((count for _, _, count in rows), default=1)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(justify="left", style="dim", no_wrap=True)
    table.add_column(style="cyan", no_wrap=True, width=width)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    for low, high, count in rows:
        table.add_row(
            format_edge(low),
            f"- {format_edge(high)}",
            _bar(count, most, width, ascii_only=ascii_only),
            f"{count:,}",
            percent(count, histogram.count),
        )
    return table


def format_edge(value_us: int) -> str:
    """A round bound of a range: `200 us`, `5 ms`, `1 s`."""
    if value_us < 1000:
        return f"{value_us} us"
    return f"{value_us // 1000} ms" if value_us < 1_000_000 else f"{value_us // 1_000_000} s"


def _bar(count: int, most: int, width: int, *, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * max(1 if count else 0, round(count * width / most))
    eighths = max(1 if count else 0, round(count * width * 8 / most))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()

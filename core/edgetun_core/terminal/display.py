"""The terminal picture of `edgetun http`, `up`, `serve` and `edgetun-agent`: state in, rich renderable out. Pure; whoever calls it owns the clock.

Everything fits the width and height it is given: what is long is cut in its middle, since hostnames and paths differ at both
ends, and of the recent requests as many are shown as there are rows. Colour never carries a meaning alone (NO_COLOR, and people
who do not see it). What visitors sent is shown without control characters: a path must not be able to drive the terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgetun_core.terminal.figures import format_size, format_us, percent

SessionState = Literal["connected", "connecting", "draining", "lost"]

_NARROW: Final = 64  # below, columns that can be missed are left out


@dataclass(frozen=True, slots=True)
class UrlRow:
    """A public URL and the origin behind it."""

    url: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session with an exit node or, on an exit node, with an agent: `peer` is its name."""

    peer: str
    transport: str
    state: SessionState = "connected"
    rtt_ms: float | None = None
    since_s: float = 0.0
    note: str = ""
    """What a person should know of its path; left out where there is no room."""


@dataclass(frozen=True, slots=True)
class OriginRow:
    """A local server; `is_up` is None before the first request. `error` says what was wrong last."""

    name: str
    url: str
    is_up: bool | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class RecentRow:
    """A request that has ended; `clock` as `12:34:56`, `cache` as in `Cache-Status` (`hit`, `collapsed`, `miss` ...)."""

    clock: str
    method: str
    path: str
    status: int
    took_us: float
    cache: str = ""


@dataclass(frozen=True, slots=True)
class DisplayState:
    """All that is shown. `rates` are requests per second of the last moments, oldest first, for the small curve.

    `outcomes` counts requests by how they were answered, `hit` and `collapsed` being those that spared the origin a request.
    """

    urls: Sequence[UrlRow] = ()
    sessions: Sequence[SessionRow] = ()
    origins: Sequence[OriginRow] = ()
    live: int = 0
    total: int = 0
    rates: Sequence[float] = ()
    outcomes: Sequence[tuple[str, int]] = ()
    origin_requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    notes: Sequence[str] = ()
    """What a person should know to begin, below the URLs."""
    recent: Sequence[RecentRow] = ()
    warnings: Sequence[str] = ()
    up_s: float = 0.0
    hint: str = "Ctrl-C to stop"


@dataclass(frozen=True, slots=True)
class _Glyphs:
    arrow: str
    dot: str
    ring: str
    full: str
    empty: str
    cut: str
    curve: str


_UNICODE: Final = _Glyphs("→", "●", "○", "█", "░", "…", "▁▂▃▄▅▆▇█")
_ASCII: Final = _Glyphs("->", "*", "o", "#", ".", "~", "_.-=+*%#")

_SESSION_STYLES: Final[dict[SessionState, str]] = {
    "connected": "green",
    "connecting": "yellow",
    "draining": "yellow",
    "lost": "red",
}


def render(state: DisplayState, *, width: int = 80, height: int = 24, ascii_only: bool = False) -> RenderableType:
    """The picture, at most `height` lines of at most `width` cells."""
    glyphs = _ASCII if ascii_only else _UNICODE
    width = max(20, width)
    lines = [_title(state, width), Text(), *_urls(state, width, glyphs)]
    for note in state.notes:
        lines += _wrapped(_row_start("note"), note, width, "", glyphs)
    lines.append(Text())
    lines += _sessions(state, width, glyphs) + _origins(state, width, glyphs)
    lines += [Text(), *_traffic(state, width, glyphs)]
    if state.warnings:
        lines.append(Text())
        for warning in state.warnings[-3:]:
            lines += _wrapped(_row_start("warning", "bold yellow"), warning, width, "yellow", glyphs)
    lines = lines[:height]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    room = height - len(lines) - 2  # an empty line and the heads of the columns
    parts: list[RenderableType] = list(lines)
    if state.recent and room > 0:
        parts += [Text(), _recent(list(state.recent)[-room:], width, glyphs)]
    return Group(*parts)


def shorten(text: str, width: int, cut: str = "…") -> str:
    """The text in at most `width` cells, without control characters; what does not fit is left out in the middle."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    if cell_len(clean) <= width:
        return clean
    if width <= cell_len(cut):
        return cut[: max(0, width)]
    room = width - cell_len(cut)
    tail_room = room // 2
    head, tail = _fitting(clean, room - tail_room), _fitting(clean[::-1], tail_room)[::-1]
    return head + cut + tail


def _wrapped(start: Text, text: str, width: int, style: str, glyphs: _Glyphs) -> list[Text]:
    """A message after `start`, on two lines at most."""
    room = width - start.cell_len
    clean = shorten(text, room * 2 - 8, glyphs.cut)  # words that move to the second line leave a gap in the first
    pieces = textwrap.wrap(clean, room, max_lines=2, placeholder=glyphs.cut) or [""]
    lines = [start, *(Text(" " * start.cell_len) for _ in pieces[1:])]
    for line, piece in zip(lines, pieces, strict=True):
        line.append(piece, style=style)
    return lines


def _fitting(text: str, width: int) -> str:
    used = 0
    for place, letter in enumerate(text):
        used += cell_len(letter)
        if used > width:
            return text[:place]
    return text


def format_duration(seconds: float) -> str:
    """A time span for a person: `8 s`, `2 min 13 s`, `3 h 5 min`, `4 d 2 h`."""
    whole = int(seconds)
    for unit, size, next_unit, next_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {unit}" + (f" {rest} {next_unit}" if rest else "")
    return f"{whole} s"


def _title(state: DisplayState, width: int) -> Text:
    left = Text.assemble(("  edgetun", "bold"), f"  up {format_duration(state.up_s)}")
    gap = width - left.cell_len - cell_len(state.hint) - 2
    if gap >= 2:
        left.append(" " * gap + state.hint, style="dim")
    return left


def _urls(state: DisplayState, width: int, glyphs: _Glyphs) -> list[Text]:
    """Every URL on its line; the arrows stand below each other where the lines are wide enough for the target too."""
    lines = []
    longest = max((cell_len(row.url) for row in state.urls), default=0)
    for row in state.urls:
        target_room = width - 2 - longest - len(glyphs.arrow) - 4
        line = Text("  ")
        if row.target and target_room >= min(16, cell_len(row.target)):
            line.append(set_cell_size(shorten(row.url, longest, glyphs.cut), longest), style="bold cyan")
            line.append(f"  {glyphs.arrow}  ", style="dim")
            line.append(shorten(row.target, target_room, glyphs.cut))
        else:
            line.append(shorten(row.url, width - 2, glyphs.cut), style="bold cyan")
        lines.append(line)
    return lines


def _sessions(state: DisplayState, width: int, glyphs: _Glyphs) -> list[Text]:
    lines = []
    for place, row in enumerate(state.sessions):
        facts = [row.transport]
        if row.rtt_ms is not None:
            facts.append(f"rtt {format_us(row.rtt_ms * 1000)}")
        facts.append(format_duration(row.since_s))
        tail = "  " + row.state + "  " + "  ".join(facts)
        line = _row_start("session" if place == 0 else "")
        dot = glyphs.dot if row.state == "connected" else glyphs.ring
        line.append(f"{dot} ", style=_SESSION_STYLES[row.state])
        line.append(shorten(row.peer, max(8, width - line.cell_len - len(tail)), glyphs.cut))
        line.append(tail, style="dim")
        if row.note and line.cell_len + 2 + cell_len(row.note) <= width:
            line.append(f"  {row.note}", style="yellow")
        lines.append(line)
    return lines


def _origins(state: DisplayState, width: int, glyphs: _Glyphs) -> list[Text]:
    lines = []
    for place, row in enumerate(state.origins):
        line = _row_start("origin" if place == 0 else "")
        style, word = {True: ("green", "answers"), False: ("red", "down"), None: ("dim", "not asked yet")}[row.is_up]
        line.append(f"{glyphs.dot if row.is_up else glyphs.ring} ", style=style)
        line.append(shorten(row.url, max(12, (width - line.cell_len) // 2), glyphs.cut))
        line.append(f"  {word}", style=style)
        if row.error and not row.is_up:
            if line.cell_len + 2 + cell_len(row.error) <= width:
                line.append(f"  {shorten(row.error, width, glyphs.cut)}", style="red")
            else:
                lines += [line, *_wrapped(_row_start(""), row.error, width, "red", glyphs)]
                continue
        lines.append(line)
    return lines


def _traffic(state: DisplayState, width: int, glyphs: _Glyphs) -> list[Text]:
    rate = state.rates[-1] if state.rates else 0.0
    first = _row_start("requests")
    first.append(f"{state.total:,}", style="bold")
    first.append(f" in all  {rate:,.0f}/s  {state.live:,} live")
    room = min(40, width - first.cell_len - 3)
    if state.rates and room >= 8:
        first.append("  " + curve(state.rates, room, glyphs.curve), style="cyan")
    counts = dict(state.outcomes)
    all_counted = sum(counts.values())
    lines = [first]
    if all_counted:
        spared = counts.get("hit", 0) + counts.get("collapsed", 0)
        second = _row_start("at edge")
        share = percent(spared, all_counted)
        bar_width = max(0, min(20, width - 46))
        if bar_width >= 6:
            filled = round(bar_width * spared / all_counted)
            second.append(glyphs.full * filled, style="green")
            second.append(glyphs.empty * (bar_width - filled), style="dim")
            second.append(" ")
        second.append(share, style="bold green")
        second.append("  " + _outcomes(state.outcomes, width - second.cell_len - 2), style="dim")
        lines.append(second)
    third = _row_start("reached")
    third.append(f"{state.origin_requests:,}", style="bold")
    third.append(" at the origin" if width >= _NARROW else " at origin")
    third.append(f"  {format_size(state.bytes_out)} out  {format_size(state.bytes_in)} in", style="dim")
    lines.append(third)
    return lines


def _outcomes(outcomes: Sequence[tuple[str, int]], room: int) -> str:
    """As many of the counts as fit, whole."""
    shown = ""
    for name, count in outcomes:
        longer = f"{shown}, {count:,} {name}" if shown else f"{count:,} {name}"
        if not count or len(longer) > room:
            continue
        shown = longer
    return shown


def curve(rates: Sequence[float], width: int, levels: str = _UNICODE.curve) -> str:
    """The last `width` rates as one character each, the greatest of them being the full height."""
    shown = list(rates)[-width:]
    most = max(shown, default=0.0)
    if most <= 0:
        return levels[0] * len(shown)
    return "".join(levels[min(len(levels) - 1, int(rate / most * (len(levels) - 1) + 0.5))] for rate in shown)


def _recent(rows: Sequence[RecentRow], width: int, glyphs: _Glyphs) -> Table:
    is_narrow = width < _NARROW
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False, header_style="dim", width=width)
    if not is_narrow:
        table.add_column("  time", no_wrap=True, width=10)
    table.add_column("method" if not is_narrow else "  method", no_wrap=True, width=7 if not is_narrow else 9)
    # Fixed columns and their padding: the path gets what they leave, and is cut here rather than at its end by the table.
    fixed = (12 + 9 + 8 + 10 + 11) if not is_narrow else (11 + 8 + 9)
    path_width = max(4, width - fixed - 2)
    table.add_column("path", no_wrap=True, width=path_width)
    table.add_column("status", no_wrap=True, width=6, justify="right")
    if not is_narrow:
        table.add_column("took", no_wrap=True, width=8, justify="right")
    has_cache = any(row.cache for row in rows)
    if has_cache:
        table.add_column("cache", no_wrap=True, width=9)
    for row in rows:
        method = shorten(row.method, 7, glyphs.cut)
        cells: list[RenderableType] = [] if is_narrow else [Text("  " + shorten(row.clock, 8, glyphs.cut), style="dim")]
        cells += [
            Text(method if not is_narrow else f"  {method}"),
            Text(shorten(row.path, path_width, glyphs.cut)),
            Text(str(row.status), style=_status_style(row.status)),
        ]
        if not is_narrow:
            cells.append(Text(format_us(row.took_us)))
        if has_cache:
            style = "green" if row.cache in {"hit", "collapsed"} else "dim"
            cells.append(Text(shorten(row.cache, 9, glyphs.cut), style=style))
        table.add_row(*cells)
    return table


def _status_style(status: int) -> str:
    if status < 300:
        return "green"
    return "cyan" if status < 400 else "yellow" if status < 500 else "bold red"


def _row_start(name: str, style: str = "dim") -> Text:
    return Text.assemble((f"  {name:<9} ", style))

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgetun_core.terminal.display import (
    DisplayState,
    OriginRow,
    RecentRow,
    SessionRow,
    UrlRow,
    curve,
    format_duration,
    render,
    shorten,
)

BUSY = DisplayState(
    urls=[UrlRow("https://shop.localhost:8443", "http://localhost:3000")],
    sessions=[SessionRow("eu-1", "quic", rtt_ms=12.3, since_s=133), SessionRow("eu-2", "tls", "draining")],
    origins=[OriginRow("default", "http://localhost:3000", True)],
    live=12,
    total=10_432,
    rates=[0, 50, 4_993, 4],
    outcomes=[("hit", 9_120), ("collapsed", 878), ("miss", 2)],
    origin_requests=2,
    bytes_out=123_000_000,
    recent=[RecentRow(f"12:00:{i:02}", "GET", f"/item/{i}", 200, 1_500, "hit") for i in range(50)],
    warnings=["nothing answers at http://localhost:3000 yet; visitors get 502 until it does"],
    up_s=133,
)


def drawn(
    state: DisplayState, width: int = 80, height: int = 24, *, ascii_only: bool = False, color: bool = False
) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=color,
        color_system="truecolor" if color else None,
    )
    console.print(render(state, width=width, height=height, ascii_only=ascii_only))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_shows_what_a_person_looks_for() -> None:
    text = drawn(BUSY)
    for shown in (
        "https://shop.localhost:8443  →  http://localhost:3000",
        "eu-1  connected  quic  rtt 12.3 ms  2 min 13 s",
        "eu-2  draining  tls",
        "http://localhost:3000  answers",
        "10,432 in all  4/s  12 live",
        "99.98 %  9,120 hit, 878 collapsed, 2 miss",
        "2 at the origin  117.3 MiB out",
        "nothing answers at http://localhost:3000 yet",
        "Ctrl-C to stop",
    ):
        assert shown in text
    assert "/item/49" in text.splitlines()[-1]


anything = st.text(max_size=120)
states = st.builds(
    DisplayState,
    urls=st.lists(st.builds(UrlRow, url=anything, target=anything), max_size=3),
    sessions=st.lists(
        st.builds(
            SessionRow, peer=anything, transport=st.sampled_from(["quic", "tls"]), rtt_ms=st.none() | st.floats(0, 9e3)
        ),
        max_size=3,
    ),
    origins=st.lists(
        st.builds(OriginRow, name=anything, url=anything, is_up=st.sampled_from([None, True, False]), error=anything),
        max_size=3,
    ),
    total=st.integers(0, 10**12),
    rates=st.lists(st.floats(0, 1e6), max_size=100),
    outcomes=st.lists(st.tuples(st.sampled_from(["hit", "miss", "bypass"]), st.integers(0, 10**9)), max_size=3),
    recent=st.lists(
        st.builds(
            RecentRow, st.just("12:00:00"), anything, anything, st.integers(100, 599), st.floats(0, 1e9), anything
        ),
        max_size=30,
    ),
    warnings=st.lists(anything, max_size=5),
    up_s=st.floats(0, 1e7),
)


@settings(max_examples=60, deadline=None)
@given(states, st.integers(20, 140), st.integers(4, 50), st.booleans())
def test_no_state_breaks_the_frame_of_the_terminal(
    state: DisplayState, width: int, height: int, ascii_only: bool
) -> None:
    lines = drawn(state, width, height, ascii_only=ascii_only).split("\n")[:-1]
    assert len(lines) <= height
    assert max(cell_len(line) for line in lines) <= width
    assert all(character.isprintable() for line in lines for character in line)


def test_what_visitors_send_cannot_drive_the_terminal() -> None:
    state = DisplayState(recent=[RecentRow("12:00:00", "GET", "/\x1b]0;owned\x07[red]x\u202e", 200, 1.0)])
    text = drawn(state)
    assert "/?]0;owned?[red]x?" in text


def test_without_colour_or_unicode_every_fact_is_still_there() -> None:
    state = DisplayState(
        urls=BUSY.urls, sessions=BUSY.sessions, origins=[OriginRow("a", "http://a", False, "refused")], rates=[1, 2]
    )
    text = drawn(state, ascii_only=True)
    assert text.isascii()
    for word in ("connected", "draining", "down", "refused", "->"):
        assert word in text


def test_colour_is_used_where_there_is_some() -> None:
    assert "\x1b[" in drawn(BUSY, color=True)


def test_a_narrow_terminal_loses_columns_and_not_words() -> None:
    text = drawn(BUSY, 40)
    assert "method" in text
    assert "status" in text
    assert "took" not in text
    assert "99.98 %" in text


def test_a_long_name_keeps_both_its_ends() -> None:
    assert shorten("https://a-very-long-name.tunnel.example.com:8443", 20) == "https://a-….com:8443"
    assert shorten("short", 20) == "short"
    assert shorten("日本語のドメイン", 9) == "日本…イン"
    assert shorten("abc", 0) == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (133, "2 min 13 s"),
                                               (10_800, "3 h"), (93_600, "1 d 2 h")])  # fmt: skip
def test_time_spans_read_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_curve_shows_the_newest_and_its_greatest_is_full() -> None:
    assert curve([9, 0, 4, 8], 3) == "▁▅█"
    assert curve([0, 0], 5) == "▁▁"
    assert curve([], 5) == ""

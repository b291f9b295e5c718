"""Durations, sizes and rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.quantities import (
    format_bytes,
    format_duration,
    format_rate,
    one_line,
    parse_bytes,
    parse_duration,
    parse_rate,
    quoted,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2.0), ("1m", 60.0), ("1h", 3600.0), ("1m30s", 90.0), ("1.5s", 1.5), ("0s", 0.0)],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "2", "2 s", "2 seconds", "-1s", "1d", "1e3s", "s", "1s\n", "٣s", 5, 5.0, None, True, ["1s"], "99999999h"],
)
def test_what_is_not_a_duration_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match="is not a duration; write 2s, 500ms or 1m"):
        parse_duration(value)


def test_a_duration_beyond_ten_years_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than ten years"):
        parse_duration("99999h")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8Mi", 8 << 20),
        ("8MiB", 8 << 20),
        ("10MB", 10_000_000),
        ("10M", 10_000_000),
        ("512k", 512_000),
        ("512K", 512_000),
        ("1Ki", 1024),
        ("1.5Gi", 3 << 29),
        ("0", 0),
        (65536, 65536),
        ("65536", 65536),
        ("7B", 7),
    ],
)
def test_a_size_is_read_in_bytes(text: object, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "value", ["", "8 Mi", "Mi", "-1", -1, 1.5, "1i", "8mi", "8Mb", "1Pi", True, None, [], 1 << 70, "8Mi\n"]
)
def test_what_is_not_a_size_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size; write 8Mi, 10MB or 65536"):
        parse_bytes(value)


def test_a_size_that_no_machine_has_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1024Ti"):
        parse_bytes("1025Ti")


@pytest.mark.parametrize(("text", "rate"), [("100/s", 100.0), ("600/m", 10.0), ("36/h", 0.01), ("0.5/s", 0.5)])
def test_a_rate_is_read_per_second(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("value", ["", "100", "100/", "/s", "100/d", "100 / s", "-1/s", 100, None, "1/s\n"])
def test_what_is_not_a_rate_is_refused_with_an_example(value: object) -> None:
    with pytest.raises(ValueError, match="is not a rate; write 100/s, 600/m or 10/h"):
        parse_rate(value)


@given(st.integers(0, 10**11))
def test_a_duration_written_is_the_duration_read(ms: int) -> None:
    assert parse_duration(format_duration(ms / 1000)) == pytest.approx(ms / 1000)


@given(st.integers(0, 1 << 50))
def test_a_size_written_is_the_size_read(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size


@given(st.integers(0, 10**6), st.sampled_from("smh"))
def test_a_rate_written_is_the_rate_read(count: int, unit: str) -> None:
    rate = parse_rate(f"{count}/{unit}")
    assert parse_rate(format_rate(rate)) == pytest.approx(rate)


@given(st.one_of(st.text(), st.binary(), st.integers(), st.floats(), st.none(), st.lists(st.integers()), st.booleans()))
def test_a_value_in_a_message_is_one_short_line(value: object) -> None:
    shown = quoted(value)
    assert shown
    assert shown.isprintable()
    assert len(shown) < 300


def test_a_long_text_is_cut() -> None:
    assert one_line("x" * 100) == "x" * 57 + "..."

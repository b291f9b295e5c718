"""The Priority field reads as RFC 9218 §4 and RFC 8941 §3.2 say."""

from __future__ import annotations

import pytest

from edgetun_core.http.priority import DEFAULT, Priority, parse_priority


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", (3, False)),
        (b"u=0", (0, False)),
        (b"u=7", (7, False)),
        (b"u=1, i", (1, True)),
        (b"i", (3, True)),
        (b"i=?1,u=5", (5, True)),
        (b"u=5, i=?0", (5, False)),
        (b" u=2 , i ", (2, True)),
        (b"u=2;x=1, i;y", (2, True)),
        (b'new="x, u=1", u=6', (6, False)),
        (b"u=1, u=4", (4, False)),
    ],
)
def test_a_priority_is_read(value, expected):
    assert parse_priority(value) == Priority(*expected)


@pytest.mark.parametrize("value", [b"u=8", b"u=-1", b"u=1.0", b"u", b"u=?1", b'u="1"', b"i=1", b"i=yes"])
def test_a_value_out_of_range_or_of_the_wrong_type_counts_as_not_said(value):
    assert parse_priority(value) == DEFAULT


@pytest.mark.parametrize(
    "value", [b"u=1,", b"u=1 i", b"U=1", b"u=1,,i", b"=1", b"\xff", b"u=(1 2)", b"u=1" + b" " * 300]
)
def test_a_field_that_does_not_parse_counts_as_none(value):
    assert parse_priority(value) == DEFAULT

"""Accept-Encoding, as RFC 9110 §12.5.3 says it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_exitnode.pipeline.compression.negotiate import decide_accepted

OFFERED = (b"zstd", b"br", b"gzip")


@pytest.mark.parametrize(
    ("field", "best"),
    [
        (None, None),
        (b"", None),
        (b"identity", None),
        (b"gzip", b"gzip"),
        (b"GZip", b"gzip"),
        (b"x-gzip", b"gzip"),
        (b"gzip, deflate", b"gzip"),
        (b"gzip, deflate, br", b"br"),
        (b"gzip, deflate, br, zstd", b"zstd"),
        (b"deflate", None),
        (b"gzip;q=1.0, br;q=0.5", b"gzip"),
        (b"gzip; q=0.2, br ;Q=0.3", b"br"),
        (b"gzip;q=0", None),
        (b"gzip;q=0.000, br;q=0", None),
        (b"*", b"zstd"),
        (b"*;q=0", None),
        (b"br;q=0, *", b"zstd"),
        (b"zstd;q=0, *;q=0.4, gzip;q=0.4", b"br"),
        (b"gzip;q=2", None),
        (b"gzip;q=0.1234", None),
        (b"gzip;q=nan", None),
        (b"gzip;q=-1", None),
        (b"gzip;q=", None),
        (b",,gzip,,", b"gzip"),
        (b";q=1, gzip", b"gzip"),
        (b"gzip;level=9;q=0.5", b"gzip"),
        (b"gzip, gzip;q=0", b"gzip"),
    ],
)
def test_the_best_coding_is_the_visitors_favourite_and_ours_among_equals(field, best):
    accepted = decide_accepted(field, OFFERED)
    assert (accepted.codings[0] if accepted.codings else None) == best


@pytest.mark.parametrize(
    ("field", "identity", "is_better_plain"),
    [
        (None, True, True),
        (b"gzip", True, False),
        (b"gzip, identity;q=0", False, False),
        (b"gzip, *;q=0", False, False),
        (b"gzip, identity, *;q=0", True, False),
        (b"gzip;q=0.5, identity;q=0.8", True, True),
        (b"gzip;q=0.5, identity;q=0.5", True, False),
        (b"*;q=0", False, False),
    ],
)
def test_content_as_it_is_is_acceptable_unless_excluded(field, identity, is_better_plain):
    accepted = decide_accepted(field, OFFERED)
    assert (accepted.identity, accepted.is_better_plain) == (identity, is_better_plain)


def test_only_what_is_offered_is_chosen_in_the_order_offered():
    assert decide_accepted(b"gzip, br, zstd", (b"gzip", b"br")).codings == (b"gzip", b"br")
    assert decide_accepted(b"br", (b"gzip",)).codings == ()


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error_and_nothing_is_chosen_that_was_not_named(field):
    accepted = decide_accepted(field, OFFERED)
    for coding in accepted.codings:
        named = {member.partition(b";")[0].strip(b" \t").lower() for member in field.split(b",")}
        assert named & {coding, b"*", b"x-" + coding}

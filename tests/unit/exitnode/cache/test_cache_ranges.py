"""Ranges answered from what is stored (RFC 9110 §13.1.5, §14; RFC 9111 §3.3)."""

from __future__ import annotations

import email.parser
import email.policy
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.body import PIECE_BYTES, WHOLE_BYTES, build_pieces
from edgetun_exitnode.cache.dates import format_http_date
from edgetun_exitnode.cache.ranges import JOINED_GAP_BYTES, build_multipart, join_spans
from support.cache import WALL_S, Bench, Guest

TYPE = (b"content-type", b"text/plain")


def parts_of(guest: Guest) -> list[tuple[str, bytes]]:
    """Content-Range and body of each part, as another implementation reads them."""
    assert guest.head is not None
    assert guest.head.get(b"content-length") == b"%d" % len(guest.body)
    content_type = guest.head.get(b"content-type")
    assert content_type is not None
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
        b"Content-Type: " + content_type + b"\r\n\r\n" + guest.body
    )
    assert not message.defects
    return [(str(part["content-range"]), part.get_payload(decode=True)) for part in message.iter_parts()]  # type: ignore[attr-defined]


def filled(body: bytes, *fields: tuple[bytes, bytes]) -> Bench:
    bench = Bench(CacheRule())
    bench.ask()
    bench.origin[0].answer(body, (b"cache-control", b"max-age=60"), *fields)
    return bench


def test_several_ranges_are_parts_of_one_answer():
    body = bytes(i % 251 for i in range(1000)).replace(b"\r", b"-").replace(b"\n", b"-")
    guest = filled(body, TYPE, (b"etag", b'"a"')).ask(b"/", (b"range", b"bytes=0-9, 200-209, -5"))
    assert guest.status == 206
    assert guest.head is not None
    assert guest.head.get(b"etag") == b'"a"'
    assert guest.cache_status == b"edgetun; hit; ttl=60"
    assert parts_of(guest) == [
        ("bytes 0-9/1000", body[:10]),
        ("bytes 200-209/1000", body[200:210]),
        ("bytes 995-999/1000", body[-5:]),
    ]


def test_several_ranges_reach_over_the_pieces_of_a_large_body_and_wait_for_a_slow_reader():
    body = b"".join(b"%06d," % i for i in range(60_000))
    bench = Bench(CacheRule())
    bench.ask()
    bench.origin[0].answer_head(200, ((b"cache-control", b"max-age=60"),))
    for at in range(0, len(body), 50_000):
        bench.origin[0].send(body[at : at + 50_000], end=at + 50_000 >= len(body))
    guest = Guest()
    first, second = (PIECE_BYTES - 5, PIECE_BYTES + 5), (200_000, 400_000)
    bench.ask(b"/", (b"range", b"bytes=%d-%d,%d-%d" % (*second, *first)), guest=guest)
    assert parts_of(guest) == [(f"bytes {a}-{b}/{len(body)}", body[a : b + 1]) for a, b in (first, second)]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (b"bytes=0-1,1-3", b"bytes 0-3/1000"),
        (b"bytes=5-6,0-1", b"bytes 0-6/1000"),
        (b"bytes=0-1,5000-", b"bytes 0-1/1000"),
        (b"bytes=0-1,,0-1", b"bytes 0-1/1000"),
        (b"bytes=-1000,3-4", b"bytes 0-999/1000"),
    ],
)
def test_ranges_that_come_to_one_are_one(asked, expected):
    guest = filled(b"x" * 1000).ask(b"/", (b"range", asked))
    assert guest.status == 206
    assert guest.head is not None
    assert guest.head.get(b"content-range") == expected


def test_ranges_that_all_lie_beyond_the_end_are_unsatisfiable():
    guest = filled(b"x" * 10).ask(b"/", (b"range", b"bytes=10-,20-30"))
    assert guest.status == 416
    assert guest.head is not None
    assert guest.head.get(b"content-range") == b"bytes */10"


def test_a_flood_of_ranges_gets_the_whole_and_does_not_reach_the_origin():
    guest = filled(b"x" * 1000).ask(
        b"/", (b"range", b"bytes=" + b",".join(b"%d-%d" % (i, i) for i in range(0, 900, 9)))
    )
    assert (guest.status, len(guest.body)) == (200, 1000)


def test_several_ranges_of_nothing_stored_go_to_the_origin_as_they_are():
    bench = Bench(CacheRule())
    bench.ask(b"/", (b"range", b"bytes=0-0,2-2"))
    assert bench.origin[0].head.get(b"range") == b"bytes=0-0,2-2"


def test_several_ranges_of_a_body_on_its_way_get_the_whole():
    bench = Bench()
    bench.ask()
    guest = bench.ask(b"/", (b"range", b"bytes=0-0,500-501"))
    bench.origin[0].answer_head(200, ((b"content-length", b"1000"),))
    bench.origin[0].send(b"x" * 1000, end=True)
    assert (guest.status, len(guest.body)) == (200, 1000)
    assert len(bench.origin) == 1


@pytest.mark.parametrize(
    ("if_range", "modified_s", "is_part"),
    [
        (b'"a"', 0, True),
        (b'"b"', 0, False),
        (b'W/"a"', 0, False),
        (format_http_date(WALL_S - 3600), 3600, True),
        (format_http_date(WALL_S - 3599), 3600, False),
        (format_http_date(WALL_S - 5), 5, False),  # changed just before it was made: a weak validator (§8.8.2.2)
        (b"yesterday", 3600, False),
    ],
)
def test_if_range_gets_a_part_only_of_the_very_same_representation(if_range, modified_s, is_part):
    """RFC 9110 §13.1.5."""
    modified = [(b"last-modified", format_http_date(WALL_S - modified_s))] if modified_s else []
    bench = filled(b"0123456789", (b"etag", b'"a"'), (b"date", format_http_date(WALL_S)), *modified)
    guest = bench.ask(b"/", (b"range", b"bytes=2-3"), (b"if-range", if_range))
    assert (guest.status, guest.body) == ((206, b"23") if is_part else (200, b"0123456789"))


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 300)), min_size=1, max_size=8), st.integers(1, 90))
def test_parts_are_the_right_bytes_whatever_the_pieces(asked, piece):
    body = bytes(range(256)) * 4
    spans = join_spans([(first, min(first + more, len(body) - 1)) for first, more in asked])
    assert all(b[0] - a[1] > JOINED_GAP_BYTES for a, b in pairwise(spans))
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    built = build_multipart(pieces, len(body), spans, None, b"B")
    whole = b"".join(built.chunks)
    assert len(whole) == built.total
    assert all(built.chunks), "no empty chunk: the exchange forbids them"
    for first, last in spans:
        assert (
            b"content-range: bytes %d-%d/%d\r\n\r\n%s\r\n--B" % (first, last, len(body), body[first : last + 1])
            in whole
        )
    assert build_pieces(built.chunks)


def test_a_body_of_some_size_is_stored_whole_and_a_larger_one_in_pieces() -> None:
    assert build_pieces([]) == []
    assert build_pieces([b"", b""]) == []
    one = b"x" * WHOLE_BYTES
    assert build_pieces([one])[0] is one, "nothing is copied"
    assert build_pieces([one[:70_000], one[70_000:]]) == [one]
    larger = [one[:70_000], one[70_000:], b"y"]
    pieces = build_pieces(larger)
    assert b"".join(pieces) == b"".join(larger)
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= PIECE_BYTES

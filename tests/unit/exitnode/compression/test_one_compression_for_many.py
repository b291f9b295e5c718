"""A stored or collapsed response is compressed once per coding, whatever the number of visitors and however its body is cut."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetun_core.errors import Cancelled
from edgetun_core.http.exchange import CLOSED
from edgetun_core.http.message import RequestHead
from edgetun_core.snapshot import CacheRule, CompressionRule
from edgetun_exitnode.pipeline.compression import encoders, shared
from edgetun_exitnode.pipeline.compression.encoders import Encoders
from edgetun_exitnode.pipeline.compression.shared import SharedEncodings
from edgetun_exitnode.pipeline.compression.stage import CompressionStage, Compressor
from support.cache import Bench as CacheBench
from support.codings import decode
from support.exchanges import PEER, Recorder

TEXT = b"the quick brown fox jumps over the lazy dog\n" * 100
TYPE = (b"content-type", b"text/html")


def unzstd(data: bytes) -> bytes:
    return decode(b"zstd", data)


@pytest.fixture
def compressions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes whole bodies that are compressed and encoders that are made."""
    noted: list[str] = []

    def whole(data: bytes) -> bytes:
        noted.append("whole")
        return zstandard.ZstdCompressor().compress(data)

    make = Encoders.make

    def made(self: Encoders, coding: bytes) -> encoders.Encoder | None:
        noted.append("stream")
        return make(self, coding)

    monkeypatch.setitem(encoders.ENCODE_WHOLE, b"zstd", whole)
    monkeypatch.setattr(Encoders, "make", made)
    return noted


class Bench:
    """Compression in front of a real cache stage."""

    def __init__(self) -> None:
        self.cache = CacheBench(CacheRule(mode="override", ttl_s=60))
        self.compressor = Compressor()
        self.stage = CompressionStage(CompressionRule(), self.compressor, self.cache.stage, self.cache.time)

    def ask(self, *fields: tuple[bytes, bytes]) -> Recorder:
        visitor = Recorder()
        asked = fields or ((b"accept-encoding", b"gzip, br, zstd"),)
        self.stage.open(RequestHead(b"GET", b"http", b"shop.test", b"/", asked), PEER, True, visitor)
        return visitor


def test_ten_thousand_hits_are_one_compression(compressions):
    bench = Bench()
    bench.ask()
    bench.cache.origin[0].answer(TEXT, TYPE)
    compressions.clear()
    bodies = {bench.ask().body for _ in range(1000)}
    bench.cache.time.advance(5)
    bodies |= {bench.ask().body for _ in range(1000)}
    assert len(bodies) == 1
    assert unzstd(bodies.pop()) == TEXT
    assert len(compressions) <= 1
    assert len(bench.cache.origin) == 1


def test_the_crowd_that_waits_for_one_answer_shares_its_compression(compressions):
    bench = Bench()
    visitors = [bench.ask() for _ in range(200)]
    plain = bench.ask((b"accept", b"*/*"))
    origin = bench.cache.origin[0]
    origin.answer_head(200, (TYPE,))
    bench.cache.time.advance(0)
    for at in range(0, len(TEXT), 1000):
        origin.send(TEXT[at : at + 1000])
    late = bench.ask()
    origin.send(b"", end=True)
    bench.cache.time.advance(0)
    assert {unzstd(visitor.body) for visitor in (*visitors, late)} == {TEXT}
    assert {len(visitor.calls) for visitor in visitors} == {len(visitors[0].calls)}
    assert plain.body == TEXT
    hits = [bench.ask() for _ in range(100)]
    assert {unzstd(visitor.body) for visitor in hits} == {TEXT}
    assert hits[0].fields[b"content-length"] == b"%d" % len(hits[0].body)
    assert compressions == ["stream"]
    assert len(bench.cache.origin) == 1
    assert bench.compressor.encoders.live_bytes == 0
    assert bench.compressor.encodings.size_bytes <= len(hits[0].body) + 1024, "the steps went when the whole was there"


def test_a_large_stored_body_goes_in_pieces_and_is_compressed_once(compressions):
    text = b"".join(b"%d is a number\n" % random.Random(number).randrange(10**9) for number in range(20_000))
    assert len(text) > 4 * 64 * 1024
    bench = Bench()
    bench.ask((b"accept", b"*/*"))
    bench.cache.origin[0].answer(text, TYPE)
    visitors = [bench.ask() for _ in range(50)]
    bench.cache.time.advance(0)
    assert {unzstd(visitor.body) for visitor in visitors} == {text}
    assert compressions == ["stream"]


def test_revalidators_hold_the_weak_tag_and_are_answered_from_store():
    bench = Bench()
    bench.ask()
    bench.cache.origin[0].answer(TEXT, TYPE, (b"etag", b'"v1"'))
    assert bench.ask().fields[b"etag"] == b'W/"v1"'
    visitor = bench.ask((b"accept-encoding", b"zstd"), (b"if-none-match", b'W/"v1"'))
    assert (visitor.status, visitor.fields[b"etag"]) == (304, b'W/"v1"')
    visitor = bench.ask((b"if-none-match", b'"v1"'))
    assert (visitor.status, visitor.fields[b"etag"]) == (304, b'"v1"')
    assert len(bench.cache.origin) == 1


def test_visitors_who_leave_the_crowd_do_not_take_the_encoder_with_them():
    bench = Bench()
    visitors = []
    sinks = []
    for _ in range(5):
        visitor = Recorder()
        head = RequestHead(b"GET", b"http", b"shop.test", b"/", ((b"accept-encoding", b"zstd"),))
        sinks.append(bench.stage.open(head, PEER, True, visitor))
        visitors.append(visitor)
    origin = bench.cache.origin[0]
    origin.answer_head(200, (TYPE,))
    origin.send(TEXT)
    for sink in sinks[:4]:
        assert sink is not CLOSED
        sink.reset(Cancelled("left"))
    origin.send(TEXT, end=True)
    assert unzstd(visitors[4].body) == TEXT * 2
    assert bench.compressor.encoders.live_bytes == 0


# ---- the list of steps by itself


class Stored:
    """As much of a stored response as an encoding needs."""

    def __init__(self) -> None:
        self.encodings: dict[bytes, shared.SharedEncoding] | None = None


def cuts(data: bytes, rng: random.Random) -> list[bytes]:
    places = sorted({0, len(data), *(rng.randrange(len(data) + 1) for _ in range(rng.randrange(6)))})
    return [data[at:until] for at, until in pairwise(places)] or [b""]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([b"zstd", b"br", b"gzip"]), st.integers(300, 100_000))
def test_whoever_follows_gets_all_of_it_however_it_is_cut_and_kept(seed, coding, max_bytes):
    """Followers join, advance, and leave in any order, while encodings are dropped for want of room."""
    rng = random.Random(seed)
    data = bytes(rng.randrange(97, 101) for _ in range(rng.randrange(1, 4000)))
    source = Stored()
    encodings = SharedEncodings(Encoders(), max_bytes=max_bytes)
    going: list[tuple[shared.Follower, list[bytes], bool, list[bytes]]] = []
    for _ in range(rng.randrange(1, 12)):
        follower = encodings.follow(source, coding)
        assert follower is not None
        pieces = cuts(data, rng)
        going.append((follower, pieces, rng.random() < 0.5, []))
        for _ in range(rng.randrange(8)):
            advance(rng.choice(going), data, coding)
    while any(pieces for _, pieces, _, _ in going):
        advance(rng.choice(going), data, coding)
    assert encodings.encoders.live_bytes == 0
    assert encodings.size_bytes <= max_bytes


def advance(one, data, coding) -> None:
    follower, pieces, ends_apart, outputs = one
    if not pieces:
        return
    piece = pieces.pop(0)
    if pieces:
        outputs.append(follower.encode(piece))
        return
    if ends_apart:
        outputs.append(follower.encode(piece))
        piece = b""
    outputs.append(follower.finish(piece))
    follower.close()
    assert decode(coding, b"".join(outputs)) == data


def test_the_least_recently_used_encodings_go_when_room_is_short():
    encodings = SharedEncodings(Encoders(), max_bytes=3000)
    sources = [Stored() for _ in range(20)]
    for source in sources:
        encodings.encode_whole(source, b"gzip", TEXT)
        encodings.find(sources[0], b"gzip")
    assert encodings.size_bytes <= 3000
    assert encodings.find(sources[0], b"gzip") is not None
    assert encodings.find(sources[1], b"gzip") is None
    assert encodings.find(sources[-1], b"gzip") is not None
    assert len(encodings) < 20


def test_an_encoding_goes_with_its_response():
    encodings = SharedEncodings(Encoders())
    for _ in range(20):  # as a page that is made anew every second
        source = Stored()
        encodings.encode_whole(source, b"gzip", TEXT)
        follower = encodings.follow(source, b"zstd")
        assert follower is not None
        half = follower.encode(TEXT[:2000])
        del source
        assert unzstd(half + follower.encode(TEXT[2000:]) + follower.finish(b"")) == TEXT
        follower.close()
    assert len(encodings) == 0
    assert encodings.size_bytes == 0
    assert encodings.encoders.live_bytes == 0


def test_an_encoding_larger_than_its_share_is_not_kept_and_still_right():
    encodings = SharedEncodings(Encoders(), max_bytes=800)
    source = Stored()
    first, second = encodings.follow(source, b"zstd"), encodings.follow(source, b"zstd")
    assert first is not None
    assert second is not None
    outputs = [first.encode(TEXT[:2000]), first.encode(TEXT[2000:]), first.finish(b"")]
    assert len(encodings) == 0
    late = [second.encode(TEXT[:3000]), second.finish(TEXT[3000:])]
    assert unzstd(b"".join(outputs)) == unzstd(b"".join(late)) == TEXT
    first.close()
    second.close()
    assert encodings.encoders.live_bytes == 0

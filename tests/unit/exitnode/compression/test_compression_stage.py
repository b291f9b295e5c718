"""Compression as visitors see it: what is compressed, what is left alone, what the heads say, and that nothing waits."""

from __future__ import annotations

import hashlib

import pytest

from edgetun_core.errors import Cancelled, UpstreamBroken
from edgetun_core.http.exchange import RequestSink
from edgetun_core.snapshot import CompressionRule
from edgetun_exitnode.pipeline.compression.encoders import Encoders
from edgetun_exitnode.pipeline.compression.stage import CompressionStage, Compressor
from support.cache import SimulatedTime
from support.codings import Decoder, decode
from support.exchanges import PEER, Answerer, Opened, Recorder, ResponseHead, request

TEXT = b"the quick brown fox jumps over the lazy dog\n" * 100
TYPE = (b"content-type", b"text/html; charset=utf-8")
ALL = (b"accept-encoding", b"gzip, deflate, br, zstd")


class Bench:
    def __init__(self, rule: CompressionRule = CompressionRule()) -> None:  # noqa: B008
        self.time = SimulatedTime()
        self.origin = Answerer()
        self.compressor = Compressor()
        self.stage = CompressionStage(rule, self.compressor, self.origin, self.time)
        self.sink: RequestSink | None = None

    def ask(self, *fields: tuple[bytes, bytes], method: bytes = b"GET", end: bool = True) -> tuple[Recorder, Opened]:
        visitor = Recorder()
        self.sink = self.stage.open(request(b"/", *fields, method=method), PEER, end, visitor)
        return visitor, self.origin.opened[-1]

    def whole(
        self,
        *fields: tuple[bytes, bytes],
        asked: tuple[tuple[bytes, bytes], ...] = (ALL,),
        body: bytes = TEXT,
        status: int = 200,
    ) -> Recorder:
        visitor, origin = self.ask(*asked)
        origin.client.on_head(ResponseHead(status, fields), False)
        origin.client.on_data(body, True)
        return visitor


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
def test_a_text_comes_compressed_with_its_new_length(coding):
    visitor = Bench().whole(TYPE, (b"content-length", b"%d" % len(TEXT)), asked=((b"accept-encoding", coding),))
    assert visitor.fields[b"content-encoding"] == coding
    assert visitor.fields[b"vary"] == b"accept-encoding"
    assert int(visitor.fields[b"content-length"]) == len(visitor.body) < len(TEXT) / 5
    assert decode(coding, visitor.body) == TEXT
    assert visitor.names() == ["head", "data"]


def test_who_accepts_nothing_gets_it_as_it_is_and_caches_are_told_that_others_do_not():
    for asked in ((), ((b"accept-encoding", b"identity"),), ((b"accept-encoding", b"gzip;q=0"),)):
        visitor = Bench().whole(TYPE, (b"etag", b'"a"'), asked=asked)
        assert visitor.body == TEXT
        assert b"content-encoding" not in visitor.fields
        assert visitor.fields[b"vary"] == b"accept-encoding"
        assert visitor.fields[b"etag"] == b'"a"'


@pytest.mark.parametrize(
    "fields",
    [
        ((b"content-type", b"image/png"),),
        ((b"content-type", b"application/grpc"),),
        ((b"content-type", b"text/event-stream"),),
        (),
        (TYPE, (b"content-encoding", b"gzip")),
        (TYPE, (b"content-encoding", b"br")),
        (TYPE, (b"cache-control", b"max-age=60, No-Transform")),
        (TYPE, (b"content-digest", b"sha-256=:AA==:")),
        (TYPE, (b"repr-digest", b"sha-256=:AA==:")),
        (TYPE, (b"content-md5", b"AAAA")),
        (TYPE, (b"content-length", b"44")),
        (TYPE, (b"content-range", b"bytes 0-4399/9000")),
    ],
)
def test_what_must_not_be_compressed_is_passed_on_untouched(fields):
    body = TEXT[:44] if (b"content-length", b"44") in fields else TEXT
    visitor = Bench().whole(*fields, body=body)
    assert visitor.body == body
    assert visitor.calls[0] == ("head", 200, fields, False)


def test_a_directive_in_quotes_is_not_the_directive():
    assert Bench().whole(TYPE, (b"cache-control", b'ext="no-transform"')).fields[b"content-encoding"] == b"zstd"


@pytest.mark.parametrize("status", [204, 206, 304])
def test_statuses_without_content_of_their_own_are_left_alone(status):
    bench = Bench()
    visitor, origin = bench.ask(ALL)
    origin.client.on_head(ResponseHead(status, (TYPE,)), status != 206)
    assert visitor.calls[0] == ("head", status, (TYPE,), status != 206)


def test_an_error_page_is_compressed_as_any_page():
    assert Bench().whole(TYPE, status=404).fields[b"content-encoding"] == b"zstd"


def test_a_request_for_a_range_gets_the_bytes_as_they_are():
    visitor = Bench().whole(TYPE, asked=(ALL, (b"range", b"bytes=0-9")))
    assert visitor.body == TEXT
    assert b"content-encoding" not in visitor.fields


def test_a_body_that_would_not_get_smaller_stays_as_it_is():
    noise = hashlib.shake_256(b"x").digest(4000)
    visitor = Bench().whole(TYPE, (b"content-length", b"%d" % len(noise)), body=noise)
    assert visitor.body == noise
    assert visitor.fields[b"content-length"] == b"%d" % len(noise)
    assert visitor.fields[b"vary"] == b"accept-encoding"


def test_who_takes_nothing_as_it_is_gets_small_and_unlisted_content_compressed():
    asked = ((b"accept-encoding", b"gzip, identity;q=0"),)
    for fields, body in (((TYPE,), b"tiny"), (((b"content-type", b"image/png"),), TEXT)):
        visitor = Bench().whole(*fields, body=body, asked=asked)
        assert visitor.fields[b"content-encoding"] == b"gzip"
        assert decode(b"gzip", visitor.body) == body


def test_validators_ranges_and_vary_stay_honest():
    visitor = Bench().whole(
        TYPE, (b"etag", b'"v1"'), (b"accept-ranges", b"bytes"), (b"vary", b"Accept-Language"), (b"last-modified", b"x")
    )
    fields = visitor.calls[0][2]
    assert visitor.fields[b"etag"] == b'W/"v1"'
    assert b"accept-ranges" not in visitor.fields
    assert visitor.fields[b"last-modified"] == b"x"
    assert [value for name, value in fields if name == b"vary"] == [b"Accept-Language", b"accept-encoding"]  # type: ignore[union-attr, attr-defined]


@pytest.mark.parametrize("vary", [b"*", b"Origin, Accept-Encoding"])
def test_vary_is_not_said_twice(vary):
    visitor = Bench().whole(TYPE, (b"vary", vary))
    assert [value for name, value in visitor.calls[0][2] if name == b"vary"] == [vary]  # type: ignore[union-attr, attr-defined]


def test_a_304_has_the_tag_that_the_visitor_holds():
    for held, told in ((b'W/"v1"', b'W/"v1"'), (b'"v1"', b'"v1"'), (b'"v0", W/"v1"', b'W/"v1"')):
        bench = Bench()
        visitor, origin = bench.ask(ALL, (b"if-none-match", held))
        assert origin.head.get(b"if-none-match") == held
        origin.client.on_head(ResponseHead(304, ((b"etag", b'"v1"'),)), True)
        assert visitor.fields[b"etag"] == told


def test_if_match_reaches_the_origin_with_the_tag_that_the_origin_gave():
    _, origin = Bench().ask(ALL, (b"if-match", b'W/"v1", "v2",W/"a,b"'), method=b"PUT")
    assert origin.head.get(b"if-match") == b'"v1", "v2","a,b"'


def test_head_says_what_get_would():
    bench = Bench()
    visitor, origin = bench.ask(ALL, method=b"HEAD")
    origin.client.on_head(ResponseHead(200, (TYPE, (b"etag", b'"v1"'), (b"content-length", b"4400"))), True)
    assert visitor.calls == [
        ("head", 200, (TYPE, (b"etag", b'W/"v1"'), (b"content-encoding", b"zstd"), (b"vary", b"accept-encoding")), True)
    ]


def test_an_answer_without_a_body_is_left_alone():
    bench = Bench()
    visitor, origin = bench.ask(ALL)
    origin.client.on_head(ResponseHead(200, (TYPE,)), True)
    assert visitor.calls == [("head", 200, (TYPE, (b"vary", b"accept-encoding")), True)]
    visitor, origin = bench.ask(ALL)
    origin.client.on_head(ResponseHead(200, (TYPE,)), False)
    origin.client.on_data(b"", True)
    assert b"content-encoding" not in visitor.fields
    assert visitor.calls[-1][-1] is True


# ---- secrets (BREACH)


@pytest.mark.parametrize("secret", [(b"cookie", b"session=1"), (b"authorization", b"Bearer x")])
def test_answers_to_requests_with_secrets_are_compressed_only_when_public_or_allowed(secret):
    assert b"content-encoding" not in Bench().whole(TYPE, asked=(ALL, secret)).fields
    for directive in (b"public", b"s-maxage=3"):
        visitor = Bench().whole(TYPE, (b"cache-control", directive), asked=(ALL, secret))
        assert visitor.fields[b"content-encoding"] == b"zstd"
    rule = CompressionRule(allow_cookies=secret[0] == b"cookie", allow_authorization=secret[0] == b"authorization")
    assert Bench(rule).whole(TYPE, asked=(ALL, secret)).fields[b"content-encoding"] == b"zstd"
    other = CompressionRule(allow_cookies=not rule.allow_cookies, allow_authorization=not rule.allow_authorization)
    assert b"content-encoding" not in Bench(other).whole(TYPE, asked=(ALL, secret)).fields


# ---- streams


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
def test_every_piece_of_a_stream_leaves_at_once_and_can_be_read_at_once(coding):
    bench = Bench(CompressionRule(types=("text/event-stream",)))
    visitor, origin = bench.ask((b"accept-encoding", coding))
    origin.client.on_head(ResponseHead(200, ((b"content-type", b"text/event-stream"),)), False)
    assert visitor.calls == []
    bench.time.advance(0)
    assert visitor.names() == ["head"], "an event stream's head does not wait for the first event"
    decoder = Decoder(coding)
    for number in range(50):
        event = b"data: %d\n\n" % number
        seen = len(visitor.calls)
        origin.client.on_data(event, False)
        assert b"".join(decoder.feed(call[1]) for call in visitor.calls[seen:]) == event  # type: ignore[arg-type]
    origin.client.on_data(b"", True)
    assert visitor.calls[-1][-1] is True
    assert decode(coding, visitor.body) == b"".join(b"data: %d\n\n" % number for number in range(50))
    assert bench.compressor.encoders.live_bytes == 0


def test_a_head_that_came_within_open_does_not_wait_for_its_body():
    bench = Bench()
    bench.origin.at_open = lambda exchange: exchange.client.on_head(ResponseHead(200, (TYPE,)), False)
    visitor, origin = bench.ask(ALL)
    assert visitor.fields[b"content-encoding"] == b"zstd"
    origin.client.on_data(TEXT, True)
    assert decode(b"zstd", visitor.body) == TEXT


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
def test_trailers_come_after_the_end_of_the_coding(coding):
    visitor, origin = Bench().ask((b"accept-encoding", coding))
    origin.client.on_head(ResponseHead(200, (TYPE,)), False)
    origin.client.on_data(TEXT, False)
    origin.client.on_trailers(((b"x-sum", b"1"),))
    assert visitor.calls[-1] == ("trailers", ((b"x-sum", b"1"),))
    assert decode(coding, visitor.body) == TEXT


def test_a_response_that_breaks_off_never_looks_whole():
    bench = Bench()
    visitor, origin = bench.ask(ALL)
    origin.client.on_head(ResponseHead(200, (TYPE,)), False)
    origin.client.on_data(TEXT, False)
    origin.client.on_reset(UpstreamBroken("gone"))
    assert visitor.names()[-1] == "reset"
    assert not any(call[-1] is True for call in visitor.calls)
    assert bench.compressor.encoders.live_bytes == 0


def test_a_head_that_waits_is_not_sent_when_the_answer_fails():
    bench = Bench()
    visitor, origin = bench.ask(ALL)
    origin.client.on_head(ResponseHead(200, (TYPE,)), False)
    origin.client.on_reset(UpstreamBroken("gone"))
    bench.time.advance(1)
    assert visitor.names() == ["reset"]


def test_a_visitor_who_leaves_gives_the_encoder_back():
    bench = Bench()
    _, origin = bench.ask(ALL)
    assert bench.sink is not None
    origin.client.on_head(ResponseHead(200, (TYPE,)), False)
    origin.client.on_data(TEXT, False)
    assert bench.compressor.encoders.live_bytes > 0
    bench.sink.reset(Cancelled("left"))
    assert bench.compressor.encoders.live_bytes == 0
    assert origin.calls[-1][0] == "reset"
    bench.sink.reset(Cancelled("left"))
    assert bench.compressor.encoders.live_bytes == 0


def test_pauses_and_an_upload_pass_through():
    bench = Bench()
    visitor, origin = bench.ask(ALL, method=b"POST", end=False)
    assert bench.sink is not None
    bench.sink.send_data(b"up", False)
    origin.client.pause_request()
    origin.client.resume_request()
    bench.sink.send_trailers(())
    bench.sink.pause_response()
    bench.sink.resume_response()
    assert [call[0] for call in origin.calls] == ["data", "trailers", "pause", "resume"]
    assert visitor.names() == ["pause", "resume"]


def test_a_body_that_comes_all_at_once_is_compressed_in_turns():
    bench = Bench()
    visitor, origin = bench.ask(ALL)
    assert bench.sink is not None
    origin.client.on_head(ResponseHead(200, (TYPE,)), False)
    for _ in range(4):
        origin.client.on_data(bytes(64 * 1024), False)
    assert [call[0] for call in origin.calls] == ["pause"]
    bench.sink.pause_response()
    bench.time.advance(0)
    assert [call[0] for call in origin.calls] == ["pause"], "the visitor has paused meanwhile"
    bench.sink.resume_response()
    assert [call[0] for call in origin.calls] == ["pause", "resume"]
    for _ in range(4):
        origin.client.on_data(bytes(64 * 1024), False)
    bench.time.advance(0)
    assert [call[0] for call in origin.calls] == ["pause", "resume"] * 2
    origin.client.on_data(b"", True)
    bench.time.advance(1)
    assert decode(b"zstd", visitor.body) == bytes(512 * 1024)


def test_without_room_for_an_encoder_streams_go_out_as_they_are():
    bench = Bench()
    bench.compressor.encoders.max_bytes = 1
    visitor, origin = bench.ask(ALL)
    origin.client.on_head(ResponseHead(200, (TYPE, (b"content-length", b"8800"))), False)
    origin.client.on_data(TEXT, False)
    origin.client.on_data(TEXT, True)
    assert visitor.body == TEXT * 2
    assert visitor.fields[b"content-length"] == b"8800"
    assert b"content-encoding" not in visitor.fields
    assert bench.compressor.encoders.refused == 1
    assert Encoders(max_bytes=1).make(b"br") is None


# ---- what goes on to the origin


def test_the_origin_is_asked_for_what_the_visitor_accepts_in_one_spelling():
    spellings = (b"gzip, deflate, br", b"br;q=1.0, gzip;q=0.8, *;q=0.1, zstd;q=0", b"br,gzip")
    seen = {Bench().ask((b"accept-encoding", spelling))[1].head.get(b"accept-encoding") for spelling in spellings}
    assert seen == {b"br, gzip"}


def test_an_upgrade_is_no_business_of_compression():
    bench = Bench()
    head = request(b"/", ALL)
    head.protocol = b"websocket"
    visitor = Recorder()
    bench.stage.open(head, PEER, False, visitor)
    assert bench.origin.opened[0].client is visitor

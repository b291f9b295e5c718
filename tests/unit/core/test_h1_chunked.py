"""The chunked transfer coding: strict when read, the same for every split of the bytes, and what a trailer may not say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.http.h1 import ChunkedDecoder, H1Error, encode_chunk, render_trailers


def decode(*pieces: bytes) -> tuple[bytes, ChunkedDecoder]:
    decoder = ChunkedDecoder()
    body = b"".join(chunk for piece in pieces for chunk in decoder.feed(piece))
    return body, decoder


def test_chunks_trailers_and_what_follows() -> None:
    body, decoder = decode(b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX-Sum: 1\r\n\r\nGET / HTTP")
    assert (body, decoder.done, decoder.trailers, decoder.rest) == (
        b"hello world",
        True,
        ((b"x-sum", b"1"),),
        b"GET / HTTP",
    )


def test_a_piece_within_a_chunk_is_handed_on_as_it_is() -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"64\r\n")
    piece = b"x" * 50
    assert decoder.feed(piece)[0] is piece


@pytest.mark.parametrize("size", [b"5", b"05", b"0000000005", b"5;x", b"5;x=y", b'5;x="y;z"', b"5 ;x", b"5\t; x = y"])
def test_sizes_and_extensions_that_the_grammar_has(size: bytes) -> None:
    assert decode(size + b"\r\nhello\r\n0\r\n\r\n")[0] == b"hello"


@pytest.mark.parametrize(
    "data",
    [
        *(b"0x5\r\nhello\r\n", b"+5\r\nhello\r\n", b"-5\r\nhello\r\n", b" 5\r\nhello\r\n", b"5 \r\nhello\r\n"),
        *(b"5\t\r\nhello\r\n", b"\r\nhello\r\n", b";x\r\nhello\r\n", b"g\r\n", b"5_0\r\n", b"5h\r\nhello\r\n"),
        *(b"5\nhello\r\n", b"5\r\r\nhello\r\n", b"5\r\nhello\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n", b"5\r\nhelloX\r\n"),
        *(b"5\r\nhello\rX", b"5\r\nhell\r\n0\r\n\r\n", b"\x005\r\n", b"5\x00\r\nhello\r\n", b"5;a\nb\r\nhello\r\n"),
        *(b"5;a\x00\r\nhello\r\n", b"5;a\rb\r\nhello\r\n", b"10000000000000000\r\n", b"fffffffffffffffff\r\n"),
        *(b"5;" + b"x" * 300 + b"\r\n", b"5" * 300, b"\xb2\r\n", b"5,5\r\nhello\r\n"),
        *(b"0\r\nX : 1\r\n\r\n", b"0\r\n X: 1\r\n\r\n", b"0\r\nX: \x00\r\n\r\n", b"0\r\nX: 1\nY: 2\r\n\r\n"),
        *(b"0\r\nX\r\n\r\n", b"0\r\nX: 1\r\n folded\r\n\r\n", b"0\r\n\rX", b"0\n\r\n"),
        b"0\r\n" + b"X: " + b"y" * 9000 + b"\r\n\r\n",
        b"0\r\n" + b"X: 1\r\n" * 65 + b"\r\n",
    ],
)
def test_everything_else_is_refused_whole_or_in_pieces(data: bytes) -> None:
    with pytest.raises(H1Error):
        decode(data)
    with pytest.raises(H1Error):
        decode(*(data[at : at + 1] for at in range(len(data))))


def test_extensions_are_bounded_over_the_whole_body() -> None:
    decoder = ChunkedDecoder()
    for _ in range(80):
        decoder.feed(b"1;" + b"x" * 100 + b"\r\na\r\n")
    with pytest.raises(H1Error):
        decoder.feed(b"1;" + b"x" * 200 + b"\r\na\r\n")


def test_a_broken_chunk_end_is_seen_at_its_first_byte() -> None:
    decoder = ChunkedDecoder()
    decoder.feed(b"1\r\na")
    with pytest.raises(H1Error):
        decoder.feed(b"X")


def test_fields_that_no_trailer_may_carry_are_dropped() -> None:
    trailers = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\nAuthorization: x\r\nSet-Cookie: a=b\r\n"
    _, decoder = decode(b"0\r\n" + trailers + b"X-Forwarded-For: 1.2.3.4\r\nGrpc-Status: 0\r\n\r\n")
    assert decoder.trailers == ((b"grpc-status", b"0"),)


def test_what_is_rendered_is_read_again() -> None:
    data = encode_chunk(b"abc") + encode_chunk(b"x" * 70000)
    body, decoder = decode(data + render_trailers(((b"x-sum", b"1"), (b"content-length", b"9"))))
    assert body == b"abc" + b"x" * 70000
    assert decoder.trailers == ((b"x-sum", b"1"),)


def splits(data: bytes) -> st.SearchStrategy[list[bytes]]:
    cuts = st.lists(st.integers(0, len(data)), max_size=12).map(sorted)
    return cuts.map(lambda at: [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)])


WHOLE = b"5\r\nhello\r\n1f;ext=1\r\n" + b"y" * 31 + b"\r\n00\r\nA: 1\r\nB: 2\r\n\r\nrest\r\n\r\n"


@given(splits(WHOLE))
def test_any_split_of_the_bytes_gives_the_same_body(pieces: list[bytes]) -> None:
    body, decoder = decode(*pieces)
    assert body == b"hello" + b"y" * 31
    assert decoder.trailers == ((b"a", b"1"), (b"b", b"2"))
    assert decoder.rest == b"rest\r\n\r\n"


@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"\r\n", b"0\r\n", b"5\r\n", b"hello", b";x"]))))
def test_random_bytes_raise_nothing_but_h1_error_and_never_depend_on_the_split(pieces: list[bytes]) -> None:
    def outcome(fed: list[bytes]) -> object:
        decoder = ChunkedDecoder()
        body = b""
        try:
            for piece in fed:
                body += b"".join(decoder.feed(piece))
        except H1Error:
            return "refused"
        return (body, decoder.done, decoder.trailers, decoder.rest)

    data = b"".join(pieces)
    split = outcome([data[at : at + 1] for at in range(len(data))])
    assert split == outcome(pieces) == outcome([data])

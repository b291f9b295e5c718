"""Frames, integers and settings of HTTP/3, and QPACK without a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.http import h3_frames as h3
from edgetun_core.http.h3_frames import (
    FrameReader,
    FrameTooLarge,
    H3Error,
    decode_settings,
    decode_varint,
    encode_frame,
    encode_settings,
    encode_varint,
)
from edgetun_core.http.qpack import (
    EMPTY_SECTION,
    InstructionChecker,
    SectionDecoder,
    SectionTooLarge,
    encode_date_line,
    encode_section,
)

NAMES = st.from_regex(rb"[a-z][a-z0-9-]{0,20}", fullmatch=True)
VALUES = st.from_regex(rb"[ -~]{0,60}", fullmatch=True)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=20)
FRAMES = st.lists(
    st.tuples(
        st.sampled_from([h3.DATA, h3.HEADERS, h3.SETTINGS, h3.GOAWAY, 0x21, 0x1F * 99 + 0x21]), st.binary(max_size=80)
    ),
    max_size=12,
)


@given(st.integers(0, h3.MAX_VARINT), st.binary(max_size=3))
def test_an_integer_reads_as_it_was_written_and_not_before_it_is_whole(value: int, behind: bytes) -> None:
    encoded = encode_varint(value)
    assert decode_varint(encoded + behind) == (value, len(encoded))
    for size in range(len(encoded)):
        assert decode_varint(encoded[:size]) == (-1, 0)


@given(FRAMES, st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_frames_read_the_same_however_they_are_cut(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(encode_frame(kind, payload) for kind, payload in frames)
    reader, found, at, turn = FrameReader(100), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += reader.feed(data[at : at + size])
        assert reader.held_bytes <= 100 + 16
        at += size
        turn += 1
    assert reader.is_between_frames
    bodies = b"".join(payload for kind, payload in found if kind == h3.DATA)
    assert bodies == b"".join(payload for kind, payload in frames if kind == h3.DATA)
    known = (h3.HEADERS, h3.SETTINGS, h3.GOAWAY)
    assert [frame for frame in found if frame[0] in known] == [frame for frame in frames if frame[0] in known]
    unknown = [kind for kind, _ in frames if kind not in (h3.DATA, *known)]
    assert [kind for kind, _ in found if kind not in (h3.DATA, *known)] == unknown


def test_a_frame_that_must_be_whole_is_refused_by_its_length_alone() -> None:
    reader = FrameReader(100)
    with pytest.raises(FrameTooLarge) as refused:
        reader.feed(b"\x01\x40\x65")
    assert (refused.value.type, refused.value.size) == (h3.HEADERS, 101)
    assert FrameReader(100).feed(b"\x00\x40\x65abc") == [(h3.DATA, b"abc")]  # DATA is passed on as it comes


@given(st.dictionaries(st.integers(6, 1000), st.integers(0, 1), max_size=20))
def test_settings_read_as_they_were_written(settings: dict[int, int]) -> None:
    assert decode_settings(_payload(settings)) == settings


def _payload(settings: dict[int, int]) -> bytes:
    ((kind, payload),) = FrameReader(4096).feed(encode_settings(settings))
    assert kind == h3.SETTINGS
    return payload


def test_too_many_settings_are_excessive() -> None:
    with pytest.raises(H3Error) as error:
        decode_settings(_payload(dict.fromkeys(range(100, 100 + h3.MAX_SETTINGS + 1), 0)))
    assert error.value.code == h3.H3_EXCESSIVE_LOAD


@given(FIELDS)
def test_a_section_decodes_to_what_was_encoded_and_equal_sections_are_equal_bytes(
    fields: list[tuple[bytes, bytes]],
) -> None:
    block = encode_section(fields)
    assert SectionDecoder(100_000).decode(block) == fields
    assert encode_section(list(fields)) == block


def test_a_date_line_can_be_put_behind_any_section() -> None:
    date = b"Wed, 25 Nov 2026 22:00:00 GMT"
    block = encode_section([(b":status", b"200"), (b"x", b"y")]) + encode_date_line(date)
    assert SectionDecoder(1000).decode(block) == [(b":status", b"200"), (b"x", b"y"), (b"date", date)]
    assert SectionDecoder(1000).decode(EMPTY_SECTION + encode_date_line(date)) == [(b"date", date)]


def test_a_section_beyond_the_limit_and_a_broken_one_leave_the_decoder_usable() -> None:
    decoder = SectionDecoder(200)
    with pytest.raises(SectionTooLarge):
        decoder.decode(encode_section([(b"x", b"y" * 200)]))
    with pytest.raises(H3Error):
        decoder.decode(b"\x00\x00\xff\xff\xff\xff\xff\xff\xff")
    assert decoder.decode(encode_section([(b"x", b"y")])) == [(b"x", b"y")]
    assert decoder.decode(EMPTY_SECTION) == []


@given(st.lists(st.integers(0, 1 << 60), max_size=20), st.integers(1, 5))
def test_cancellations_on_the_decoder_stream_are_counted_however_they_are_cut(sids: list[int], size: int) -> None:
    data = b"".join(_prefixed(sid) for sid in sids)
    checker = InstructionChecker(is_encoder=False)
    assert sum(checker.feed(data[at : at + size]) for at in range(0, len(data), size)) == len(sids)


def _prefixed(value: int) -> bytes:
    """Stream Cancellation: 01 and an integer with a prefix of 6 bits (RFC 9204 §4.4.2, RFC 7541 §5.1)."""
    if value < 63:
        return bytes((0x40 | value,))
    value -= 63
    encoded = b"\x7f"
    while value >= 128:
        encoded += bytes((0x80 | value & 0x7F,))
        value >>= 7
    return encoded + bytes((value,))

"""Header blocks: what is rendered decodes everywhere, and what is not HPACK is told (RFC 7541)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jh2.hpack import Decoder, Encoder

from edgetun_core.http.h2.hpack import BlockBroken, BlockDecoder, BlockTooLarge, render_block

FIELDS = st.lists(
    st.tuples(st.sampled_from((b":path", b"accept", b"cookie", b"x-own", b":status")), st.binary(max_size=300)),
    max_size=8,
)


def decode(block: bytes, decoder: BlockDecoder | None = None):
    return (decoder or BlockDecoder(65536)).decode(block)


@given(FIELDS)
def test_what_is_rendered_decodes_to_the_same_in_two_implementations_and_leaves_the_table_alone(fields):
    block = render_block(fields)
    assert decode(block) == (fields, True)
    assert [(bytes(name), bytes(value)) for name, value in Decoder().decode(block, raw=True)] == fields


def test_secrets_are_marked_never_to_be_indexed_and_known_fields_take_one_byte():
    assert render_block([(b"authorization", b"x")])[0] & 0xF0 == 0x10
    assert render_block([(b"set-cookie", b"x")])[0] & 0xF0 == 0x10
    assert render_block([(b":method", b"GET"), (b":status", b"200")]) == b"\x82\x88"
    assert render_block([(b"content-type", b"text/html; charset=utf-8")])[0] & 0xF0 == 0x00


@given(st.lists(FIELDS, min_size=1, max_size=4))
def test_blocks_of_a_peer_that_indexes_are_decoded_and_told_apart(lists):
    encoder, decoder = Encoder(), BlockDecoder(65536)
    for fields in lists:
        assert decode(encoder.encode(fields), decoder)[0] == fields
        repeated = encoder.encode(fields)
        found, is_stable = decode(repeated, decoder)
        assert found == fields
        if is_stable:
            assert decode(repeated, decoder) == (fields, True)


BROKEN = {
    "index 0": b"\x80",
    "an index beyond the tables": b"\xbe",
    "an integer cut short": b"\xff\x80\x80",
    "an integer beyond all bounds": b"\xff" + b"\x80" * 8 + b"\x01",
    "a string cut short": b"\x40\x05ab",
    "a field cut short": b"\x40\x01a",
    "a size update after a field": b"\x82\x20",
    "three size updates": b"\x20\x20\x20\x82",
    "a size update beyond what was allowed": b"\x3f\xe2\x1f\x82",
    "Huffman padding of zeros": b"\x40\x01a\x81\x00",
    "Huffman padding of a whole byte": b"\x40\x01a\x82\x1f\xff",
    "the end-of-string symbol": b"\x40\x01a\x84\xff\xff\xff\xff",
}


@pytest.mark.parametrize("block", BROKEN.values(), ids=BROKEN)
def test_what_is_not_hpack_is_told(block):
    with pytest.raises(BlockBroken):
        decode(block)


@given(st.binary(max_size=200))
def test_no_block_does_worse_than_being_broken(block):
    decoder = BlockDecoder(65536)
    for _ in range(2):
        try:
            decode(block, decoder)
        except BlockBroken:
            return


def test_a_block_that_repeats_one_large_entry_is_too_large():
    decoder = BlockDecoder(128 * 1024)
    entry = b"\x40\x01a\x7f\x81\x1e" + b"x" * 3968
    assert len(decode(b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000, decoder)[0][0][1]) == 4000
    assert entry
    with pytest.raises(BlockTooLarge):
        decode(b"\xbe" * 100, decoder)

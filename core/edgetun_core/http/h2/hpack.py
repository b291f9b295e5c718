"""HPACK (RFC 7541): header blocks to fields by a native codec, and fields to blocks that hold for every connection.

Receiving: jh2's Rust decoder, behind a walk over the block that refuses what the decoder lets pass (size updates out of
place, Huffman padding, integers cut short) and tells whether the block changes the dynamic table. A block that does not change
it means the same as long as the table stays as it is, so callers memoise by its bytes.

Sending: no field ever enters the peer's dynamic table. A block then depends on nothing but its fields: rendered once, kept on
the shared head, and sent on all connections. It costs some 100 bytes more per response than indexing would.

Hot path on a memo miss only: about 6 us for a browser's request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from jh2._hazmat import (  # type: ignore[import-untyped]
    Decoder,
    Encoder,
    HPACKError,
    OversizedHeaderListError,
)

from edgetun_core.errors import ProtocolError
from edgetun_core.http.message import Field
from edgetun_core.memo import Memo

_STATIC_FIELDS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"),
    (b":scheme", b"http"), (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"),
    (b":status", b"304"), (b":status", b"400"), (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"), (b"accept-language", b""), (b"accept-ranges", b""), (b"accept", b""),
    (b"access-control-allow-origin", b""), (b"age", b""), (b"allow", b""), (b"authorization", b""), (b"cache-control", b""),
    (b"content-disposition", b""), (b"content-encoding", b""), (b"content-language", b""), (b"content-length", b""),
    (b"content-location", b""), (b"content-range", b""), (b"content-type", b""), (b"cookie", b""), (b"date", b""),
    (b"etag", b""), (b"expect", b""), (b"expires", b""), (b"from", b""), (b"host", b""), (b"if-match", b""),
    (b"if-modified-since", b""), (b"if-none-match", b""), (b"if-range", b""), (b"if-unmodified-since", b""),
    (b"last-modified", b""), (b"link", b""), (b"location", b""), (b"max-forwards", b""), (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""), (b"range", b""), (b"referer", b""), (b"refresh", b""), (b"retry-after", b""),
    (b"server", b""), (b"set-cookie", b""), (b"strict-transport-security", b""), (b"transfer-encoding", b""),
    (b"user-agent", b""), (b"vary", b""), (b"via", b""), (b"www-authenticate", b""),
)  # fmt: skip
"""RFC 7541 appendix A; index 1 comes first."""
_EXACT: Final = {field: index for index, field in reversed(tuple(enumerate(_STATIC_FIELDS, 1))) if field[1]}
_BY_NAME: Final = {field[0]: index for index, field in reversed(tuple(enumerate(_STATIC_FIELDS, 1)))}

NEVER_INDEXED: Final = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"))
"""Fields whose values no hop may put into a table that others can probe (RFC 7541 §7.1.3)."""

_MAX_INTEGER_BYTES: Final = 4
_HUFFMAN: Final = 0x80
_SIZE_UPDATES: Final = 2


class BlockBroken(ProtocolError):
    """A header block that is not HPACK; the connection's compression state is lost with it (RFC 9113 §4.3)."""


class BlockTooLarge(BlockBroken):
    """A header block that decodes to more than the bound: a bomb."""


# Huffman strings whose padding was checked (RFC 7541 §5.2); visitors repeat them.
_checked: Memo[bytes, bool] = Memo(2048)
_CHECKED_BYTES: Final = 512
_encoder: Final = Encoder()


class BlockDecoder:
    """Decodes the header blocks of one direction of one connection, in order."""

    __slots__ = ("_decoder", "_max_table_bytes")

    def __init__(self, max_list_bytes: int, table_bytes: int = 4096) -> None:
        self._decoder = Decoder(max_list_bytes)
        self._decoder.max_allowed_table_size = table_bytes
        self._max_table_bytes = table_bytes

    def decode(self, block: bytes) -> tuple[list[Field], bool]:
        """The block's fields, and whether the table is as it was before. Raises BlockBroken."""
        strings, is_stable = _walk(block, self._max_table_bytes)
        try:
            decoded = self._decoder.decode(block, True)
        except OversizedHeaderListError:
            raise BlockTooLarge("a header block decodes to too much") from None
        except HPACKError as error:
            raise BlockBroken(f"a header block is malformed ({error})") from None
        fields: list[Field] = [(field[0], field[1]) for field in decoded]
        for at, part, raw in strings:
            if _checked.get(raw) is None:
                _check_huffman(raw, fields[at][part])
        return fields, is_stable


def _walk(block: bytes, max_table_bytes: int) -> tuple[list[tuple[int, int, bytes]], bool]:
    """Checks a block's structure (RFC 7541 §6).

    Returns its Huffman strings, each with the number of its field and 0 for a name or 1 for a value, and whether it leaves the
    dynamic table alone. Raises BlockBroken.
    """
    strings: list[tuple[int, int, bytes]] = []
    is_stable = True
    updates = 0
    field = 0
    at = 0
    size = len(block)
    try:
        while at < size:
            first = block[at]
            at += 1
            if first >= 0x80:  # indexed
                if first == 0xFF:
                    _, at = _integer(block, at, 0x7F)
                elif first == 0x80:
                    raise BlockBroken("index 0 in a header block (RFC 7541 §6.1)")
                field += 1
                continue
            if 0x20 <= first < 0x40:  # dynamic table size update
                updates += 1
                if field or updates > _SIZE_UPDATES:
                    raise BlockBroken("a dynamic table size update out of place (RFC 7541 §4.2)")
                limit = first & 0x1F
                if limit == 0x1F:
                    limit, at = _integer(block, at, 0x1F)
                if limit > max_table_bytes:
                    raise BlockBroken("a dynamic table size beyond what was allowed (RFC 7541 §6.3)")
                is_stable = False
                continue
            if first >= 0x40:  # literal with incremental indexing
                is_stable = False
                index = first & 0x3F
                if index == 0x3F:
                    index, at = _integer(block, at, 0x3F)
            else:  # literal without or never indexed
                index = first & 0x0F
                if index == 0x0F:
                    index, at = _integer(block, at, 0x0F)
            for part in (1,) if index else (0, 1):
                first = block[at]
                at += 1
                length = first & 0x7F
                if length == 0x7F:
                    length, at = _integer(block, at, 0x7F)
                end = at + length
                if end > size:
                    raise BlockBroken("a header block ends in the middle of a string")
                if first & _HUFFMAN and length:
                    strings.append((field, part, block[at:end]))
                at = end
            field += 1
    except IndexError:
        raise BlockBroken("a header block ends in the middle of a field") from None
    return strings, is_stable


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """The rest of an integer whose prefix is full (RFC 7541 §5.1), and where it ends."""
    value = prefix
    for shift in range(0, 7 * _MAX_INTEGER_BYTES, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise BlockBroken("an integer in a header block is beyond any bound (RFC 7541 §5.1)")


def _check_huffman(raw: bytes, text: bytes) -> None:
    """The code is unambiguous but for its padding: what encodes to other bytes was padded wrongly (RFC 7541 §5.2)."""
    if _huffman(text) != raw:
        raise BlockBroken("a Huffman string is padded wrongly (RFC 7541 §5.2)")
    if len(raw) <= _CHECKED_BYTES:
        _checked.put(raw, True)


def _huffman(text: bytes) -> bytes:
    """The Huffman code of a string, from the native encoder: a never-indexed field `x` is 0x10, its name, then the value."""
    encoded: bytes = _encoder.add((b"x", text), True, True)
    at = 2 + (encoded[1] & 0x7F)
    first = encoded[at] & 0x7F
    return encoded[at + 1 :] if first != 0x7F else encoded[_integer(encoded, at + 1, 0x7F)[1] :]


def _render_integer(first: int, prefix: int, value: int) -> bytes:
    if value < prefix:
        return bytes((first | value,))
    out = bytearray((first | prefix,))
    value -= prefix
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _render_string(text: bytes) -> bytes:
    short = _huffman(text) if text else b""
    if text and len(short) < len(text):
        return _render_integer(_HUFFMAN, 0x7F, len(short)) + short
    return _render_integer(0, 0x7F, len(text)) + text


def render_field(name: bytes, value: bytes) -> bytes:
    """One field, by the static table and without the dynamic one; secrets never indexed."""
    index = _EXACT.get((name, value))
    if index is not None:
        return bytes((0x80 | index,))
    first = 0x10 if name in NEVER_INDEXED else 0x00
    index = _BY_NAME.get(name)
    if index is not None:
        return _render_integer(first, 0x0F, index) + _render_string(value)
    return bytes((first,)) + _render_string(name) + _render_string(value)


def render_block(fields: Iterable[Field]) -> bytes:
    """A header block that holds for every connection; blocks and fields rendered so may be joined."""
    return b"".join([render_field(name, value) for name, value in fields])


TABLE_EMPTY: Final = b"\x20"
"""A dynamic table size update to 0: due before the next block when a peer lowers its bound (RFC 7541 §4.2). We use none of it."""

"""Response heads for HTTP/3, prepared once per head and kept on it (`ResponseHead.h3`): a hit is a join of four pieces.

A block refers to no dynamic table, so the same bytes serve every connection. A date that the head does not have is one more
field line behind the block, its length accounted for.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.http.h3_frames import encode_varint
from edgetun_core.http.message import Fields, ResponseHead
from edgetun_core.http.multiplexed import UNKNOWN_LENGTH, announced_length, build_response_fields
from edgetun_core.http.priority import Priority, parse_priority
from edgetun_core.http.qpack import encode_date_line, encode_section

DATE_BYTES: Final = 29
"""An HTTP date is always that long (RFC 9110 §5.6.7)."""
DATE_LINE_BYTES: Final = DATE_BYTES + 2
_HEADERS: Final = b"\x01"


class PreparedH3:
    """`lead` is the HEADERS frame, but for the date line when `has_date` is False. `content_length` is -1 when there is none.

    `data_lead` begins the one DATA frame of a body with a known length. `priority` is what the response says of itself
    (RFC 9218 §5), or None.
    """

    __slots__ = ("content_length", "data_lead", "has_date", "lead", "priority", "without_body")

    def __init__(self, head: ResponseHead) -> None:
        status = head.status
        self.without_body = status < 200 or status in (204, 304)
        # An interim head needs no date (RFC 9110 §6.6.1).
        self.has_date = status < 200 or head.get(b"date") is not None
        said = head.get_all(b"priority")
        self.priority: Priority | None = parse_priority(b",".join(said)) if said else None
        length = announced_length(head)
        self.content_length = length if length != UNKNOWN_LENGTH else -1
        block = encode_section(build_response_fields(head))
        size = len(block) + (0 if self.has_date else DATE_LINE_BYTES)
        self.lead = _HEADERS + encode_varint(size) + block
        self.data_lead = b"\x00" + encode_varint(length) if length > 0 else b""


def prepare_response(head: ResponseHead) -> PreparedH3:
    """The head's prepared form, made on first use."""
    prepared = head.h3
    if prepared is None:
        prepared = head.h3 = PreparedH3(head)
    assert isinstance(prepared, PreparedH3)
    return prepared


def render_trailers(fields: Fields) -> bytes:
    """A HEADERS frame of trailers."""
    block = encode_section(fields)
    return _HEADERS + encode_varint(len(block)) + block


def date_line(date: bytes) -> bytes:
    """The field line that goes behind a head without a date of its own."""
    assert len(date) == DATE_BYTES
    return encode_date_line(date)

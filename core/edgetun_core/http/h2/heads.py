"""Response heads as header blocks, rendered once and kept on the shared head."""

from __future__ import annotations

from edgetun_core.http.h2.hpack import render_block
from edgetun_core.http.message import Fields, ResponseHead
from edgetun_core.http.multiplexed import announced_length, build_response_fields
from edgetun_core.http.priority import Priority, parse_priority


class PreparedHead:
    """What a sender needs of a response head, worked out once; lives in `ResponseHead.h2`.

    `block` is the whole header block; a `date` may be added behind it when the head has none. `content_length` is -1 when
    there is none. `priority` is what the response says of itself (RFC 9218 §5), or None.
    """

    __slots__ = ("block", "content_length", "has_alt_svc", "has_date", "priority", "without_body")

    def __init__(self, head: ResponseHead) -> None:
        fields = build_response_fields(head)
        self.block = render_block(fields)
        self.content_length = announced_length(head)
        self.has_date = any(name == b"date" for name, _ in fields)
        self.has_alt_svc = any(name == b"alt-svc" for name, _ in fields)
        self.without_body = head.status < 200 or head.status in (204, 304)
        said = head.get_all(b"priority")
        self.priority: Priority | None = parse_priority(b",".join(said)) if said else None


def prepare_response(head: ResponseHead) -> PreparedHead:
    """The head's prepared form, made on first use."""
    prepared = head.h2
    if prepared is None:
        prepared = head.h2 = PreparedHead(head)
    assert isinstance(prepared, PreparedHead)
    return prepared


def render_trailers(fields: Fields) -> bytes:
    """A trailer section; names are lower case in heads already."""
    return render_block(fields)

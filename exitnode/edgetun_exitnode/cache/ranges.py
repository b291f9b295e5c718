"""Several byte ranges of one body as `multipart/byteranges` (RFC 9110 §14.2, §14.6), cut as they are read and not before.

Bounds: at most `validators.MAX_RANGES` are asked for; ones that overlap or nearly touch are joined, so no answer is larger than the body and
as many part heads. Slices are made one at a time, when the reader takes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, overload

from edgetun_exitnode.cache.body import PIECE_BYTES, Body

JOINED_GAP_BYTES: Final = 80
"""A part's head costs about so much, so a smaller gap is sent along (§15.3.7.2)."""

Span = tuple[int, int]
"""First and last position of a range, both inclusive."""


def join_spans(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The spans in ascending order, without overlaps and small gaps."""
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1 + JOINED_GAP_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


class _Chunks(Sequence[bytes]):
    """Part heads as they stand, and slices of the pieces, cut when they are asked for."""

    def __init__(self, pieces: Sequence[bytes], plan: list[bytes | tuple[int, int, int]]) -> None:
        self._pieces = pieces
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return _Chunks(self._pieces, self._plan[index])
        planned = self._plan[index]
        if isinstance(planned, bytes):
            return planned
        piece, start, end = planned
        return self._pieces[piece][start:end]


def build_part(pieces: Sequence[bytes], start: int, span: Span) -> Body:
    """A complete body of the bytes of `span`, out of pieces that follow each other from position `start` on."""
    plan: list[bytes | tuple[int, int, int]] = []
    position, offset = span[0], start
    for number, piece in enumerate(pieces):
        stop = offset + len(piece)
        while position < stop and position <= span[1]:
            end = min(span[1] + 1, stop, position + PIECE_BYTES)
            plan.append((number, position - offset, end - offset))
            position = end
        offset = stop
    body = Body()
    body.chunks = _Chunks(pieces, plan)
    body.total = span[1] - span[0] + 1
    body.is_complete = True
    return body


def build_multipart(
    pieces: Sequence[bytes], length: int, spans: Sequence[Span], content_type: bytes | None, boundary: bytes
) -> Body:
    """A complete body with one part for each span, in ascending order; `total` is its Content-Length."""
    plan: list[bytes | tuple[int, int, int]] = []
    total = 0
    number, offset = 0, 0  # the piece looked at, and where it begins
    for first, last in spans:
        kind = b"content-type: %s\r\n" % content_type if content_type is not None else b""
        opening = b"\r\n--%s\r\n%scontent-range: bytes %d-%d/%d\r\n\r\n" % (boundary, kind, first, last, length)
        plan.append(opening)
        total += len(opening) + last - first + 1
        position = first
        while position <= last:
            size = len(pieces[number])
            if position >= offset + size:
                offset += size
                number += 1
                continue
            end = min(last + 1, offset + size)
            plan.append((number, position - offset, end - offset))
            position = end
    closing = b"\r\n--%s--\r\n" % boundary
    plan.append(closing)
    body = Body()
    body.chunks = _Chunks(pieces, plan)
    body.total = total + len(closing)
    body.is_complete = True
    return body

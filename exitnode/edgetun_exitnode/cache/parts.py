"""Partial responses (206): stored as parts, combined where a strong validator says that they belong together (RFC 9111 §3.3, §3.4).

A part lives under a key of its own (`PART_SUFFIX`), never answers a request without a Range, and becomes a whole response when
the parts cover all of it. What is kept of a part while it comes in is reserved in the store, as any body on its way is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, ResponseHead
from edgetun_exitnode.cache.body import CHUNK_OVERHEAD_BYTES
from edgetun_exitnode.cache.freshness import Storable, decide_storable
from edgetun_exitnode.cache.ranges import Span
from edgetun_exitnode.cache.response import StoredResponse
from edgetun_exitnode.cache.validators import is_strong_etag
from edgetun_exitnode.cache.view import RequestView

if TYPE_CHECKING:
    from edgetun_exitnode.cache.stage import CacheStage

MAX_SPANS: Final = 64
_CONTENT_RANGE = re.compile(rb"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})", re.IGNORECASE)
_OF_THE_PART: Final = frozenset({b"content-range", b"content-length"})

Part = tuple[int, bytes]
"""Where a run of bytes begins, and the bytes."""


def parse_content_range(values: Sequence[bytes]) -> tuple[int, int, int] | None:
    """First and last position and the complete length of a 206; None for several values, an unknown length, or nonsense."""
    match = _CONTENT_RANGE.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    first, last, length = map(int, match.groups())
    return (first, last, length) if first <= last < length else None


def are_of_one(stored: StoredResponse, newer: StoredResponse) -> bool:
    """True when two parts are surely of the same representation: the same strong validator (RFC 9111 §3.4)."""
    if stored.length != newer.length:
        return False
    if stored.etag is not None or newer.etag is not None:
        return stored.etag == newer.etag and stored.etag is not None and is_strong_etag(stored.etag)
    return stored.has_strong_date and newer.has_strong_date and stored.last_modified == newer.last_modified


def combine(parts: Sequence[Part], newer: Part) -> tuple[Part, ...]:
    """The parts in ascending order, joined where they touch; where they overlap the newer bytes hold."""
    first, data = newer
    end = first + len(data)
    before: list[Part] = []
    after: list[Part] = []
    for at, present in parts:
        stop = at + len(present)
        if stop < first:
            before.append((at, present))
        elif at > end:
            after.append((at, present))
        else:
            if at < first:
                data = present[: first - at] + data
                first = at
            if stop > end:
                data += present[end - at :]
                end = stop
    return (*before, (first, data), *after)


def find_span(spans: Sequence[Span], wanted: Span) -> int | None:
    """Which of the spans holds all of what is wanted."""
    for number, (first, last) in enumerate(spans):
        if first <= wanted[0] and wanted[1] <= last:
            return number
    return None


class PartCollector:
    """Hands a response to a Range request on to who asked, and keeps its bytes for the store when they are worth it.

    Stands on both sides of the exchange, so that it hears of the visitor's leaving too.
    """

    __slots__ = (
        "_chunks",
        "_client",
        "_first",
        "_fwd",
        "_is_over",
        "_left",
        "_names",
        "_requested_at",
        "_reserved",
        "_response",
        "_stage",
        "_upstream",
        "_view",
    )

    def __init__(self, stage: CacheStage, view: RequestView, client: ResponseSink, fwd: bytes, now: float) -> None:
        self._stage = stage
        self._view = view
        self._client = client
        self._fwd = fwd
        self._requested_at = now
        self._upstream: RequestSink = CLOSED
        self._is_over = False
        self._response: StoredResponse | None = None
        self._names: tuple[bytes, ...] = ()
        self._chunks: list[bytes] = []
        self._first = 0
        self._left = 0
        self._reserved = 0

    def connect(self, upstream: RequestSink) -> RequestSink:
        """Takes the exchange that was opened; returns what the visitor holds."""
        if not self._is_over:
            self._upstream = upstream
        return self

    # -- the response -----------------------------------------------------------------------------------------------------

    def on_interim(self, head: ResponseHead) -> None:
        self._client.on_interim(head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if end:
            self._end()
        fwd = self._fwd
        if not end and head.status == 206 and self._begin(head):
            fwd += b"; stored"
        self._client.on_head(self._stage.decorate(head, fwd), end)

    def on_data(self, data: bytes, end: bool) -> None:
        if self._response is not None:
            self._keep(data, end)
        if end:
            self._end()
        self._client.on_data(data, end)

    def on_trailers(self, fields: Fields) -> None:
        if self._response is not None:
            self._keep(b"", True)
        self._end()
        self._client.on_trailers(fields)

    def on_reset(self, error: EdgetunError) -> None:
        self._drop()
        self._end()
        self._client.on_reset(error)

    def pause_request(self) -> None:
        self._client.pause_request()

    def resume_request(self) -> None:
        self._client.resume_request()

    # -- the visitor ------------------------------------------------------------------------------------------------------

    def send_data(self, data: bytes, end: bool) -> None:
        """Nothing to send: ranges are asked for without a body."""

    def send_trailers(self, fields: Fields) -> None:
        """Nothing to send."""

    def reset(self, error: EdgetunError) -> None:
        self._drop()
        upstream = self._upstream
        self._end()
        upstream.reset(error)

    def pause_response(self) -> None:
        self._upstream.pause_response()

    def resume_response(self) -> None:
        self._upstream.resume_response()

    # -- inside -----------------------------------------------------------------------------------------------------------

    def _begin(self, head: ResponseHead) -> bool:
        stage = self._stage
        content_range = parse_content_range(head.get_all(b"content-range"))
        if content_range is None:
            return False
        first, last, length = content_range
        now = stage.clock()
        whole = ResponseHead(200, tuple(field for field in head.fields if field[0] not in _OF_THE_PART))
        verdict = decide_storable(
            stage.rule,
            self._view.head,
            stage.stored.request_directives(self._view),
            whole,
            requested_at=self._requested_at,
            received_at=now,
            wall_s=stage.wall_clock(),
        )
        if not isinstance(verdict, Storable) or not verdict.is_shareable or last - first >= stage.rule.max_object_bytes:
            return False
        response = StoredResponse(200, verdict.fields, verdict.timing, length, stage.wall_clock())
        if not (response.has_strong_date or (response.etag is not None and is_strong_etag(response.etag))):
            return False
        self._response = response
        self._names = verdict.vary
        self._first = first
        self._left = last - first + 1
        return True

    def _keep(self, data: bytes, end: bool) -> None:
        stage, response = self._stage, self._response
        assert response is not None
        self._left -= len(data)
        if self._left < 0 or (end and self._left):
            self._drop()  # another length than stated: never stored (§3.3)
            return
        if data:
            size = len(data) + CHUNK_OVERHEAD_BYTES
            if not stage.store.reserve(stage.tenant, size):
                self._drop()
                return
            self._reserved += size
            self._chunks.append(data)
        if end:
            part = (self._first, b"".join(self._chunks))
            self._drop()
            stage.stored.put_part(self._view, response, self._names, part, self._requested_at)

    def _end(self) -> None:
        """The exchange is over; no circle is left behind."""
        self._is_over = True
        self._upstream = CLOSED

    def _drop(self) -> None:
        self._response = None
        self._chunks = []
        if self._reserved:
            self._stage.store.release(self._stage.tenant, self._reserved)
            self._reserved = 0

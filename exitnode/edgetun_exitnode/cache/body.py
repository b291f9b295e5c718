"""A body that many read at their own pace, while it is still coming in or from store. Hot path: one call per chunk and reader.

The chunks are shared `bytes`; a reader is a cursor. A slow reader keeps nobody waiting: it stands still, the chunks stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import ResponseSink
from edgetun_core.http.message import Fields
from edgetun_exitnode.cache.scheduling import Scheduler

CHUNK_OVERHEAD_BYTES: Final = 64
"""What a chunk costs beside its bytes: the object's head and its place in the list."""
WHOLE_BYTES: Final = 128 * 1024
"""Bodies up to this size are stored as one `bytes` and pushed whole: no reader is needed, and a visitor who stalls holds no more than this."""
PIECE_BYTES: Final = 64 * 1024
"""Larger ones are stored in pieces of at most this size."""


class Body:
    """Chunks of a body from `start` (an offset in bytes) on; `total` bytes came in so far."""

    __slots__ = ("chunks", "first", "is_complete", "start", "total", "trailers")

    def __init__(self) -> None:
        self.chunks: Sequence[bytes] = []
        self.first = 0
        """Number of the first chunk kept; chunks are numbered from the body's beginning."""
        self.start = 0
        self.total = 0
        self.is_complete = False
        self.trailers: Fields | None = None

    @property
    def size_bytes(self) -> int:
        """What the kept chunks cost."""
        return self.total - self.start + CHUNK_OVERHEAD_BYTES * len(self.chunks)

    def append(self, chunk: bytes) -> None:
        """Adds what came in."""
        assert isinstance(self.chunks, list)
        self.chunks.append(chunk)
        self.total += len(chunk)

    def drop_before(self, number: int) -> None:
        """Forgets the chunks before this number, which every reader has passed."""
        count = number - self.first
        if count > 0:
            self.start += sum(map(len, self.chunks[:count]))
            assert isinstance(self.chunks, list)
            del self.chunks[:count]
            self.first = number


def build_pieces(chunks: Sequence[bytes]) -> list[bytes]:
    """The same bytes, in one when they are few, else in pieces of at most `PIECE_BYTES`: small chunks joined, larger ones cut."""
    if sum(map(len, chunks)) <= WHOLE_BYTES:
        whole = b"".join(chunks)
        return [whole] if whole else []
    pieces: list[bytes] = []
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        if pending and size + len(chunk) > PIECE_BYTES:
            pieces.append(b"".join(pending))
            pending, size = [], 0
        if len(chunk) > PIECE_BYTES:
            pieces.extend(chunk[at : at + PIECE_BYTES] for at in range(0, len(chunk), PIECE_BYTES))
            continue
        pending.append(chunk)
        size += len(chunk)
    if pending:
        pieces.append(b"".join(pending))
    return pieces


def build_stored_body(pieces: list[bytes]) -> Body:
    """A complete body."""
    body = Body()
    body.chunks = pieces
    body.total = sum(map(len, pieces))
    body.is_complete = True
    return body


class Reader:
    """Pushes a body, or the range `skip` .. `skip + limit` of it, into a client; a `RequestSink` for who reads.

    `on_done` is called once, right before the last push.
    """

    __slots__ = (
        "_body",
        "_client",
        "_is_pumping",
        "_is_starting",
        "is_over",
        "is_paused",
        "limit",
        "next",
        "on_done",
        "position",
        "skip",
    )

    def __init__(
        self,
        body: Body,
        client: ResponseSink,
        *,
        skip: int = 0,
        limit: int = -1,
        is_paused: bool = False,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        self._body = body
        self._client = client
        self._is_pumping = False
        self._is_starting = False
        self.is_over = False
        self.is_paused = is_paused
        self.skip = skip
        self.limit = limit
        self.next = body.first
        self.position = body.start
        self.on_done = on_done

    def pump(self) -> None:
        """Pushes what is there, until paused. The client may pause, resume or reset from within."""
        if self._is_pumping:
            return
        self._is_pumping = True
        body = self._body
        while not self.is_paused and not self.is_over:
            if self._is_starting and self.next > body.first:
                break
            index = self.next - body.first
            if index < len(body.chunks):
                chunk = body.chunks[index]
                self.next += 1
                self.position += len(chunk)
                if self.limit >= 0:
                    self._push_part(chunk)
                elif body.is_complete and index + 1 == len(body.chunks) and body.trailers is None:
                    self._finish()
                    self._client.on_data(chunk, True)
                else:
                    self._client.on_data(chunk, False)
            elif body.is_complete:
                self._finish()
                if body.trailers is not None:
                    self._client.on_trailers(body.trailers)
                else:
                    self._client.on_data(b"", True)
            else:
                break
        self._is_pumping = False

    def start(self, scheduler: Scheduler) -> None:
        """Pushes the first chunk now and the rest in the next tick: within `Handler.open` the client has no way to pause yet."""
        body = self._body
        if body.chunks:
            self._is_starting = True
            self.pump()
            self._is_starting = False
        if not self.is_over and (body.is_complete or self.next < body.first + len(body.chunks)):
            scheduler.call_later(0.0, self.pump)

    def _finish(self) -> None:
        self.is_over = True
        if self.on_done is not None:
            self.on_done()
            self.on_done = None

    def _push_part(self, chunk: bytes) -> None:
        if self.skip:
            if self.skip >= len(chunk):
                self.skip -= len(chunk)
                return
            chunk = chunk[self.skip :]
            self.skip = 0
        if len(chunk) >= self.limit:
            self._finish()
            self._client.on_data(chunk[: self.limit], True)
            return
        self.limit -= len(chunk)
        self._client.on_data(chunk, False)

    def send_data(self, data: bytes, end: bool) -> None:
        """Nothing to send: what is read here was asked for without a body."""

    def send_trailers(self, fields: Fields) -> None:
        """Nothing to send."""

    def reset(self, error: EdgetunError) -> None:
        """The reader goes away."""
        self.is_over = True
        self.on_done = None

    def pause_response(self) -> None:
        self.is_paused = True

    def resume_response(self) -> None:
        self.is_paused = False
        self.pump()

"""A visitor's request at the cache stage: what its front holds while it waits for a flight, reads a body, or goes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetun_core.errors import Cancelled, EdgetunError
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer
from edgetun_exitnode.cache.body import Reader
from edgetun_exitnode.cache.view import RequestView

if TYPE_CHECKING:
    from edgetun_exitnode.cache.flight import Flight


class Visitor:
    """One visitor's request at this stage, while it waits, reads, or goes alone; the `RequestSink` its front holds."""

    __slots__ = (
        "asks",
        "client",
        "flight",
        "fwd",
        "is_opening",
        "is_over",
        "is_paused",
        "may_lead",
        "peer",
        "reader",
        "upstream",
        "view",
    )

    def __init__(self, view: RequestView, peer: Peer, client: ResponseSink, fwd: bytes) -> None:
        self.view = view
        self.peer = peer
        self.client = client
        self.fwd = fwd
        self.flight: Flight | None = None
        self.reader: Reader | None = None
        self.upstream: RequestSink | None = None
        """The exchange of who goes alone."""
        self.is_paused = False
        self.is_over = False
        self.is_opening = True
        """`Handler.open` has not returned yet."""
        self.asks = 0
        self.may_lead = True
        """Their request can be fetched for others."""

    def send_data(self, data: bytes, end: bool) -> None:
        """Nothing to send: collapsed requests have no body."""

    def send_trailers(self, fields: Fields) -> None:
        """Nothing to send."""

    def reset(self, error: EdgetunError) -> None:
        if self.is_over:
            return
        self.is_over = True
        if self.reader is not None:
            self.reader.reset(error)
            self.reader = None
        flight = self.flight
        if flight is not None:
            flight.leave(self)
        elif self.upstream is not None:
            self.upstream.reset(error)

    def pause_response(self) -> None:
        self.is_paused = True
        if self.reader is not None:
            self.reader.is_paused = True
        elif self.upstream is not None:
            self.upstream.pause_response()

    def resume_response(self) -> None:
        self.is_paused = False
        if self.reader is not None:
            self.reader.resume_response()
            if self.flight is not None and self.flight.is_upstream_paused:
                self.flight.keep_pace()
        elif self.upstream is not None:
            self.upstream.resume_response()

    def connect(self, upstream: RequestSink) -> None:
        """The visitor's own exchange is open: passes on what they said meanwhile."""
        self.upstream = upstream
        if self.is_over:
            upstream.reset(Cancelled("the visitor went away"))
        elif self.is_paused:
            upstream.pause_response()

    def finish(self) -> None:
        """All that was asked for is about to be pushed; comes before the push, because the front may ask again from within."""
        self.is_over = True
        self.reader = None
        flight, self.flight = self.flight, None
        if flight is not None:
            flight.satisfied(self)

    def fail(self, error: EdgetunError) -> None:
        """The visitor gets the error."""
        if not self.is_over:
            self.is_over = True
            self.flight = None
            if self.reader is not None:
                self.reader.reset(error)
                self.reader = None
            self.client.on_reset(error)

"""The one interface of a request in flight. Every hop speaks it: fronts, stages, cache followers, wire, agent, origin.

Whoever has a request calls `Handler.open` and hands over a `ResponseSink`; it gets back a `RequestSink`. From then on
the two push at each other. There is no task and no queue in between.

The rules, which every implementation keeps and `tests/conformance/` checks:

1. The answering side calls `on_interim` any number of times, then `on_head` once, `on_data` any number of times, and
   ends with exactly one of: `on_head(end=True)`, `on_data(end=True)`, `on_trailers`, `on_reset`. `on_reset` may come at
   any point, also before a head. After the end it calls nothing more.
2. All of that may happen inside `open`, before it returns (a cache hit does). The requester looks at its own state after
   `open` returns. When everything already happened, `open` may return `CLOSED`, a sink that ignores all.
3. The requesting side calls `send_data` any number of times and ends with one of `send_data(end=True)`,
   `send_trailers`, or `reset`, unless it said `end=True` at `open`. `reset` may come at any point: the requester is gone,
   and the answering side calls it back no more. Calls after the end of the response are ignored, never errors.
4. A response may end before the request did. The answering side then drops what still comes of the request.
5. Flow: `ResponseSink.pause_request` asks the requester to stop `send_data`, `RequestSink.pause_response` asks the
   answering side to stop `on_data`; `resume_*` undo it. They are edges, not counters: pausing twice is pausing once.
   What is already under way may still be pushed; the overshoot is bounded by one read (64 KiB) or the credit given.
6. `data` is never empty unless `end` is True. It is `bytes`; the receiver may keep it.
7. An accepted upgrade: `open` with `head.protocol`, answered by `on_head(status=101 or 2xx to an extended CONNECT)`; from
   then on `send_data`/`on_data` carry raw bytes until each side says `end`. An upgrade request opens with `end=False`. The
   answering side may still call `on_reset` after its own `end`, as long as the requester has not said its own.
8. An exchange whose head has the protocol `udp`, answered by 2xx, carries datagrams: each `send_data` and `on_data` without
   `end` is one, which may also be empty; some may be lost or change places. Nobody pauses for them: who is full drops.
9. Nothing here raises for a peer's sake. An implementation that fails calls `on_reset` with the error.
"""

from __future__ import annotations

from typing import Protocol

from edgetun_core.errors import EdgetunError
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead


class ResponseSink(Protocol):
    """Takes a response; implemented by whoever asked."""

    def on_interim(self, head: ResponseHead) -> None:
        """A 1xx head (RFC 9110 §15.2)."""

    def on_head(self, head: ResponseHead, end: bool) -> None:
        """The final head; `end` when no body and no trailers follow."""

    def on_data(self, data: bytes, end: bool) -> None:
        """A piece of the body."""

    def on_trailers(self, fields: Fields) -> None:
        """The trailer section, which ends the response (RFC 9110 §6.5)."""

    def on_reset(self, error: EdgetunError) -> None:
        """The response ends here, incomplete or never begun; `error` says why."""

    def pause_request(self) -> None:
        """Asks for no more `send_data` for now."""

    def resume_request(self) -> None:
        """Undoes `pause_request`."""


class RequestSink(Protocol):
    """Takes the rest of a request after its head; returned by `Handler.open`."""

    def send_data(self, data: bytes, end: bool) -> None:
        """A piece of the request's body."""

    def send_trailers(self, fields: Fields) -> None:
        """The request's trailer section, which ends the request."""

    def reset(self, error: EdgetunError) -> None:
        """The requester gives up; cancel whatever was started for it."""

    def pause_response(self) -> None:
        """Asks for no more `on_data` for now."""

    def resume_response(self) -> None:
        """Undoes `pause_response`."""


class Handler(Protocol):
    """Answers requests, or passes them on, or wraps them."""

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """Starts an exchange. `end` when the request has no body. See the rules above."""


class _Closed:
    """The sink of an exchange that is over: ignores everything."""

    __slots__ = ()

    def send_data(self, data: bytes, end: bool) -> None:
        pass

    def send_trailers(self, fields: Fields) -> None:
        pass

    def reset(self, error: EdgetunError) -> None:
        pass

    def pause_response(self) -> None:
        pass

    def resume_response(self) -> None:
        pass


CLOSED: RequestSink = _Closed()

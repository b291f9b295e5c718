"""Both ends of an exchange for unit tests: a visitor that records, and an answering side that is told what to do."""

from __future__ import annotations

from collections.abc import Callable

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead

PEER = Peer("192.0.2.1", 40000, b"https")


def request(
    target: bytes = b"/", *fields: tuple[bytes, bytes], method: bytes = b"GET", host: bytes = b"shop.example.com"
) -> RequestHead:
    return RequestHead(method, b"https", host, target, fields)


class Recorder:
    """A visitor: keeps all it is told, in order, as tuples whose first item is the callback's name."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def on_interim(self, head: ResponseHead) -> None:
        self.calls.append(("interim", head.status, head.fields))

    def on_head(self, head: ResponseHead, end: bool) -> None:
        self.calls.append(("head", head.status, head.fields, end))

    def on_data(self, data: bytes, end: bool) -> None:
        self.calls.append(("data", data, end))

    def on_trailers(self, fields: Fields) -> None:
        self.calls.append(("trailers", fields))

    def on_reset(self, error: EdgetunError) -> None:
        self.calls.append(("reset", error))

    def pause_request(self) -> None:
        self.calls.append(("pause",))

    def resume_request(self) -> None:
        self.calls.append(("resume",))

    def names(self) -> list[object]:
        return [call[0] for call in self.calls]

    @property
    def status(self) -> int:
        return next(call[1] for call in self.calls if call[0] == "head")  # type: ignore[return-value]

    @property
    def fields(self) -> dict[bytes, bytes]:
        return dict(next(call[2] for call in self.calls if call[0] == "head"))  # type: ignore[call-overload, no-any-return]

    @property
    def body(self) -> bytes:
        return b"".join(call[1] for call in self.calls if call[0] == "data")  # type: ignore[misc]

    @property
    def error(self) -> EdgetunError:
        return next(call[1] for call in self.calls if call[0] == "reset")  # type: ignore[return-value]


class Opened:
    """One exchange as the answering side sees it."""

    def __init__(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> None:
        self.head = head
        self.peer = peer
        self.end = end
        self.client = client
        self.calls: list[tuple[object, ...]] = []

    def send_data(self, data: bytes, end: bool) -> None:
        self.calls.append(("data", data, end))

    def send_trailers(self, fields: Fields) -> None:
        self.calls.append(("trailers", fields))

    def reset(self, error: EdgetunError) -> None:
        self.calls.append(("reset", error))

    def pause_response(self) -> None:
        self.calls.append(("pause",))

    def resume_response(self) -> None:
        self.calls.append(("resume",))


class Answerer:
    """A handler, and a session too: keeps the exchanges opened on it; `at_open` may answer within `open`."""

    def __init__(self, at_open: Callable[[Opened], None] | None = None) -> None:
        self.opened: list[Opened] = []
        self.at_open = at_open
        self.in_flight = 0

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        exchange = Opened(head, peer, end, client)
        self.opened.append(exchange)
        if self.at_open is not None:
            self.at_open(exchange)
        return exchange


class Clock:
    """Time in a test's hand: monotonic seconds, and what is scheduled on them."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()
        self._count = 0

    def __call__(self) -> float:
        return self.now

    def schedule(self, delay_s: float, callback: Callable[[], None]) -> ScheduledCall:
        self._count += 1
        self._due.append((self.now + delay_s, self._count, callback))
        return ScheduledCall(self, self._count)

    def cancel(self, number: int) -> None:
        self._due = [entry for entry in self._due if entry[1] != number]

    def advance(self, seconds: float) -> None:
        """Moves time on, calling what falls due at its own time."""
        until = self.now + seconds
        while True:
            due = min((entry for entry in self._due if entry[0] <= until), default=None)
            if due is None:
                break
            self._due.remove(due)
            self.now = max(self.now, due[0])
            due[2]()
        self.now = until

    @property
    def pending(self) -> int:
        return len(self._due)


class ScheduledCall:
    def __init__(self, clock: Clock, number: int) -> None:
        self._clock = clock
        self._number = number

    def cancel(self) -> None:
        self._clock.cancel(self._number)

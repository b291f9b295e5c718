"""Two sessions joined by pipes that a test opens as it likes, and what is needed to read the bytes between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import RequestSink
from edgetun_core.http.message import RequestHead, ResponseHead
from edgetun_core.wire.frames import HEADER, name_of
from edgetun_core.wire.hello import Hello, Refusal, Welcome, Windows
from edgetun_core.wire.session import Session
from support.exchanges import PEER, Answerer, Opened, Recorder

OK = ResponseHead(200, ((b"content-type", b"text/plain"),))
HELLO = Hello(agent_id="laptop", session_id="00" * 16, services=("team-a/shop",))


def get(target: bytes = b"/", *fields: tuple[bytes, bytes], protocol: bytes | None = None) -> RequestHead:
    return RequestHead(b"GET", b"https", b"shop.example.com", target, fields, protocol, "team-a/shop")


def frames_in(data: bytes) -> list[tuple[str, int, bytes]]:
    """The frames of one lane, as (kind, exchange, payload)."""
    found = []
    position = 0
    while position < len(data):
        word, number = HEADER.unpack_from(data, position)
        length = word & 0xFFFFFF
        found.append((name_of(word >> 24), number, data[position + 8 : position + 8 + length]))
        position += 8 + length
    return found


class End:
    """One end: its session, what the session said, and the handler behind it."""

    def __init__(self, name: str, *, hello: Hello | None, windows: Windows | None, lanes: int, bulk_from: int) -> None:
        self.name = name
        self.handler = Answerer()
        self.events: list[tuple[str, object]] = []
        self.bugs: list[Exception] = []
        self.wakes = 0
        self.answer: Welcome | Refusal = Welcome(node="n1", services=("team-a/shop",))
        self.session = Session(self, self.handler, PEER, 0.0, hello=hello, windows=windows)
        self.session.mux.set_lanes(lanes, bulk_from)

    # SessionUser

    def on_hello(self, hello: Hello) -> Welcome | Refusal:
        self.events.append(("hello", hello.agent_id))
        return self.answer

    def on_session_open(self) -> None:
        self.events.append(("open", None))

    def on_session_draining(self, deadline_s: float) -> None:
        self.events.append(("draining", deadline_s))

    def observed_address(self) -> bytes:
        return b"192.0.2.1:4711"

    def on_session_answered(self) -> None:
        self.events.append(("answered", None))

    def on_session_closed(self, error: EdgetunError | None) -> None:
        self.events.append(("closed", error))

    def on_bug(self, error: Exception) -> None:
        self.bugs.append(error)

    def wake(self) -> None:
        self.wakes += 1

    # For tests.

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    @property
    def error(self) -> EdgetunError | None:
        return next(value for name, value in self.events if name == "closed")  # type: ignore[return-value]

    def open(self, head: RequestHead | None = None, *, end: bool = True) -> tuple[Recorder, RequestSink]:
        visitor = Recorder()
        return visitor, self.session.mux.open(head or get(), PEER, end, visitor)

    @property
    def opened(self) -> list[Opened]:
        return self.handler.opened


class Pair:
    """An agent and an exit node, with one queue of bytes per lane and direction between them."""

    def __init__(
        self,
        *,
        lanes: int = 1,
        bulk_from: int | None = None,
        hello: Hello = HELLO,
        windows: Windows | None = None,
        connect: bool = True,
    ) -> None:
        bulk_from = lanes if bulk_from is None else bulk_from
        self.now = 1.0
        self.edge = End("edge", hello=None, windows=windows, lanes=lanes, bulk_from=bulk_from)
        self.agent = End("agent", hello=hello, windows=None, lanes=lanes, bulk_from=bulk_from)
        self.pipes: dict[tuple[str, int], deque[bytes]] = {}
        self.sent: dict[tuple[str, int], int] = {}
        if connect:
            self.settle()

    def ends(self) -> Iterator[tuple[End, End]]:
        yield self.agent, self.edge
        yield self.edge, self.agent

    def flush(self, end: End) -> None:
        """Moves what an end has to send into the pipes."""
        for lane, data in end.session.data_to_send():
            assert data
            self.pipes.setdefault((end.name, lane), deque()).append(data)
            self.sent[end.name, lane] = self.sent.get((end.name, lane), 0) + len(data)
        end.session.flushed()

    def on_the_way(self, end: End, lane: int = 0) -> bytes:
        """What an end has sent on a lane and has not arrived."""
        self.flush(end)
        return b"".join(self.pipes.get((end.name, lane), ()))

    def deliver(self, source: End, lane: int, limit: int | None = None) -> bool:
        """Lets up to `limit` bytes of one lane arrive."""
        pipe = self.pipes.get((source.name, lane))
        if not pipe:
            return False
        target = self.edge if source is self.agent else self.agent
        data = b"".join(pipe)
        pipe.clear()
        if limit is not None and limit < len(data):
            pipe.append(data[limit:])
            data = data[:limit]
        target.session.receive(lane, data, self.now)
        return True

    def settle(self, until: Callable[[], bool] | None = None) -> None:
        """Lets everything arrive until nothing moves any more."""
        for _ in range(10_000):
            moved = False
            for source, _target in self.ends():
                self.flush(source)
                for name, lane in list(self.pipes):
                    if name == source.name:
                        moved = self.deliver(source, lane) or moved
            if not moved or (until is not None and until()):
                return
        raise AssertionError("the two ends never come to rest")

    def lose(self, error: EdgetunError | None = None) -> None:
        """The link is gone."""
        for end, _ in self.ends():
            end.session.lost(error)

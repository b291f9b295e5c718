"""A stage with everything around it under the test's hand: clock, timers, origin, visitors."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from edgetun_core.errors import Cancelled, EdgetunError
from edgetun_core.http.exchange import RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.cache.stage import CacheStage
from edgetun_exitnode.cache.store import Store

WALL_S = 1_700_000_000.0
PEER = Peer("192.0.2.1", 1234, b"http")


class Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class SimulatedTime:
    """Clock and scheduler in one; time passes only in `advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return WALL_S + self.now - 1000.0

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        timer = Timer(callback)
        self._count += 1
        heapq.heappush(self._timers, (self.now + delay, self._count, timer))
        return timer

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                callback, timer.callback = timer.callback, None
                callback()
        self.now = until

    @property
    def pending(self) -> int:
        return sum(timer.callback is not None for _, _, timer in self._timers)


class OriginExchange:
    """One request that reached the origin; the test answers it."""

    def __init__(self, origin: Origin, head: RequestHead, end: bool, client: ResponseSink) -> None:
        self.origin = origin
        self.head = head
        self.end = end
        self.client = client
        self.cancelled: EdgetunError | None = None
        self.is_over = False
        self.is_paused = False
        self.sent = b""

    def send_data(self, data: bytes, end: bool) -> None:
        self.sent += data

    def send_trailers(self, fields: Fields) -> None: ...

    def reset(self, error: EdgetunError) -> None:
        if not self.is_over:
            self.is_over = True
            self.cancelled = error

    def pause_response(self) -> None:
        self.is_paused = True

    def resume_response(self) -> None:
        self.is_paused = False

    @property
    def is_live(self) -> bool:
        return not self.is_over

    def answer_head(self, status: int, fields: Fields, end: bool = False) -> None:
        assert not self.is_over, "an exchange that is over must not be called back"
        self.is_over = end
        self.client.on_head(ResponseHead(status, fields), end)

    def send(self, data: bytes, end: bool = False) -> None:
        if self.is_over:
            assert self.cancelled is not None
            return
        self.is_over = end
        self.client.on_data(data, end)

    def trailers(self, fields: Fields) -> None:
        if not self.is_over:
            self.is_over = True
            self.client.on_trailers(fields)

    def fail(self, error: EdgetunError) -> None:
        if not self.is_over:
            self.is_over = True
            self.client.on_reset(error)

    def answer(self, body: bytes = b"hello", *fields: tuple[bytes, bytes], status: int = 200) -> None:
        if self.head.method == b"HEAD":
            self.answer_head(status, fields, end=True)
            return
        self.answer_head(status, fields, end=not body)
        if body and not self.is_over:
            self.send(body, end=True)


class Origin:
    """The handler behind the stage; keeps every request that came. `script` answers at once, from within `open`."""

    def __init__(self) -> None:
        self.exchanges: list[OriginExchange] = []
        self.script: Callable[[OriginExchange], None] | None = None

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        exchange = OriginExchange(self, head, end, client)
        self.exchanges.append(exchange)
        if self.script is not None:
            self.script(exchange)
        return exchange

    def __len__(self) -> int:
        return len(self.exchanges)

    def __getitem__(self, index: int) -> OriginExchange:
        return self.exchanges[index]

    @property
    def live(self) -> list[OriginExchange]:
        return [exchange for exchange in self.exchanges if not exchange.is_over]


class Guest:
    """A visitor: what they got, and a check of the rules of an exchange."""

    def __init__(self, on_end: Callable[[], None] | None = None) -> None:
        self.sink: RequestSink | None = None
        self.head: ResponseHead | None = None
        self.interim: list[ResponseHead] = []
        self.body = b""
        self.trailers: Fields | None = None
        self.error: EdgetunError | None = None
        self.is_complete = False
        self.has_left = False
        self.is_paused = False
        self.pushed_while_paused = 0
        self.on_end = on_end

    def _check(self) -> None:
        assert not self.is_complete, "nothing may come after the end"
        assert self.error is None, "nothing may come after a reset"
        assert not self.has_left, "who left is called back no more"

    def _end(self) -> None:
        self.is_complete = True
        if self.on_end is not None:
            self.on_end()

    def on_interim(self, head: ResponseHead) -> None:
        self._check()
        self.interim.append(head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        self._check()
        assert self.head is None, "one head"
        self.head = head
        if end:
            self._end()

    def on_data(self, data: bytes, end: bool) -> None:
        self._check()
        assert self.head is not None
        assert data or end
        assert isinstance(data, bytes)
        self.body += data
        if self.is_paused:
            self.pushed_while_paused += len(data)
        if end:
            self._end()

    def on_trailers(self, fields: Fields) -> None:
        self._check()
        self.trailers = fields
        self._end()

    def on_reset(self, error: EdgetunError) -> None:
        self._check()
        self.error = error
        if self.on_end is not None:
            self.on_end()

    def pause_request(self) -> None: ...

    def resume_request(self) -> None: ...

    def leave(self) -> None:
        if not self.is_complete and self.error is None:
            self.has_left = True
        assert self.sink is not None
        self.sink.reset(Cancelled("the visitor left"))

    def pause(self) -> None:
        self.is_paused = True
        assert self.sink is not None
        self.sink.pause_response()

    def resume(self) -> None:
        self.is_paused = False
        assert self.sink is not None
        self.sink.resume_response()

    @property
    def status(self) -> int:
        assert self.head is not None, f"no head yet; error {self.error!r}"
        return self.head.status

    @property
    def cache_status(self) -> bytes:
        assert self.head is not None
        values = self.head.get_all(b"cache-status")
        assert values
        return values[-1]

    @property
    def age(self) -> int | None:
        assert self.head is not None
        values = self.head.get_all(b"age")
        assert len(values) <= 1
        return int(values[0]) if values else None

    @property
    def is_waiting(self) -> bool:
        return self.head is None and self.error is None


class Bench:
    """A stage in override mode with a TTL of 1 s, unless the test says otherwise."""

    def __init__(
        self,
        rule: CacheRule | None = None,
        collapse: CollapseRule | None = None,
        *,
        store: Store | None = None,
        tenant: str = "team/shop",
        time: SimulatedTime | None = None,
        origin: Origin | None = None,
        **more: Any,
    ) -> None:
        self.time = time or SimulatedTime()
        self.origin = origin or Origin()
        self.store = store or Store(64 * 1024 * 1024)
        self.rule = rule or CacheRule(mode="override", ttl_s=1.0)
        self.collapse = collapse or CollapseRule()
        self.stage = CacheStage(
            self.rule,
            self.collapse,
            tenant,
            self.store,
            self.origin,
            self.time,
            self.time,
            wall_clock=self.time.wall,
            **more,
        )

    def ask(
        self,
        target: bytes = b"/",
        *fields: tuple[bytes, bytes],
        method: bytes = b"GET",
        authority: bytes = b"shop.test",
        scheme: bytes = b"http",
        end: bool = True,
        protocol: bytes | None = None,
        guest: Guest | None = None,
    ) -> Guest:
        return self.send(RequestHead(method, scheme, authority, target, fields, protocol), end, guest)

    def send(self, head: RequestHead, end: bool = True, guest: Guest | None = None) -> Guest:
        guest = guest or Guest()
        guest.sink = self.stage.open(head, PEER, end, guest)
        self.time.advance(0)
        return guest

    def check_nothing_left(self) -> None:
        """No flight, timer, reservation or exchange may outlive its visitors."""
        assert not self.stage.flights
        assert len(self.stage.coordinator) == 0
        assert self.store.reserved_bytes == 0
        assert self.time.pending == 0
        assert not self.origin.live

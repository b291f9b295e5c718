"""Limits of a route: requests per second and visitor, size of a request's body, exchanges at one time.

The decision is a token bucket (pure, time handed in); the stage applies it. Memory is bounded: at most
`2 * MAX_BUCKETS` visitors are remembered per route, and one forgotten starts with a full bucket.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping

from edgetun_core.errors import EdgetunError, LimitExceeded, Presentation
from edgetun_core.http.exchange import Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.memo import Memo
from edgetun_core.snapshot import LimitRule
from edgetun_exitnode.pipeline.answer import refuse

MAX_BUCKETS = 50_000
MAX_UNTOLD = 10_000
"""Visitors whose requests wait to be told to the exit node that keeps the fleet's account; the others are counted here alone."""
MOST_DEBT_BURSTS = 4.0
"""How far all nodes together may give too much before it is forgiven, in bursts."""
URGENT = 0.1
"""What part of a burst makes telling urgent. Nodes that each give so much before the others hear of it stay within a tenth."""


class RateExceeded(LimitExceeded):
    """A visitor asks faster than the tunnel allows; `retry_after_s` tells when the next request fits."""

    presentation = Presentation(429, 0x05, "RateLimited", "rate_limit")

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"too many requests from this address; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class BodyTooLarge(LimitExceeded):
    """The request's body is larger than the tunnel allows (RFC 9110 §15.5.14)."""

    presentation = Presentation(413, 0x05, "BodyTooLarge", "body_limit")


class TooManyConcurrent(LimitExceeded):
    """As many exchanges as the tunnel allows are under way."""

    presentation = Presentation(503, 0x05, "TooManyConcurrentRequests", "concurrency_limit")

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests are under way, as many as this tunnel allows; try again shortly")
        self.retry_after_s = 1


class RateLimit:
    """Token buckets, one per visitor.

    `rate` is in requests per second, `burst` in requests. An IPv6 visitor is its /64, since one host has all of it.

    In a fleet one exit node keeps the account of all (`share`): the others tell it what they gave (`take_untold`, `spend`) and hear
    what is left (`settle`), which is below 0 when they gave too much together; then nobody gives until that is made up for.
    """

    __slots__ = ("_buckets", "_burst", "_rate", "_urgent", "_visitors", "_wake", "untold")

    def __init__(self, rate: float, burst: int) -> None:
        self.untold: dict[str, float] = {}
        """Requests given here since they were last told, by visitor."""
        self._wake: Callable[[bool], None] | None = None
        self._rate = rate
        self._burst = float(burst) if burst else max(1.0, rate)
        self._urgent = max(1.0, self._burst * URGENT)
        self._buckets: Memo[str, list[float]] = Memo(MAX_BUCKETS)
        self._visitors: Memo[str, str] = Memo(MAX_BUCKETS)

    def decide(self, address: str, now: float) -> float:
        """Takes one token; returns 0.0 when there was one, else the seconds until there is."""
        visitor = address if ":" not in address else self._network(address)
        bucket = self._buckets.get(visitor)
        if bucket is None:
            self._buckets.put(visitor, [self._burst - 1.0, now])
            if self._wake is not None:
                self._note(visitor, self._wake)
            return 0.0
        tokens = min(self._burst, bucket[0] + (now - bucket[1]) * self._rate)
        bucket[1] = now
        if tokens >= 1.0:
            bucket[0] = tokens - 1.0
            if self._wake is not None:
                self._note(visitor, self._wake)
            return 0.0
        bucket[0] = tokens
        return (1.0 - tokens) / self._rate

    # ---- in a fleet

    def share(self, wake: Callable[[bool], None] | None) -> None:
        """From now on what is given is kept to be told; `wake` is called when there is something, with whether it is urgent."""
        self._wake = wake
        self.untold.clear()

    def _note(self, visitor: str, wake: Callable[[bool], None]) -> None:
        untold = self.untold
        given = untold.get(visitor)
        if given is None:
            if len(untold) >= MAX_UNTOLD:
                return
            untold[visitor] = 1.0
            wake(self._urgent <= 1.0)
        else:
            untold[visitor] = given + 1.0
            if given + 1.0 >= self._urgent:
                wake(True)

    def take_untold(self, most: int) -> dict[str, float]:
        """What to tell now, at most so many visitors; `give_back` when it could not be told."""
        if len(self.untold) <= most:
            taken, self.untold = self.untold, {}
            return taken
        return {visitor: self.untold.pop(visitor) for visitor in list(self.untold)[:most]}

    def give_back(self, spent: Mapping[str, float]) -> None:
        for visitor, given in spent.items():
            if visitor in self.untold or len(self.untold) < MAX_UNTOLD:
                self.untold[visitor] = self.untold.get(visitor, 0.0) + given

    def spend(self, visitor: str, given: float, now: float) -> float:
        """Another node gave so much: takes it from this account, and tells what is left for all."""
        bucket = self._buckets.get(visitor)
        if bucket is None:
            bucket = [self._burst, now]
            self._buckets.put(visitor, bucket)
        tokens = min(self._burst, bucket[0] + (now - bucket[1]) * self._rate) - given
        bucket[0] = max(tokens, -MOST_DEBT_BURSTS * self._burst)
        bucket[1] = now
        return bucket[0]

    def settle(self, visitor: str, left: float, now: float) -> None:
        """Hears what was left for all; what was given here since is not in it."""
        bucket = self._buckets.get(visitor)
        if bucket is not None:
            tokens = min(self._burst, bucket[0] + (now - bucket[1]) * self._rate)
            bucket[0] = min(tokens, left - self.untold.get(visitor, 0.0))
            bucket[1] = now

    def _network(self, address: str) -> str:
        network = self._visitors.get(address)
        if network is None:
            network = str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
            self._visitors.put(address, network)
        return network


class LimitStage:
    """Refuses what is over the route's limits before anything is spent on it."""

    __slots__ = ("_clock", "_max_body", "_next", "_rate", "refused")

    def __init__(self, rule: LimitRule, clock: Callable[[], float], following: Handler) -> None:
        self._max_body = rule.max_request_body_bytes
        self._rate = RateLimit(rule.requests_per_second, rule.burst) if rule.requests_per_second else None
        self._clock = clock
        self._next = following
        self.refused = 0

    @staticmethod
    def is_needed(rule: LimitRule) -> bool:
        return bool(rule.max_request_body_bytes or rule.requests_per_second)

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        if self._rate is not None:
            wait_s = self._rate.decide(peer.address, self._clock())
            if wait_s:
                self.refused += 1
                return refuse(client, RateExceeded(math.ceil(wait_s)))
        if end or not self._max_body or head.protocol is not None:
            return self._next.open(head, peer, end, client)
        length = head.get(b"content-length")
        if length is not None and int(length) > self._max_body:
            self.refused += 1
            return refuse(client, body_too_large(self._max_body))
        if length is not None:
            return self._next.open(head, peer, end, client)
        counted = _CountedBody(self, client)
        counted.sink = self._next.open(head, peer, end, counted)
        return counted

    @property
    def rate(self) -> RateLimit | None:
        """The limit of requests per second, if there is one."""
        return self._rate

    @property
    def max_body_bytes(self) -> int:
        return self._max_body


def body_too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request's body is larger than the {limit} bytes that this tunnel takes")


class _CountedBody:
    """Counts a body of unknown length; over the limit the exchange ends with 413 and is cancelled behind."""

    __slots__ = ("_client", "_left", "_over", "_stage", "sink")

    sink: RequestSink

    def __init__(self, stage: LimitStage, client: ResponseSink) -> None:
        self._stage = stage
        self._client = client
        self._left = stage.max_body_bytes
        self._over = False

    def send_data(self, data: bytes, end: bool) -> None:
        if self._over:
            return
        self._left -= len(data)
        if self._left < 0:
            self._over = True
            self._stage.refused += 1
            error = body_too_large(self._stage.max_body_bytes)
            self.sink.reset(error)
            self._client.on_reset(error)
            return
        self.sink.send_data(data, end)

    def send_trailers(self, fields: Fields) -> None:
        if not self._over:
            self.sink.send_trailers(fields)

    def reset(self, error: EdgetunError) -> None:
        if not self._over:
            self._over = True
            self.sink.reset(error)

    def pause_response(self) -> None:
        self.sink.pause_response()

    def resume_response(self) -> None:
        self.sink.resume_response()

    def on_interim(self, head: ResponseHead) -> None:
        self._client.on_interim(head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        self._over = self._over or end
        self._client.on_head(head, end)

    def on_data(self, data: bytes, end: bool) -> None:
        self._over = self._over or end
        self._client.on_data(data, end)

    def on_trailers(self, fields: Fields) -> None:
        self._over = True
        self._client.on_trailers(fields)

    def on_reset(self, error: EdgetunError) -> None:
        self._over = True
        self._client.on_reset(error)

    def pause_request(self) -> None:
        self._client.pause_request()

    def resume_request(self) -> None:
        self._client.resume_request()

"""Tunnels that carry TCP or UDP: who may connect, how many, and the last stage that their exchanges go to.

A `StreamPlan` is a tunnel of the present snapshot; its `StreamState` (counts, rate buckets) outlives changes of its rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgetun_core.errors import AuthError, EdgetunError, LimitExceeded
from edgetun_core.http.exchange import Handler
from edgetun_core.proxy_protocol import TrustedNetworks
from edgetun_core.snapshot import LimitRule, RouteRule, StreamRule, TunnelRule
from edgetun_exitnode.observe.counters import StreamCounters, TunnelCounters
from edgetun_exitnode.pipeline.limits import RateLimit

ForwardBuilder = Callable[[TunnelRule, RouteRule], Handler]


class TooManyConnections(LimitExceeded):
    """A tunnel or an address has as many connections as it may."""


class NotAllowed(AuthError):
    """The tunnel's `allowFrom` and `denyFrom` keep this address out."""


class ConnectsTooOften(LimitExceeded):
    """An address connects more often than the tunnel allows."""


class StreamState:
    """What is counted of one tunnel, whatever its rule says."""

    __slots__ = ("by_address", "counters", "open", "rate", "rate_rule", "tunnel")

    def __init__(self, counters: TunnelCounters) -> None:
        self.tunnel = counters
        self.counters = StreamCounters()
        self.open = 0
        self.by_address: dict[bytes | str, int] = {}
        self.rate: RateLimit | None = None
        self.rate_rule = LimitRule()

    def obey(self, rule: LimitRule) -> None:
        """Takes the rate of a rule; buckets stay as long as it is the same."""
        if (rule.requests_per_second, rule.burst) != (self.rate_rule.requests_per_second, self.rate_rule.burst):
            self.rate = RateLimit(rule.requests_per_second, rule.burst) if rule.requests_per_second else None
        self.rate_rule = rule


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """One TCP or UDP tunnel, ready to use."""

    rule: TunnelRule
    stream: StreamRule
    handler: Handler
    state: StreamState
    per_address: int
    allowed: TrustedNetworks
    denied: TrustedNetworks

    def admit(self, address: str, key: bytes | str | None, now: float) -> EdgetunError | None:
        """Counts a connection or flow of an address (`key`: what it is counted by, None for loopback), or says why not."""
        state = self.state
        state.tunnel.requests += 1
        refusal = self._refusal(address, key, now)
        if refusal is not None:
            state.counters.refused += 1
            state.tunnel.refused += 1
            return refusal
        state.open += 1
        state.counters.connections += 1
        if key is not None:
            state.by_address[key] = state.by_address.get(key, 0) + 1
        return None

    def _refusal(self, address: str, key: bytes | str | None, now: float) -> EdgetunError | None:
        if (self.allowed and not self.allowed.holds(address)) or self.denied.holds(address):
            return NotAllowed(f"{address} may not connect to {self.rule.id} (allowFrom, denyFrom)")
        state = self.state
        most = self.stream.max_connections
        concurrent = self.stream.limits.max_concurrent_requests
        if state.open >= most or (concurrent and state.open >= concurrent):
            return TooManyConnections(f"tunnel {self.rule.id} has {state.open} connections, as many as it may")
        if key is not None and self.per_address and state.by_address.get(key, 0) >= self.per_address:
            return TooManyConnections(
                f"{address} has {self.per_address} connections to {self.rule.id}, as many as it may"
            )
        if state.rate is not None and state.rate.decide(address, now):
            return ConnectsTooOften(f"{address} connects to {self.rule.id} more often than it may")
        return None

    def release(self, key: bytes | str | None) -> None:
        """A connection that was admitted is over."""
        state = self.state
        state.open -= 1
        if key is not None:
            left = state.by_address.get(key, 0) - 1
            if left > 0:
                state.by_address[key] = left
            else:
                state.by_address.pop(key, None)


class StreamPlans:
    """The TCP and UDP tunnels of the present snapshot: by port, and by server name."""

    def __init__(self, build_forward: ForwardBuilder) -> None:
        self._build_forward = build_forward
        self._plans: dict[str, StreamPlan] = {}
        self.by_port: dict[tuple[str, int], StreamPlan] = {}
        self._exact: dict[str, StreamPlan] = {}
        self._wildcard: dict[str, StreamPlan] = {}

    def apply(
        self, tunnels: Iterable[TunnelRule], counters: Callable[[str], TunnelCounters], per_address: int
    ) -> set[str]:
        """Takes the tunnels of a snapshot; returns the ids of those that are gone or are reached otherwise."""
        plans: dict[str, StreamPlan] = {}
        gone = set(self._plans)
        for rule in tunnels:
            stream = rule.stream
            if stream is None:
                continue
            before = self._plans.get(rule.id)
            if before is not None and before.rule.address_names == rule.address_names:
                gone.discard(rule.id)
            state = before.state if before is not None else StreamState(counters(rule.id))
            state.obey(stream.limits)
            bound = stream.max_connections_per_address or per_address
            if before is not None and before.rule == rule and before.per_address == bound:
                plans[rule.id] = before
                continue
            handler = self._build_forward(rule, RouteRule())
            allowed, denied = TrustedNetworks(stream.allow_from), TrustedNetworks(stream.deny_from)
            plans[rule.id] = StreamPlan(rule, stream, handler, state, bound, allowed, denied)
        self._plans = plans
        self.by_port = {(p.stream.kind, p.stream.port): p for p in plans.values() if p.stream.port}
        named = [(name, p) for p in plans.values() if not p.stream.port for name in p.rule.hostnames]
        self._exact = {name: p for name, p in named if not name.startswith("*.")}
        self._wildcard = {name[2:]: p for name, p in named if name.startswith("*.")}
        return gone

    @property
    def plans(self) -> dict[str, StreamPlan]:
        """By tunnel id."""
        return self._plans

    @property
    def has_names(self) -> bool:
        """Whether any tunnel takes TLS connections by their server name."""
        return bool(self._exact or self._wildcard)

    def find(self, server_name: str) -> StreamPlan | None:
        """The tunnel that takes TLS connections for a name as they are."""
        found = self._exact.get(server_name)
        if found is None and self._wildcard:
            label, _, parent = server_name.partition(".")
            if label:
                found = self._wildcard.get(parent)
        return found

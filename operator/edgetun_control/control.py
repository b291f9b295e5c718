"""Control itself: who is this agent, what may it serve, where does it connect. Knows no HTTP, no folder and no cluster."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from edgetun_control.attempts import FailedAttempts
from edgetun_control.placement import Placed, Placement
from edgetun_control.registry import Ground, Refused, decide_registration, name_taken
from edgetun_control.store import Store, decide_signing_key
from edgetun_core.credentials import CREDENTIAL_LIFETIME_S, ClusterToken, TokenRecord, TokenUnreadable
from edgetun_core.enrollment import EnrollRequest, EnrollResponse, VisitorAddress
from edgetun_core.errors import ConfigError, LimitExceeded
from edgetun_core.snapshot import TunnelRule

MOST_NAMES_PER_TOKEN: Final = 100
MOST_WATCHERS: Final = 256
"""Agents whose watch is held at one time; the others come back later, and hear all the same by renewing."""
WATCH_S: Final = 25.0
"""Shorter than the time after which middle boxes forget a silent connection, and than the life of one to control."""
WATCH_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """What control needs to know of the server it runs in."""

    domain: str = ""
    """Under which single labels and generated names go, such as `tunnels.example.com`."""
    own_hostnames: frozenset[str] = frozenset()
    """Names of the server itself, which no tunnel may have."""
    credential_lifetime_s: float = CREDENTIAL_LIFETIME_S
    most_names_per_token: int = MOST_NAMES_PER_TOKEN
    most_watchers: int = MOST_WATCHERS
    ports: Callable[[str], Sequence[int]] = lambda _: ()
    """Ports that agents may take for tunnels of their own, of `"tcp"` or `"udp"`."""


class Published(Protocol):
    """What is served now, as the publisher of a folder or of a cluster says."""

    @property
    def manifest_tunnels(self) -> Mapping[str, tuple[str, ...]]:
        """Tunnels that people wrote: id -> hostnames."""
        ...

    def rule(self, tunnel_id: str) -> TunnelRule | None:
        """What is served as this tunnel."""
        ...

    def problem_of(self, tunnel_id: str) -> str:
        """Why it is not served."""
        ...

    async def settled(self) -> None:
        """Returns when what changed before is published."""
        ...

    def manifest_tunnels_of(self, token: TokenRecord) -> Mapping[str, tuple[str, ...]]:
        """Of `manifest_tunnels` at least those that the token may serve."""
        ...

    async def changed(self, timeout_s: float, token: TokenRecord | None = None) -> None:
        """Returns when something else is published, or after the time. With a token, what its agents cannot notice may be left out."""
        ...


Registered = Callable[[EnrollRequest, TokenRecord, tuple[str, ...], Placed], None]
"""Hears of every agent that registered or renewed."""


class Control:
    """Answers agents out of a store, and what it publishes."""

    def __init__(
        self,
        settings: ControlSettings,
        store: Store,
        publisher: Published,
        placement: Placement,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self._store = store
        self._publisher = publisher
        self._placement = placement
        self.visitors = VisitorAddress()
        """How visitors reach the exit nodes; whoever opens the fronts sets it."""
        self._attempts = FailedAttempts()
        self.on_registered: Registered = lambda *_: None
        self.exit_ca_pem: Callable[[], str] = lambda: ""
        """The CAs of exit nodes, when agents must know more than the one that their token pins."""
        self.registered_total = 0
        self._watchers = 0

    async def enroll(self, token_text: str, request: EnrollRequest, address: str) -> EnrollResponse | Refused:
        """Registers an agent, or renews it: the same question gets an answer that fits the present state."""
        now = self.clock()
        token = await self._authenticate(token_text, address, now)
        if isinstance(token, Refused):
            return token
        decision = decide_registration(request, token, self._ground(request, token), now)
        if isinstance(decision, Refused):
            return decision
        if decision.claim is not None:
            try:
                standing = await self._store.claim(decision.claim, self.settings.most_names_per_token)
            except LimitExceeded as error:
                return Refused("TooManyNames", error.message, error.remedy)
            if standing.token_id != token.id:
                return name_taken(standing.hostname)  # somebody was faster
            await self._publisher.settled()
        self._store.note_used(token.id, now)
        return self._respond(request, token, decision.services, now)

    def fail(self, address: str, refused: Refused) -> Refused:
        """Counts a failed attempt; whoever makes too many hears only that."""
        now = self.clock()
        wait_s = self._attempts.wait_s(address, now)
        if wait_s > 0:
            return Refused(
                "TooManyAttempts", "too many failed attempts from this address", f"try again in {wait_s:.0f} s"
            )
        self._attempts.note(address, now)
        return refused

    async def _authenticate(self, text: str, address: str, now: float) -> TokenRecord | Refused:
        try:
            token = ClusterToken.parse(text)
        except TokenUnreadable as error:
            return self.fail(address, Refused("TokenMistyped", error.message, error.remedy))
        record = self._store.state.tokens.get(token.token_id)
        if record is None and self._attempts.wait_s(address, now) == 0:
            # Made a moment ago, perhaps, by somebody who pasted it at once.
            await self._store.refresh()
            record = self._store.state.tokens.get(token.token_id)
        if record is None or not record.has_secret(token.secret):
            return self.fail(
                address,
                Refused(
                    "TokenUnknown",
                    f"this server does not know the cluster token {token.token_id}",
                    "it was deleted, or made by another server; ask for a new one",
                ),
            )
        return record

    async def watch(self, token_text: str, request: EnrollRequest, address: str) -> bool | Refused:
        """Holds the question until a renewal would say something new (True), or for `WATCH_S` (False)."""
        if self._watchers >= self.settings.most_watchers:
            return Refused("TooManyWatchers", "too many agents watch this server", "try again in a minute")
        self._watchers += 1
        try:
            return await self._watch(token_text, request, address)
        finally:
            self._watchers -= 1

    async def _watch(self, token_text: str, request: EnrollRequest, address: str) -> bool | Refused:
        ends = self.clock() + WATCH_S
        token = await self._authenticate(token_text, address, self.clock())
        while not isinstance(token, Refused):
            now = self.clock()
            decision = decide_registration(request, token, self._ground(request, token), now)
            if isinstance(decision, Refused) or self._revision(request, decision.services, now) != request.revision:
                return True
            if now >= ends:
                return False
            # An agent that claims a name of its own may collide with anybody's.
            await self._publisher.changed(min(WATCH_S, ends - now), token if request.adhoc is None else None)
            await asyncio.sleep(WATCH_PAUSE_S)  # what changes together is looked at together
            found = self._store.state.tokens.get(token.id)
            if found is None:
                return True
            token = found
        return token

    def _revision(self, request: EnrollRequest, services: tuple[str, ...], now: float) -> str:
        """Names what an agent is told, but for its credential."""
        placed = self._placement.place(request, services, now)
        told = (
            [self._publisher.rule(service) for service in services],
            sorted((one.host, one.tls_port, one.quic_port, one.node) for one in placed.endpoints),
            placed.placed,
            placed.measurable if request.can_probe else (),
            self.exit_ca_pem(),
        )
        return hashlib.blake2b(msgspec.msgpack.encode(told), digest_size=9).hexdigest()

    def _ground(self, request: EnrollRequest, token: TokenRecord) -> Ground:
        publisher = self._publisher
        tunnels = publisher.manifest_tunnels if request.adhoc is not None else publisher.manifest_tunnels_of(token)
        if not request.carries and request.adhoc is None:
            # An agent of an older version stops at an origin that it does not understand.
            tunnels = {name: found for name, found in tunnels.items() if not self._is_stream(name)}
        return Ground(
            domain=self.settings.domain,
            own_hostnames=self.settings.own_hostnames,
            manifest_tunnels=tunnels,
            claims=self._store.state.claims,
            ports=self.settings.ports,
        )

    def _is_stream(self, tunnel_id: str) -> bool:
        rule = self._publisher.rule(tunnel_id)
        return rule is not None and rule.stream is not None

    def _respond(
        self, request: EnrollRequest, token: TokenRecord, services: tuple[str, ...], now: float
    ) -> EnrollResponse | Refused:
        rules = {service: self._publisher.rule(service) for service in services}
        tunnels = tuple(rule for rule in rules.values() if rule is not None)
        if len(tunnels) < len(rules):
            missing = next(service for service, rule in rules.items() if rule is None)
            return Refused(
                "TunnelNotAccepted",
                self._publisher.problem_of(missing) or f"tunnel {missing} is not served by this server",
                "ask the administrator; the server's log says more",
            )
        placed = self._placement.place(request, services, now)
        key = decide_signing_key(self._store.state.signing_keys, now)
        if not placed.endpoints or key is None:
            return Refused("NoExitNode", "no exit node has room for this agent now", "try again in a minute")
        # A credential never outlives its token by more than the leeway for clocks.
        ends = min(now + self.settings.credential_lifetime_s, token.expires or float("inf"))
        lifetime_s = max(1.0, ends - now)
        try:
            credential = key.sign(
                agent_id=request.agent_id, token_id=token.id, services=services, now=now, lifetime_s=lifetime_s
            )
        except ConfigError as error:
            return Refused("TooManyTunnels", error.message, error.remedy)  # few enough, but with very long names
        self.registered_total += 1
        self.on_registered(request, token, services, placed)
        return EnrollResponse(
            credential=credential,
            endpoints=placed.endpoints,
            tunnels=tunnels,
            renew_after_s=lifetime_s / 2,
            expires_in_s=lifetime_s,
            server_time=self.clock(),
            exit_ca_pem=self.exit_ca_pem(),
            visitors=self.visitors,
            offers=placed.offers,
            placed=placed.placed,
            watch_s=WATCH_S,
            revision=self._revision(
                msgspec.structs.replace(request, placed=placed.placed or request.placed), services, now
            ),
        )

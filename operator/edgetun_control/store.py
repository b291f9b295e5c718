"""The seam between control and where its state lives: a folder on one machine, the Kubernetes API on a cluster.

Reading is from memory (`state`, replaced as a whole when something changed); writing is asynchronous and says what stands
afterwards, so that two writers who race both learn who won. Nothing is written per request or per heartbeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from edgetun_core.api.load import Loaded
from edgetun_core.credentials import SigningKey, TokenRecord
from edgetun_core.enrollment import AdHocTunnel

ENDED_TOKEN_KEPT_S = 30 * 86400.0
"""How long the id of a revoked, expired or deleted token stays in snapshots: far longer than any credential or outage."""


class Claim(Struct, frozen=True, omit_defaults=True):
    """A hostname that a token claimed with an ad-hoc tunnel, and what is served there.

    It outlives the tunnel, the agent and the token: a name that visitors or a login provider know must not fall to a stranger.
    """

    hostname: str
    token_id: str
    agent_id: str
    tunnel: AdHocTunnel
    created: float


@dataclass(frozen=True, slots=True)
class StoreProblem:
    """Something in the store that could not be used, in words for the person who put it there."""

    source: str
    message: str


@dataclass(frozen=True, slots=True)
class StoreState:
    """Everything the store held when it was last read."""

    tokens: Mapping[str, TokenRecord] = field(default_factory=dict)
    ended_tokens: Mapping[str, float] = field(default_factory=dict)
    """Tokens that were here once and are deleted: id -> when that was noticed."""
    manifests: Loaded = field(default_factory=Loaded)
    """The resources that people wrote, with where they stand and what is wrong with them."""
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """By hostname."""
    signing_keys: tuple[SigningKey, ...] = ()
    """From old to new."""
    problems: tuple[StoreProblem, ...] = ()


class Store(Protocol):
    """What control asks of a store. Everything runs on one event loop."""

    @property
    def state(self) -> StoreState:
        """The state as last read; never touches a disk or a network."""
        ...

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Calls `changed` after `state` was replaced; returns what ends that."""
        ...

    async def claim(self, claim: Claim, most_per_token: int) -> Claim:
        """Claims a hostname for a token, or changes what its own claim serves; returns the claim that stands now.

        The caller compares `token_id`: another one holds the name. Raises `LimitExceeded` when the token holds too many names,
        `ConfigError` when the store cannot be written.
        """
        ...

    async def refresh(self) -> None:
        """Reads again what may have changed; returns when `state` is as new as this call. For the rare case, not per request."""
        ...

    def note_used(self, token_id: str, now: float) -> None:
        """Remembers when a token was last used; written out now and then, not per call."""
        ...


def is_token_ended(record: TokenRecord, now: float) -> bool:
    """Whether a token counts no longer, but its id must still be told to exit nodes."""
    ended_at = ended_since(record)
    return 0 < ended_at <= now < ended_at + ENDED_TOKEN_KEPT_S


def ended_since(record: TokenRecord) -> float:
    """When the token ends or ended, whichever way comes first; 0 when it never does."""
    times = [when for when in (record.revoked, record.expires) if when]
    return min(times, default=0.0)


def decide_ended_tokens(state: StoreState, now: float) -> tuple[str, ...]:
    """The ids for `Snapshot.revoked_tokens`, sorted so that equal states make equal snapshots."""
    ended = {record.id for record in state.tokens.values() if is_token_ended(record, now)}
    ended.update(id_ for id_, since in state.ended_tokens.items() if now < since + ENDED_TOKEN_KEPT_S)
    return tuple(sorted(ended))


KEY_PREPARATION_S = 300.0
"""A new key is published this long before anything is signed with it, so that every exit node knows it by then."""


def decide_signing_key(keys: tuple[SigningKey, ...], now: float) -> SigningKey | None:
    """The newest key that has been published for long enough; while there is none, the oldest."""
    published = [key for key in keys if key.created + KEY_PREPARATION_S <= now]
    if published:
        return max(published, key=lambda key: key.created)
    return min(keys, key=lambda key: key.created, default=None)

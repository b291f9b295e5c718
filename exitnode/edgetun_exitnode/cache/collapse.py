"""The collapser as a Coordinator: who fetches, who waits, who goes alone. Pure: events and the time in, effects out.

A *flight* is one origin exchange made for all visitors who ask for the same thing. It has a *leader*, whose request is the one
that is sent, and followers. It waits for its head first (`WAITING`); the head decides whether it is shared (`STREAMING`) or is
the leader's alone. The shell (`stage.py`, `flight.py`) moves the bytes; it tells the coordinator what happened and does what
it answers, in order.

Bounds: a flight holds one dictionary entry per visitor who waits or reads; the keys that are not to be collapsed are kept in a
memo of `2 * MEMORY` entries, the oldest are forgotten first, and a forgotten one costs one collapsed try. The memo holds hashes:
keys are as long as visitors make them, and two that collide cost some collapsing and nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, TypeAlias

from msgspec import Struct

from edgetun_core.memo import Memo

MEMORY: Final = 4096
"""Half of how many keys are remembered as not to be collapsed."""
NEVER: Final = float("-inf")

Visitor: TypeAlias = Hashable
FlightKey: TypeAlias = Hashable
FlightId: TypeAlias = int


# -- events -----------------------------------------------------------------------------------------------------------


class Asked(Struct, frozen=True):
    """A visitor wants what `key` stands for, and the store has nothing for them.

    `newer_than`: a flight that was started by then is too old (the key was invalidated since). `may_lead` False: the request
    cannot be fetched for others (a Range). `may_join_late` False: a flight whose head has arrived is too old for them.
    """

    key: FlightKey
    visitor: Visitor
    newer_than: float = NEVER
    may_lead: bool = True
    may_join_late: bool = True


class Refresh(Struct, frozen=True):
    """A visitor was served stale while the origin is asked again (RFC 5861 §3)."""

    key: FlightKey
    newer_than: float = NEVER


class Left(Struct, frozen=True):
    """A visitor went away."""

    flight: FlightId
    visitor: Visitor


class Satisfied(Struct, frozen=True):
    """A visitor has all they asked for before the body is complete: a HEAD, a 304, a range."""

    flight: FlightId
    visitor: Visitor


class HeadStorable(Struct, frozen=True):
    """The head allows sharing. `key` is the flight's from now on (it may know more of Vary); `differing` are the visitors
    whose secondary key is another; newcomers may join while `now < joinable_until`.

    `is_shared` False: it is stored but stale from the first, so it answers the leader only. The others ask on their own, which
    validates what is stored, and the key is not collapsed for `remember_s`.
    """

    flight: FlightId
    key: FlightKey
    joinable_until: float
    differing: tuple[Visitor, ...] = ()
    is_shared: bool = True
    remember_s: float = 0.0


class HeadNotStorable(Struct, frozen=True):
    """The response is for the leader alone; the key is not collapsed for `remember_s`."""

    flight: FlightId
    remember_s: float


class FailedBeforeHead(Struct, frozen=True):
    """The origin gave no response, or an error that a stale response may stand in for (`stale_allowed`)."""

    flight: FlightId
    stale_allowed: bool = False


class BrokeAfterHead(Struct, frozen=True):
    """The body will not be completed."""

    flight: FlightId


class Outgrew(Struct, frozen=True):
    """The body is larger than may be stored: nobody may join any more."""

    flight: FlightId
    remember_s: float


class Ended(Struct, frozen=True):
    """The body is complete."""

    flight: FlightId


class TimePassed(Struct, frozen=True):
    """The moment of `next_timer` has come."""

    flight: FlightId


class FillTimeOver(Struct, frozen=True):
    """A body that nobody read has had its time to come in."""

    flight: FlightId


class FoundStorable(Struct, frozen=True):
    """An uncollapsed response of this key could have been shared."""

    key: FlightKey


Event = (
    Asked | Refresh | Left | Satisfied | HeadStorable | HeadNotStorable | FailedBeforeHead | BrokeAfterHead | Outgrew | Ended
    | TimePassed | FillTimeOver | FoundStorable
)  # fmt: skip


# -- effects ----------------------------------------------------------------------------------------------------------


class Fetch(Struct, frozen=True):
    """Send the leader's request; a leader of None is a refresh in the background."""

    flight: FlightId
    key: FlightKey
    leader: Visitor | None


class Wait(Struct, frozen=True):
    """The visitor waits for the flight's head."""

    flight: FlightId
    visitor: Visitor


class Stream(Struct, frozen=True):
    """Give these visitors the head and the body from its first byte on."""

    flight: FlightId
    visitors: tuple[Visitor, ...]


class GoAlone(Struct, frozen=True):
    """Let each of these make a request of their own now. Their responses are not stored.

    `remembered`: because the key is known as not to be collapsed, so a storable response is news (`FoundStorable`).
    `validates`: what is stored may be validated by each of them.
    """

    visitors: tuple[Visitor, ...]
    remembered: bool = False
    validates: bool = False


class AskAgain(Struct, frozen=True):
    """The response varies on something in which these visitors differ: let them ask with their full key."""

    visitors: tuple[Visitor, ...]


class ServeStale(Struct, frozen=True):
    """Answer these from the stale entry."""

    visitors: tuple[Visitor, ...]


class Fail(Struct, frozen=True):
    """These get the error."""

    visitors: tuple[Visitor, ...]


class Cancel(Struct, frozen=True):
    """Nobody waits: reset the fetch."""

    flight: FlightId


class FillAlone(Struct, frozen=True):
    """Nobody reads, but the body is still wanted for the store: let it come in, within bounds."""

    flight: FlightId


Effect = Fetch | Wait | Stream | GoAlone | AskAgain | ServeStale | Fail | Cancel | FillAlone


class _Flight:
    __slots__ = (
        "followers_only",
        "id",
        "is_background",
        "is_for_store",
        "is_promoted",
        "is_streaming",
        "joinable_until",
        "key",
        "leader",
        "since",
        "visitors",
    )

    def __init__(self, flight_id: FlightId, key: FlightKey, leader: Visitor | None, now: float) -> None:
        self.id = flight_id
        self.key = key
        self.leader = leader
        self.since = now
        self.visitors: dict[Visitor, float] = {} if leader is None else {leader: now}
        """Everyone who waits or reads, leader included, with the moment they came, in that order."""
        self.followers_only: set[Visitor] = set()
        """Those whose own request cannot be fetched for others."""
        self.is_background = leader is None
        self.is_streaming = False
        self.is_promoted = False
        self.is_for_store = False
        """Nobody may join, and yet the body is wanted."""
        self.joinable_until = NEVER


class Coordinator:
    """Fans one origin exchange out to every visitor who asked for the same thing (docs/caching.md).

    The leader's own leaving never cancels the fetch while a follower waits. A failing origin is asked twice, not once per
    visitor.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._flights: dict[FlightId, _Flight] = {}
        self._by_key: dict[FlightKey, _Flight] = {}
        self._not_collapsible: Memo[int, float] = Memo(MEMORY)
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, flight_id: FlightId) -> bool:
        return flight_id in self._flights

    def can_join(self, event: Asked, now: float) -> bool:
        """True when `handle(event)` would find a flight to join."""
        flight = self._by_key.get(event.key)
        if flight is None or flight.since <= event.newer_than:
            return False
        return not flight.is_streaming or (event.may_join_late and now < flight.joinable_until)

    def goes_alone(self, key: FlightKey, now: float) -> bool:
        """True when a request of this key is known to be passed through uncollapsed; `handle(Asked)` would say so too."""
        until = self._not_collapsible.get(hash(key))
        return until is not None and now < until and key not in self._by_key

    def visitors(self, flight_id: FlightId) -> tuple[Visitor, ...]:
        """Everyone who waits or reads."""
        flight = self._flights.get(flight_id)
        return tuple(flight.visitors) if flight is not None else ()

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Takes what happened and returns what to do. Events of flights that are over do nothing."""
        match event:
            case Asked():
                return self._asked(event, now)
            case Left(flight_id, visitor):
                return self._left(flight_id, visitor)
            case Satisfied(flight_id, visitor):
                return self._satisfied(flight_id, visitor)
            case HeadStorable():
                return self._head_storable(event, now)
            case HeadNotStorable(flight_id, remember_s):
                return self._head_not_storable(flight_id, remember_s, now)
            case Ended(flight_id):
                self._drop(self._flights.get(flight_id))
                return []
            case Refresh(key, newer_than):
                present = self._by_key.get(key)
                if present is not None and present.since > newer_than:
                    return []
                return [self._start(key, None, now)]
            case FailedBeforeHead(flight_id, stale_allowed):
                return self._failed(flight_id, stale_allowed, now)
            case BrokeAfterHead(flight_id):
                flight = self._flights.get(flight_id)
                self._drop(flight)
                return [Fail(tuple(flight.visitors))] if flight is not None and flight.visitors else []
            case Outgrew(flight_id, remember_s):
                return self._outgrew(flight_id, remember_s, now)
            case TimePassed(flight_id):
                return self._time_passed(flight_id, now)
            case FillTimeOver(flight_id):
                flight = self._flights.get(flight_id)
                if flight is None:
                    return []
                flight.is_background = False
                return self._cancel_if_unwanted(flight)
            case FoundStorable(key):
                self._not_collapsible.put(hash(key), NEVER)
                return []

    def next_timer(self, flight_id: FlightId) -> float | None:
        """When the first follower of a flight runs out of patience, or None. The leader never does."""
        flight = self._flights.get(flight_id)
        if flight is None or flight.is_streaming:
            return None
        for visitor, since in flight.visitors.items():
            if visitor != flight.leader:
                return since + self._patience_s
        return None

    def _asked(self, event: Asked, now: float) -> list[Effect]:
        key, visitor = event.key, event.visitor
        if self.can_join(event, now):
            flight = self._by_key[key]
            flight.visitors[visitor] = now
            if not event.may_lead:
                flight.followers_only.add(visitor)
            return [Stream(flight.id, (visitor,)) if flight.is_streaming else Wait(flight.id, visitor)]
        until = self._not_collapsible.get(hash(key))
        if until is not None and now < until:
            return [GoAlone((visitor,), remembered=True)]
        if not event.may_lead:
            return [GoAlone((visitor,))]
        return [self._start(key, visitor, now)]

    def _start(self, key: FlightKey, leader: Visitor | None, now: float) -> Fetch:
        flight = _Flight(self._next_id, key, leader, now)
        self._next_id += 1
        self._flights[flight.id] = flight
        self._by_key[key] = flight  # takes the place of one that is too old; that one goes on for who reads it
        return Fetch(flight.id, key, leader)

    def _left(self, flight_id: FlightId, visitor: Visitor) -> list[Effect]:
        flight = self._flights.get(flight_id)
        if flight is None or flight.visitors.pop(visitor, None) is None:
            return []
        if flight.leader == visitor:
            flight.leader = None
        return self._cancel_if_unwanted(flight)

    def _cancel_if_unwanted(self, flight: _Flight) -> list[Effect]:
        if flight.visitors or flight.is_background:
            return []
        self._drop(flight)
        return [Cancel(flight.id)]

    def _satisfied(self, flight_id: FlightId, visitor: Visitor) -> list[Effect]:
        flight = self._flights.get(flight_id)
        if flight is None or flight.visitors.pop(visitor, None) is None:
            return []
        if flight.leader == visitor:
            flight.leader = None
        if self._by_key.get(flight.key) is not flight and not flight.is_for_store:
            return self._cancel_if_unwanted(flight)  # another took its place, and will be stored
        return self._fill_if_unread(flight)

    def _fill_if_unread(self, flight: _Flight) -> list[Effect]:
        if flight.visitors:
            return []
        flight.is_background = True
        return [FillAlone(flight.id)]

    def _head_storable(self, event: HeadStorable, now: float) -> list[Effect]:
        flight = self._flights.get(event.flight)
        if flight is None:
            return []
        flight.is_streaming = True
        flight.joinable_until = event.joinable_until
        if event.key != flight.key:
            is_current = self._by_key.get(flight.key) is flight
            if is_current:
                del self._by_key[flight.key]
                # A flight that is under the full key already is as good, and has been waited for longer.
                self._by_key.setdefault(event.key, flight)
            flight.key = event.key
        if not event.is_shared:
            return self._store_for_later(flight, event.remember_s, now)
        differing = tuple(visitor for visitor in event.differing if flight.visitors.pop(visitor, None) is not None)
        effects: list[Effect] = []
        if flight.visitors:
            effects.append(Stream(flight.id, tuple(flight.visitors)))
        if differing:
            effects.append(AskAgain(differing))
        return effects + self._fill_if_unread(flight)

    def _store_for_later(self, flight: _Flight, remember_s: float, now: float) -> list[Effect]:
        """Gives the response to the leader alone, and keeps it coming in for the store."""
        if remember_s > 0:
            self._not_collapsible.put(hash(flight.key), now + remember_s)
        self._unkey(flight)
        flight.is_for_store = True
        leader = flight.leader
        followers = tuple(visitor for visitor in flight.visitors if visitor != leader)
        flight.visitors = {leader: now} if leader is not None else {}
        effects: list[Effect] = [Stream(flight.id, (leader,))] if leader is not None else []
        if followers:
            effects.append(GoAlone(followers, validates=True))
        return effects + self._fill_if_unread(flight)

    def _head_not_storable(self, flight_id: FlightId, remember_s: float, now: float) -> list[Effect]:
        flight = self._flights.get(flight_id)
        if flight is None:
            return []
        if remember_s > 0:
            self._not_collapsible.put(hash(flight.key), now + remember_s)
        self._unkey(flight)
        leader = flight.leader
        followers = tuple(visitor for visitor in flight.visitors if visitor != leader)
        effects: list[Effect] = []
        if leader is None:
            self._drop(flight)
            effects.append(Cancel(flight.id))
        else:
            flight.is_streaming = True
            flight.visitors = {leader: now}
            effects.append(Stream(flight.id, (leader,)))
        if followers:
            effects.append(GoAlone(followers))
        return effects

    def _failed(self, flight_id: FlightId, stale_allowed: bool, now: float) -> list[Effect]:
        flight = self._flights.get(flight_id)
        if flight is None:
            return []
        everyone = tuple(flight.visitors)
        if stale_allowed or flight.is_promoted:
            self._drop(flight)
            if not everyone:
                return []
            return [ServeStale(everyone)] if stale_allowed else [Fail(everyone)]
        leader = flight.leader
        successor = next((v for v in everyone if v != leader and v not in flight.followers_only), None)
        if successor is None:
            self._drop(flight)
            return [Fail(everyone)] if everyone else []
        effects: list[Effect] = []
        if leader is not None:
            del flight.visitors[leader]
            effects.append(Fail((leader,)))
        # One more try, for everyone who waits: the leader's request or session may have been what failed.
        flight.leader = successor
        flight.is_promoted = True
        flight.is_background = False
        flight.since = now
        return [*effects, Fetch(flight.id, flight.key, successor)]

    def _outgrew(self, flight_id: FlightId, remember_s: float, now: float) -> list[Effect]:
        flight = self._flights.get(flight_id)
        if flight is None:
            return []
        if remember_s > 0:
            self._not_collapsible.put(hash(flight.key), now + remember_s)
        self._unkey(flight)
        flight.is_background = False
        return self._cancel_if_unwanted(flight)

    def _time_passed(self, flight_id: FlightId, now: float) -> list[Effect]:
        flight = self._flights.get(flight_id)
        if flight is None or flight.is_streaming:
            return []
        impatient: list[Visitor] = []
        for visitor, since in flight.visitors.items():
            if visitor == flight.leader:
                continue
            if since + self._patience_s > now:
                break
            impatient.append(visitor)
        for visitor in impatient:
            del flight.visitors[visitor]
        if not impatient:
            return []
        return [*self._cancel_if_unwanted(flight), GoAlone(tuple(impatient))]

    def _unkey(self, flight: _Flight) -> None:
        if self._by_key.get(flight.key) is flight:
            del self._by_key[flight.key]

    def _drop(self, flight: _Flight | None) -> None:
        if flight is not None:
            self._unkey(flight)
            self._flights.pop(flight.id, None)
            if not self._flights:  # emptied dicts keep their size, and there are two per tunnel
                self._flights, self._by_key = {}, {}

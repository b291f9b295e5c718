"""Conversations with the race of transports, and properties of every possible one."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgetun_agent.race import (
    Begin,
    Dial,
    Failed,
    GaveUp,
    Opened,
    Race,
    RaceEffect,
    Stop,
    Tick,
    Transport,
    WaitUntil,
    Won,
    decide_better,
    decide_transports,
)
from edgetun_agent.udp_memory import UdpMemory
from edgetun_core.errors import UpstreamUnreachable

REFUSED = UpstreamUnreachable("refused")


def test_quic_that_opens_in_time_wins_alone() -> None:
    race = Race(("quic", "tls"))
    assert race.handle(Begin(), 0.0) == [Dial("quic"), WaitUntil(2.0)]
    assert race.handle(Opened("quic"), 1.9) == [Won("quic", beat_quic=False)]
    assert race.handle(Tick(), 2.0) == []


def test_tls_starts_after_the_head_start_and_the_first_to_open_wins() -> None:
    race = Race(("quic", "tls"))
    race.handle(Begin(), 0.0)
    assert race.handle(Tick(), 1.0) == []
    assert race.handle(Tick(), 2.0) == [Dial("tls")]
    assert race.handle(Opened("tls"), 2.1) == [Won("tls", beat_quic=True), Stop("quic")]
    assert race.handle(Opened("quic"), 2.1) == [Stop("quic")]


def test_quic_may_still_win_after_tls_has_started() -> None:
    race = Race(("quic", "tls"))
    race.handle(Begin(), 0.0)
    race.handle(Tick(), 2.0)
    assert race.handle(Opened("quic"), 2.1) == [Won("quic", beat_quic=False), Stop("tls")]


def test_tls_starts_at_once_when_quic_fails() -> None:
    race = Race(("quic", "tls"))
    race.handle(Begin(), 0.0)
    assert race.handle(Failed("quic", REFUSED), 0.1) == [Dial("tls")]
    assert race.handle(Opened("tls"), 0.2) == [Won("tls", beat_quic=True)]


def test_when_all_fail_their_errors_come_in_order() -> None:
    other = UpstreamUnreachable("silent")
    race = Race(("quic", "tls"))
    race.handle(Begin(), 0.0)
    race.handle(Tick(), 2.0)
    assert race.handle(Failed("tls", other), 3.0) == []
    assert race.handle(Failed("quic", REFUSED), 5.0) == [GaveUp((REFUSED, other))]


def test_tls_that_was_started_first_has_not_beaten_quic() -> None:
    race = Race(("tls", "quic"))
    race.handle(Begin(), 0.0)
    assert race.handle(Opened("tls"), 0.1) == [Won("tls", beat_quic=False)]


class AnyRace(RuleBasedStateMachine):
    """Whatever happens, in whatever order: one winner at most, every dial ends, the race always ends."""

    def __init__(self) -> None:
        super().__init__()
        self.race = Race(("quic", "tls"))
        self.now = 0.0
        self.dialled: set[Transport] = set()
        self.ended: set[Transport] = set()
        self.won: list[Won] = []
        self.gave_up = 0
        self.take(self.race.handle(Begin(), 0.0))

    def take(self, effects: list[RaceEffect]) -> None:
        for effect in effects:
            match effect:
                case Dial(transport):
                    assert transport not in self.dialled
                    assert not self.won
                    self.dialled.add(transport)
                case Stop(transport):
                    assert transport in self.dialled
                    self.ended.add(transport)
                case Won():
                    self.won.append(effect)
                    self.ended.add(effect.transport)
                case GaveUp():
                    self.gave_up += 1
                case WaitUntil(at):
                    assert at > self.now

    @property
    def pending(self) -> list[Transport]:
        return sorted(self.dialled - self.ended)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(min_value=0, max_value=1))
    def opens(self, which: int) -> None:
        transport = self.pending[which % len(self.pending)]
        self.take(self.race.handle(Opened(transport), self.now))
        self.ended.add(transport)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(min_value=0, max_value=1))
    def fails(self, which: int) -> None:
        transport = self.pending[which % len(self.pending)]
        self.ended.add(transport)
        self.take(self.race.handle(Failed(transport, REFUSED), self.now))

    @rule(seconds=st.floats(min_value=0, max_value=3))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.race.handle(Tick(), self.now))

    @invariant()
    def it_ends_once_and_never_hangs(self) -> None:
        assert len(self.won) + self.gave_up <= 1
        if not self.pending and not self.won:
            assert self.gave_up == 1
        if self.won:
            assert not self.pending


TestAnyRace = AnyRace.TestCase


def test_transports_are_those_wanted_and_offered_and_tls_first_while_udp_is_dead() -> None:
    fresh, dead = UdpMemory(), UdpMemory(dead_until=10.0)
    assert decide_transports("auto", True, True, fresh, 5.0) == ("quic", "tls")
    assert decide_transports("auto", True, True, dead, 5.0) == ("tls", "quic")
    assert decide_transports("auto", True, True, dead, 11.0) == ("quic", "tls")
    assert decide_transports("auto", False, True, fresh, 5.0) == ("tls",)
    assert decide_transports("quic", True, True, dead, 5.0) == ("quic",)
    assert decide_transports("tls", True, True, fresh, 5.0) == ("tls",)
    assert decide_transports("quic", False, True, fresh, 5.0) == ()
    assert decide_transports("auto", True, True, fresh, 5.0, has_websocket=True) == ("quic", "tls", "websocket")
    assert decide_transports("auto", True, True, dead, 5.0, has_websocket=True) == ("tls", "quic", "websocket")
    assert decide_transports("websocket", True, True, fresh, 5.0, has_websocket=True) == ("websocket",)
    assert decide_transports("tls", True, True, fresh, 5.0, has_websocket=True) == ("tls",)


def test_a_session_looks_only_for_what_is_better_than_its_own_transport() -> None:
    assert decide_better("quic", True, True) == ()
    assert decide_better("tls", True, True) == ("quic",)
    assert decide_better("tls", False, True) == ()
    assert decide_better("websocket", True, True) == ("quic", "tls")
    assert decide_better("websocket", False, True) == ("tls",)
    assert decide_better("websocket", False, False) == ()

"""The pool's bookkeeping, without a socket."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgetun_agent.origin import pool as pool_module
from edgetun_agent.origin.pool import SURELY_ALIVE_S, Pool


class Conn:
    def __init__(self) -> None:
        self.idle_since = 0.0
        self.idle_until = 0.0


def pool_of(max_connections: int = 2, max_waiting: int = 3) -> Pool[Conn, str]:
    return Pool(max_connections, max_waiting)


def opened(pool: Pool[Conn, str]) -> Conn:
    conn = Conn()
    pool.add(conn)
    return conn


def test_the_connection_used_last_is_used_next() -> None:
    pool = pool_of()
    first, second = opened(pool), opened(pool)
    pool.give_back(first, 1.0, 50)
    pool.give_back(second, 2.0, 50)
    assert pool.take(3.0, True) is second
    assert pool.take(3.0, True) is first
    assert pool.take(3.0, True) is None


def test_a_request_that_may_not_be_repeated_takes_only_what_is_surely_alive() -> None:
    pool = pool_of()
    conn = opened(pool)
    pool.give_back(conn, 1.0, 50)
    assert pool.take(1.1 + SURELY_ALIVE_S, False) is None
    assert pool.take(1.1 + SURELY_ALIVE_S, True) is conn


def test_waiters_are_served_in_order_before_a_connection_rests() -> None:
    pool = pool_of(1)
    conn = opened(pool)
    assert pool.enqueue("a", 10.0)
    assert pool.enqueue("b", 10.0)
    pool.forget("a")
    assert pool.give_back(conn, 1.0, 50) == "b"
    assert pool.give_back(conn, 1.0, 50) is None
    assert pool.idle == [conn]


def test_the_queue_is_bounded_and_does_not_count_those_about_to_be_served() -> None:
    pool = pool_of(2, 1)
    assert pool.enqueue("a", 1.0)
    assert pool.dials_wanted() == 1
    pool.opening += 1
    assert pool.enqueue("b", 1.0)
    assert pool.dials_wanted() == 1
    pool.opening += 1
    assert pool.enqueue("c", 1.0)
    assert pool.dials_wanted() == 0
    assert not pool.enqueue("d", 1.0)


def test_those_who_waited_too_long_are_taken_out() -> None:
    pool = pool_of()
    pool.enqueue("a", 1.0)
    pool.enqueue("b", 2.0)
    assert pool.expired(1.5) == ["a"]
    assert list(pool.waiting) == ["b"]


def test_a_stale_connection_makes_room_for_a_new_one_only_when_there_is_none() -> None:
    pool = pool_of(2)
    first = opened(pool)
    pool.give_back(first, 1.0, 50)
    assert pool.stalest() is None
    second = opened(pool)
    pool.give_back(second, 2.0, 50)
    assert pool.stalest() is first


def test_streams_do_not_count_until_there_are_too_many() -> None:
    pool = pool_of(1)
    before = pool_module.MAX_STREAMS
    try:
        pool_module.MAX_STREAMS = 1
        conn = opened(pool)
        assert pool.lend(conn)
        pool.enqueue("a", 1.0)
        assert pool.dials_wanted() == 1
        other = opened(pool)
        assert not pool.lend(other)
        assert pool.dials_wanted() == 0
        assert pool.in_flight == 3
        pool.remove(conn)
        pool.remove(conn)
        assert pool.in_flight == 2
    finally:
        pool_module.MAX_STREAMS = before


class AnyPool(RuleBasedStateMachine):
    """Whatever happens: the bounds hold, nobody is lost, nothing idles while somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool: Pool[Conn, int] = Pool(3, 4)
        self.now = 0.0
        self.number = 0
        self.serving: dict[Conn, int] = {}
        self.asked: set[int] = set()
        self.done: set[int] = set()

    def dial(self) -> None:
        self.pool.opening += self.pool.dials_wanted()

    @rule(may_repeat=st.booleans())
    def request(self, may_repeat: bool) -> None:
        self.number += 1
        conn = self.pool.take(self.now, may_repeat)
        if conn is not None:
            self.asked.add(self.number)
            self.serving[conn] = self.number
            return
        stale = self.pool.stalest()
        if stale is not None:
            self.pool.remove(stale)
        if self.pool.enqueue(self.number, self.now + 5):
            self.asked.add(self.number)
            self.dial()

    @precondition(lambda self: self.pool.opening)
    @rule()
    def dialled(self) -> None:
        self.pool.opening -= 1
        conn = Conn()
        self.pool.add(conn)
        self.give_back(conn)

    @precondition(lambda self: self.pool.opening)
    @rule()
    def dial_failed(self) -> None:
        self.pool.opening -= 1
        waiter = self.pool.next_waiter()
        if waiter is not None:
            self.done.add(waiter)
        self.dial()

    def give_back(self, conn: Conn) -> None:
        waiter = self.pool.give_back(conn, self.now, 10)
        if waiter is not None:
            self.serving[conn] = waiter

    @precondition(lambda self: self.serving)
    @rule(keep=st.booleans(), which=st.integers(min_value=0, max_value=2))
    def answered(self, keep: bool, which: int) -> None:
        conn = list(self.serving)[which % len(self.serving)]
        self.done.add(self.serving.pop(conn))
        if keep:
            self.give_back(conn)
        else:
            self.pool.remove(conn)
            self.dial()

    @rule(seconds=st.floats(min_value=0, max_value=4))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.done.update(self.pool.expired(self.now))

    @invariant()
    def the_bounds_hold(self) -> None:
        pool = self.pool
        assert len(pool.open) + pool.opening <= 3
        assert len(pool.waiting) <= 4 + pool.opening + 3
        assert len(set(pool.idle)) == len(pool.idle)
        assert set(pool.idle) <= pool.open

    @invariant()
    def nobody_is_lost(self) -> None:
        waiting = set(self.pool.waiting)
        assert self.asked == waiting | set(self.serving.values()) | self.done
        if waiting:
            assert self.pool.opening or self.serving, "somebody waits and nothing will ever serve them"


TestAnyPool = AnyPool.TestCase

"""A random origin and random visitors: everyone gets the right bytes, whole, or an error; nothing is left behind.

Each response the origin makes says in its body which exchange made it and for which target and variant, so that a mix-up of any
kind shows. What a visitor may get is worked out from the exchanges, not from the cache.
"""

from __future__ import annotations

import re

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edgetun_core.errors import NoSession, UpstreamBroken
from edgetun_core.snapshot import CacheRule, CollapseRule
from edgetun_exitnode.cache.store import Store
from support.cache import Bench, Guest, OriginExchange

KINDS = ["shared", "short", "private", "cookie", "vary", "error", "large", "star", "missing"]


class Asked(Guest):
    def __init__(self, target: bytes, variant: bytes, kind: str, at: float) -> None:
        super().__init__()
        self.target, self.variant, self.kind, self.at = target, variant, kind, at
        self.auto_pause = False

    def on_data(self, data: bytes, end: bool) -> None:
        super().on_data(data, end)
        if self.auto_pause and self.sink is not None and not end:
            self.pause()


class CacheStageModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.guests: list[Asked] = []
        self.plans: dict[int, tuple[bytes, str, float, bool]] = {}
        """By the number of an exchange: its whole body, what kind it was, when its head came, whether its length was stated."""
        self.sent: dict[int, int] = {}
        self.writes: dict[bytes, float] = {}
        self.confirmed: dict[int, float] = {}
        """By the number of an exchange: when a 304 last said that its response still holds."""

    @initialize(
        override=st.booleans(), collapse=st.booleans(), swr=st.sampled_from([0.0, 2.0]), sie=st.sampled_from([0.0, 2.0])
    )
    def begin(self, override, collapse, swr, sie):
        self.bench = Bench(
            CacheRule(
                mode="override" if override else "respect",
                ttl_s=1.0,
                max_object_bytes=3000,
                stale_while_revalidate_s=swr,
                stale_if_error_s=sie,
            ),
            CollapseRule(enabled=collapse, patience_s=4.0),
            store=Store(60_000),
        )
        self.longest_stale_s = max(swr, sie)

    # -- visitors -----------------------------------------------------------------------------------------------------

    @rule(
        path=st.sampled_from([b"/a", b"/b"]),
        variant=st.sampled_from([b"", b"x", b"y"]),
        kind=st.sampled_from(["get"] * 4 + ["head", "reload", "condition", "range", "cookie"]),
        count=st.integers(1, 4),
        auto_pause=st.booleans(),
    )
    def ask(self, path, variant, kind, count, auto_pause):
        fields = [(b"x-v", variant)] if variant else []
        match kind:
            case "reload":
                fields.append((b"cache-control", b"no-cache"))
            case "condition":
                fields.append((b"if-none-match", b'"0"'))
            case "range":
                fields.append((b"range", b"bytes=5-14"))
            case "cookie":
                fields.append((b"cookie", b"me"))
        for _ in range(count):
            guest = Asked(path, variant, kind, self.bench.time.now)
            guest.auto_pause = auto_pause
            self.guests.append(guest)
            self.bench.ask(path, *fields, method=b"HEAD" if kind == "head" else b"GET", guest=guest)

    @rule(path=st.sampled_from([b"/a", b"/b"]))
    def write(self, path):
        self.bench.time.advance(0.01)
        self.bench.ask(path, method=b"POST")
        self.bench.origin.exchanges[-1].answer(b"done")
        self.writes[path] = self.bench.time.now
        self.bench.time.advance(0.01)

    @precondition(lambda self: any(self.open_guests()))
    @rule(data=st.data())
    def leave(self, data):
        data.draw(st.sampled_from(list(self.open_guests()))).leave()

    @precondition(lambda self: any(self.open_guests()))
    @rule(data=st.data())
    def pause(self, data):
        data.draw(st.sampled_from(list(self.open_guests()))).pause()

    @precondition(lambda self: any(guest.is_paused for guest in self.open_guests()))
    @rule(data=st.data())
    def resume(self, data):
        data.draw(st.sampled_from([guest for guest in self.open_guests() if guest.is_paused])).resume()

    def open_guests(self):
        return (guest for guest in self.guests if not guest.is_complete and guest.error is None and not guest.has_left)

    # -- the origin -----------------------------------------------------------------------------------------------------

    def waiting(self) -> list[tuple[int, OriginExchange]]:
        return [
            (number, exchange)
            for number, exchange in enumerate(self.bench.origin.exchanges)
            if exchange.is_live and number not in self.plans
        ]

    def answering(self) -> list[tuple[int, OriginExchange]]:
        return [
            (number, exchange)
            for number, exchange in enumerate(self.bench.origin.exchanges)
            if exchange.is_live and number in self.plans
        ]

    @precondition(lambda self: self.waiting())
    @rule(data=st.data(), kind=st.sampled_from(KINDS), with_length=st.booleans())
    def head(self, data, kind, with_length):
        number, exchange = data.draw(st.sampled_from(self.waiting()))
        self.answer_head(number, exchange, kind, with_length)

    def answer_head(self, number: int, exchange: OriginExchange, kind: str, with_length: bool) -> None:
        variant = exchange.head.get(b"x-v") or b""
        text = b"[%d %s %s]" % (number, exchange.head.target, variant)
        body = text * (400 if kind == "large" else 4)
        self.plans[number] = (body, kind, self.bench.time.now, with_length)
        fields = [(b"x-exchange", b"%d" % number), (b"etag", b'"%d"' % number)]
        status = 200
        match kind:
            case "private":
                fields.append((b"cache-control", b"private"))
            case "cookie":
                fields.append((b"set-cookie", b"a=b"))
            case "star":
                fields.append((b"vary", b"*"))
            case "vary":
                fields += [(b"vary", b"x-v"), (b"cache-control", b"max-age=1")]
            case "error":
                status = 503
            case "missing":
                status = 404
            case "short":
                pass
            case _:
                fields.append((b"cache-control", b"max-age=1"))
        if with_length or kind == "short":
            fields.append((b"content-length", b"%d" % (len(body) + (kind == "short"))))
        exchange.answer_head(status, tuple(fields), end=exchange.head.method == b"HEAD")

    def confirmable(self) -> list[tuple[int, OriginExchange, int]]:
        """Exchanges that ask about a response which still holds for them, as far as Vary goes."""
        found = []
        for number, exchange in self.waiting():
            for tag in (exchange.head.get(b"if-none-match") or b"").split(b", "):
                about = int(tag.strip(b'"') or -1)
                if about not in self.plans:
                    continue
                same = exchange.head.get(b"x-v") == self.bench.origin[about].head.get(b"x-v")
                if same or self.plans[about][1] != "vary":
                    found.append((number, exchange, about))
        return found

    @precondition(lambda self: self.confirmable())
    @rule(data=st.data(), named=st.booleans(), lifetime=st.sampled_from([b"max-age=1", b"no-cache", b"no-store", None]))
    def confirm(self, data, named, lifetime):
        number, exchange, about = data.draw(st.sampled_from(self.confirmable()))
        alone = (exchange.head.get(b"if-none-match") or b"") == b'"%d"' % about
        fields = [(b"etag", b'"%d"' % about)] if named or not alone else []
        if lifetime is not None:
            fields.append((b"cache-control", lifetime))
        self.plans[number] = (b"", "confirmation", self.bench.time.now, False)
        self.confirmed[about] = self.bench.time.now
        exchange.answer_head(304, tuple(fields), end=True)

    @precondition(lambda self: self.answering())
    @rule(data=st.data(), size=st.integers(1, 900))
    def chunk(self, data, size):
        number, exchange = data.draw(st.sampled_from(self.answering()))
        self.send_some(number, exchange, size)

    def send_some(self, number: int, exchange: OriginExchange, size: int) -> None:
        body = self.plans[number][0]
        at = self.sent.get(number, 0)
        self.sent[number] = at + size
        exchange.send(body[at : at + size], end=at + size >= len(body))

    @precondition(lambda self: self.bench.origin.live)
    @rule(data=st.data())
    def fail(self, data):
        exchange = data.draw(st.sampled_from(self.bench.origin.live))
        exchange.fail(NoSession("none") if self.plans.get(self.number(exchange)) is None else UpstreamBroken("cut"))

    def number(self, exchange: OriginExchange) -> int:
        return self.bench.origin.exchanges.index(exchange)

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 5.0]))
    def wait(self, seconds):
        self.bench.time.advance(seconds)

    # -- what must hold ---------------------------------------------------------------------------------------------------

    @invariant()
    def everyone_gets_the_right_bytes(self):
        for guest in self.guests:
            if guest.head is not None:
                self.check(guest)

    def check(self, guest: Asked) -> None:
        head = guest.head
        assert head is not None
        made_by = head.get(b"x-exchange")
        if head.status in (304, 416, 504) and made_by is None:
            assert guest.kind == "condition"
            return
        assert made_by is not None
        number = int(made_by)
        exchange = self.bench.origin[number]
        body, kind, answered_at, _ = self.plans[number]
        # The right resource and, where it varies, the right variant.
        assert exchange.head.target == guest.target
        if kind == "vary":
            assert (exchange.head.get(b"x-v") or b"") == guest.variant
        # Alone where it must be: nobody else may have got it.
        if kind in ("private", "cookie", "star", "error") or guest.kind == "cookie":
            takers = [g for g in self.guests if g.head is not None and g.head.get(b"x-exchange") == made_by]
            assert takers == [guest]
        # Never from before a write that came before the question.
        written = self.writes.get(guest.target)
        if written is not None and guest.at > written:
            assert answered_at >= written or self.asked_at(number) >= written
        # Never older than is allowed, counted from its head; joining while it runs is the override's.
        answered_at = max(answered_at, self.confirmed.get(number, answered_at))
        if guest.at > answered_at:
            limit = 1.0 + self.longest_stale_s + (60.0 if self.bench.rule.mode == "override" else 0.0)
            assert guest.at - answered_at < limit
        if guest.kind == "head":
            assert guest.body == b""
            return
        expected = body
        if head.status == 206:
            match = re.fullmatch(rb"bytes (\d+)-(\d+)/(\d+)", head.get(b"content-range") or b"")
            assert match
            assert int(match[3]) == len(body) + (kind == "short")  # as the origin stated, wrongly
            expected = body[int(match[1]) : int(match[2]) + 1]
        if kind == "short":
            assert not guest.is_complete or self.is_alone(guest)
        assert expected.startswith(guest.body)
        if guest.is_complete:
            assert guest.body == expected

    def asked_at(self, number: int) -> float:
        return self.plans[number][2]

    def is_alone(self, guest: Asked) -> bool:
        """Went alone: checking a length is then the business of who speaks HTTP with the origin."""
        return b"collapsed" not in guest.cache_status and b"hit" not in guest.cache_status

    @invariant()
    def nobody_waits_without_a_request_at_the_origin(self):
        if not hasattr(self, "bench"):
            return
        waiting = [guest for guest in self.open_guests() if guest.head is None]
        live = {exchange.head.target for exchange in self.bench.origin.live}
        assert all(guest.target in live for guest in waiting)
        assert self.bench.store.stored_bytes + self.bench.store.reserved_bytes <= self.bench.store.max_bytes

    def teardown(self):
        if not hasattr(self, "bench"):
            return
        for guest in list(self.open_guests()):
            if guest.is_paused:
                guest.auto_pause = False
                guest.resume()
        for _ in range(200):
            if not self.bench.origin.live:
                break
            for number, exchange in self.waiting():
                self.answer_head(number, exchange, "shared", False)
            for number, exchange in self.answering():
                self.send_some(number, exchange, 10_000)
            for guest in list(self.open_guests()):
                guest.auto_pause = False
                if guest.is_paused:
                    guest.resume()
        self.everyone_gets_the_right_bytes()
        assert not list(self.open_guests()), "everyone is answered in the end"
        self.bench.time.advance(100)
        self.bench.check_nothing_left()


TestCacheStageModel = CacheStageModel.TestCase
TestCacheStageModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

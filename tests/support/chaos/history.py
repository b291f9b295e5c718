"""What visitors and origins saw while a schedule ran, and what must hold of it. Pure; the checker has tests of its own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from support.chaos.pages import Page

SMALL, LARGE, POST, CACHED, LEAVING = "small", "large", "post", "cached", "leaving"
KINDS: Final = (SMALL, LARGE, POST, CACHED, LEAVING)

EXCUSED: Final = frozenset({502, 503, 504})
"""What a visitor may be told while something is down."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of a visitor. Times are seconds since the epoch; `status` is None when no head came."""

    number: int
    kind: str
    tunnel: str
    target: str
    node: str
    began: float
    ended: float
    deadline_s: float
    status: int | None
    page: Page | None = None
    """What a body that ended as HTTP says it should says of itself."""
    flaw: str = ""
    """Why such a body is no page."""
    error: str = ""
    """Why there is no whole answer."""
    sent: str = ""
    """Digest of the request's body."""

    @property
    def is_answered(self) -> bool:
        return self.status is not None and not self.error


@dataclass(slots=True)
class Served:
    """One request as an origin saw it. `number` is the visit's, 0 where many share the answer."""

    tunnel: str
    method: str
    target: str
    number: int
    began: float
    ended: float | None = None
    was_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """`ttl_s` is the lifetime of cached pages, `stale_s` how much longer each tunnel allows, `slack_s` for clocks that tell seconds."""

    ttl_s: float
    stale_s: dict[str, float]
    slack_s: float = 1.1
    late_s: float = 2.0
    """What a busy machine may add to a deadline."""


@dataclass(slots=True)
class History:
    visits: list[Visit] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)


def check(history: History, rules: Rules) -> list[str]:
    """Everything that must not be, each in a line that names the visit."""
    return [problem for invariant in INVARIANTS for problem in invariant(history, rules)]


def _right_bytes(history: History, rules: Rules) -> Iterator[str]:
    """Every answered visitor got the right bytes of the right tunnel."""
    for visit in history.visits:
        if not visit.is_answered or visit.status != 200:
            continue
        if visit.page is None:
            if visit.kind != LEAVING:
                yield f"wrong bytes: {visit.flaw or 'nothing was read'}: {visit}"
        elif visit.page.tunnel != visit.tunnel:
            yield f"wrong tunnel: the page is of {visit.page.tunnel}: {visit}"
        elif visit.page.target != visit.target:
            yield f"wrong page: it is {visit.page.target}: {visit}"
        elif visit.page.took != visit.sent:
            yield f"wrong echo: the origin got {visit.page.took or 'nothing'}: {visit}"


def _known_statuses(history: History, rules: Rules) -> Iterator[str]:
    for visit in history.visits:
        if visit.is_answered and visit.status != 200 and visit.status not in EXCUSED:
            yield f"status {visit.status}, which no fault excuses: {visit}"


def _in_time(history: History, rules: Rules) -> Iterator[str]:
    """None waited past its deadline."""
    for visit in history.visits:
        if visit.ended - visit.began > visit.deadline_s + rules.late_s:
            yield f"waited {visit.ended - visit.began:.1f} s: {visit}"


def _all_ended(history: History, rules: Rules) -> Iterator[str]:
    """Every started request at the origin ended or was cancelled."""
    for served in history.served:
        if served.ended is None:
            yield f"still open at the origin: {served}"


def _ran_once(history: History, rules: Rules) -> Iterator[str]:
    """No request that is not idempotent ran twice; one that was answered did run; one that was sent once is not made up."""
    runs = Counter((served.tunnel, served.number) for served in history.served if served.method == "POST")
    sent = {(visit.tunnel, visit.number): visit for visit in history.visits if visit.kind == POST}
    for (tunnel, number), count in runs.items():
        visit = sent.get((tunnel, number))
        if visit is None:
            yield f"a POST that nobody sent there: visit {number} at {tunnel}"
        elif count > 1:
            yield f"ran {count} times: {visit}"
    for key, visit in sent.items():
        if visit.is_answered and visit.status == 200 and not runs[key]:
            yield f"answered and never run: {visit}"


def _only_where_asked(history: History, rules: Rules) -> Iterator[str]:
    """An origin got no request of another tunnel."""
    asked: dict[int, str] = {visit.number: visit.tunnel for visit in history.visits}
    for served in history.served:
        if served.number and asked.get(served.number, served.tunnel) != served.tunnel:
            yield f"a request for {asked[served.number]} at the origin of {served.tunnel}: {served}"


def _young_enough(history: History, rules: Rules) -> Iterator[str]:
    """No answer is older than its lifetime and what the tunnel allows beyond. An answer was chosen when its request was there, or later."""
    for visit in history.visits:
        if visit.kind != CACHED or visit.page is None or visit.status != 200:
            continue
        age_s = visit.began - visit.page.made_at
        if age_s > rules.ttl_s + rules.stale_s.get(visit.tunnel, 0.0) + rules.slack_s:
            yield f"{age_s:.2f} s old: {visit}"


def _not_from_the_future(history: History, rules: Rules) -> Iterator[str]:
    """A page that is one visitor's own was made for that very request."""
    for visit in history.visits:
        if visit.page is None or visit.kind == CACHED or visit.status != 200:
            continue
        if not visit.began - 0.01 <= visit.page.made_at <= visit.ended + 0.01:
            yield f"made {visit.page.made_at - visit.began:.2f} s after it was asked for: {visit}"


INVARIANTS: Final[Sequence[Callable[[History, Rules], Iterable[str]]]] = (
    _right_bytes,
    _known_statuses,
    _in_time,
    _all_ended,
    _ran_once,
    _only_where_asked,
    _young_enough,
    _not_from_the_future,
)


def summary(history: History) -> str:
    """Counts, for people: a run in which nobody was answered proves nothing."""
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    for visit in history.visits:
        by_kind[visit.kind]["broken off" if visit.error else str(visit.status)] += 1
    told = [f"{kind}: " + ", ".join(f"{n} x {what}" for what, n in sorted(by_kind[kind].items())) for kind in by_kind]
    cancelled = sum(served.was_cancelled for served in history.served)
    return "; ".join((*sorted(told), f"origins: {len(history.served)} requests, {cancelled} cancelled"))

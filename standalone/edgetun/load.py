"""`edgetun load URL`: ten thousand visitors from one process, to see what your own server does under them.

`run_load` is the whole test; the command line around it stands in `load_command.py`. One ticker starts visitors when they
are due; everything else happens in callbacks of the visitors (`load_client.py`). Latency counts from when a request was due,
not from when this process got round to sending it, so a server that stalls cannot hide behind the requests that it kept
from being sent ("coordinated omission").
"""

from __future__ import annotations

import asyncio
import errno
import resource
import time
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final

from edgetun.load_client import Venue, Visitor, error_kind
from edgetun.load_plan import ClosedLoop, Crowd, LoadPlan, OpenLoop, Target, due, due_at, resolve, total
from edgetun.load_response import BadResponse, ResponseInfo
from edgetun.load_result import LoadResult
from edgetun_core.errors import ConfigError

_TICK_S: Final = 0.001
_STARTS_PER_TICK: Final = 100  # so that answers are read between, when arrivals fall behind
_SPARE_FILES: Final = 64
_ENOUGH_FAILURES: Final = 1_000  # a closed loop against a dead server ends instead of spinning

Progress = Callable[[LoadResult], None]


async def run_load(plan: LoadPlan, on_progress: Progress | None = None, *, progress_every_s: float = 0.1) -> LoadResult:
    """Runs the test and returns what was counted; `on_progress` sees the same object while it grows.

    Raises `ConfigError` when it cannot start: nothing answers, not your host, too few open files. Failures of single
    requests are counted, not raised. Cancelling it closes every connection.
    """
    target = await resolve(plan)
    allow_open_files(plan.connections, may_leave=isinstance(plan.arrivals, Crowd))
    run = _Run(plan, target, on_progress, progress_every_s)
    return await run.finished()


def allow_open_files(connections: int, *, may_leave: bool = False) -> None:
    """Raises the soft limit of open files; `ConfigError` when the hard limit is below what `connections` need."""
    needed = connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        leave = ", or let visitors leave when they are answered: --no-hold" if may_leave else ""
        raise ConfigError(
            f"{connections:,} connections need {needed:,} open files and the limit of this machine is {hard:,}",
            remedy=f"raise it (ulimit -n {needed}, or LimitNOFILE= of the service), or take {max(1, hard - _SPARE_FILES)}{leave}",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else hard, hard))


class _Run:
    """One run: the ticker, who is there, and what was counted."""

    def __init__(self, plan: LoadPlan, target: Target, on_progress: Progress | None, progress_every_s: float) -> None:
        self._plan = plan
        self._arrivals = plan.arrivals
        self._loop = loop = asyncio.get_running_loop()
        self._venue = Venue(loop, target, plan.request(), self, head_request=plan.method == "HEAD")
        self._on_progress = on_progress
        self._progress_every_s = progress_every_s
        self._visitors: set[Visitor] = set()
        self._idle: list[Visitor] = []
        self._restarts: deque[Visitor] = deque()
        self._backlog: deque[float] = deque()
        self._arrived = 0
        self._done: asyncio.Future[None] = loop.create_future()
        self._ticker: asyncio.Handle | None = None
        self.result = LoadResult(url=plan.url)
        arrivals = plan.arrivals
        if isinstance(arrivals, Crowd):
            self.result.planned = arrivals.visitors * arrivals.requests
        elif isinstance(arrivals, OpenLoop):
            self.result.planned = total(arrivals)

    async def finished(self) -> LoadResult:
        cpu = time.process_time()
        self._began = perf_counter()
        self._next_progress = self._next_sweep = self._began
        self._tick()
        try:
            await self._done
        finally:
            if self._ticker is not None:
                self._ticker.cancel()
            self._look(perf_counter() - self._began)
            for visitor in self._visitors:
                visitor.close()
            self.result.open = 0
        self.result.cpu_s = time.process_time() - cpu
        if self._on_progress is not None:
            self._on_progress(self.result)
        return self.result

    # -- the ticker ----------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """A defect in here must end the run, not leave it waiting for a ticker that died."""
        try:
            self._work()
        except BaseException as error:
            if not self._done.done():
                self._done.set_exception(error)
            raise

    def _work(self) -> None:
        now = perf_counter()
        elapsed = now - self._began
        match self._arrivals:
            case ClosedLoop() as arrivals:
                is_dead = self.result.failed >= _ENOUGH_FAILURES > self.result.answered
                is_over = is_dead or elapsed >= arrivals.duration_s
                is_behind = not is_over and self._start_loop(arrivals, now)
            case arrivals:
                is_behind = self._start_due(arrivals, now, elapsed)
                is_over = self._arrived >= total(arrivals) and not self._backlog
        if now >= self._next_sweep:
            self._next_sweep = now + min(0.25, self._plan.timeout_s / 10)
            self._sweep(now)
        if now >= self._next_progress:
            self._next_progress = now + self._progress_every_s
            self._look(elapsed)
            if self._on_progress is not None:
                self._on_progress(self.result)
        if is_over and not self.result.asking and not (isinstance(self._arrivals, Crowd) and self._restarts):
            if not self._done.done():
                self._done.set_result(None)
            return
        self._ticker = self._loop.call_soon(self._tick) if is_behind else self._loop.call_later(_TICK_S, self._tick)

    def _look(self, elapsed: float) -> None:
        result, venue = self.result, self._venue
        result.elapsed_s = elapsed
        result.connections, result.open, result.peak_open = venue.connections, venue.open, venue.peak_open
        result.connecting = venue.connecting

    def _start_due(self, arrivals: Crowd | OpenLoop, now: float, elapsed: float) -> bool:
        last = due(arrivals, elapsed)
        until = min(last, self._arrived + _STARTS_PER_TICK)
        while self._arrived < until:
            scheduled = self._began + due_at(arrivals, self._arrived)
            self._arrived += 1
            if isinstance(arrivals, Crowd):
                visitor = Visitor(self._venue)
                visitor.left = arrivals.requests
                self._visitors.add(visitor)
                self._ask(visitor, scheduled, perf_counter())
            else:
                self._backlog.append(scheduled)
        if isinstance(arrivals, Crowd):
            while self._restarts:
                self._ask(self._restarts.popleft(), now, now)
        else:
            self._serve_backlog(arrivals.concurrency)
        if not self.result.arriving_s and self._arrived == total(arrivals):
            self.result.arriving_s = perf_counter() - self._began
        return until < last

    def _start_loop(self, arrivals: ClosedLoop, now: float) -> bool:
        while self._restarts:
            self._ask(self._restarts.popleft(), now, now)
        until = min(arrivals.concurrency, self._arrived + _STARTS_PER_TICK)
        while self._arrived < until:
            self._arrived += 1
            visitor = Visitor(self._venue)
            self._visitors.add(visitor)
            self._ask(visitor, now, now)
        return self._arrived < arrivals.concurrency

    def _serve_backlog(self, concurrency: int) -> None:
        """Gives requests that are due to visitors who are free, oldest first; the others wait, and their latency grows."""
        while self._backlog:
            if self._idle:
                visitor = self._idle.pop()
                if not visitor.can_ask:
                    continue
            elif len(self._visitors) < concurrency:
                visitor = Visitor(self._venue)
                self._visitors.add(visitor)
            else:
                return
            self._ask(visitor, self._backlog.popleft(), perf_counter())

    def _sweep(self, now: float) -> None:
        """The coarse deadline of every request: one pass four times a second instead of a timer each."""
        oldest = now - self._plan.timeout_s
        late = [visitor for visitor in self._visitors if visitor.is_asking and visitor.started < oldest]
        for visitor in late:
            visitor.fail(TimeoutError(errno.ETIMEDOUT, f"no complete answer within {self._plan.timeout_s:g} s"))

    def _ask(self, visitor: Visitor, scheduled: float, now: float) -> None:
        result = self.result
        result.started += 1
        result.asking += 1
        if result.asking > result.peak_asking:
            result.peak_asking = result.asking
        visitor.ask(scheduled, now)

    # -- what visitors tell (VisitorListener) --------------------------------------------------------------------

    def on_answer(self, visitor: Visitor, info: ResponseInfo) -> None:
        """Hot path: once per response."""
        now = perf_counter()
        result, reader = self.result, visitor.reader
        result.answered += 1
        result.asking -= 1
        result.statuses[info.status] += 1
        result.cache[info.cache] += 1
        result.body_bytes += reader.body_bytes
        if info.status < 300:
            result.count_body(reader.digest)
        result.latency.record(int((now - visitor.scheduled) * 1e6))
        is_open = visitor.is_open
        match self._arrivals:
            case ClosedLoop() as arrivals:
                if now - self._began < arrivals.duration_s:
                    self._ask(visitor, now, now)
            case Crowd() as arrivals:
                visitor.left -= 1
                if visitor.left:
                    self._ask(visitor, now, now)
                elif not is_open or not arrivals.hold:
                    self._forget(visitor)
            case OpenLoop() as arrivals:
                if not is_open:
                    self._visitors.discard(visitor)
                else:
                    self._idle.append(visitor)
                if self._backlog:
                    self._serve_backlog(arrivals.concurrency)

    def on_failure(self, visitor: Visitor, error: Exception) -> None:
        result = self.result
        result.asking -= 1
        self._count_error(error)
        match self._arrivals:
            case ClosedLoop():
                self._restarts.append(visitor)
            case Crowd():
                visitor.left -= 1
                if visitor.left:
                    self._restarts.append(visitor)
                else:
                    self._visitors.discard(visitor)
            case OpenLoop():
                self._visitors.discard(visitor)

    def on_left(self, visitor: Visitor, error: Exception | None) -> None:
        if isinstance(error, BadResponse):
            self._count_error(error)
        if not isinstance(self._arrivals, ClosedLoop):
            self._visitors.discard(visitor)

    def _forget(self, visitor: Visitor) -> None:
        visitor.close()
        self._visitors.discard(visitor)

    def _count_error(self, error: Exception) -> None:
        kind = error_kind(error)
        self.result.errors[kind] += 1
        if kind not in self.result.examples:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.result.examples[kind] = text or kind

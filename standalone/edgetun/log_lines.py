"""Log lines of a running edge, for when nobody looks at a terminal: what reached the origin, and sums of what did not."""

from __future__ import annotations

import asyncio
import logging
import time

from edgetun_agent.observe import RecentRequests
from edgetun_exitnode.node import ExitNode

log = logging.getLogger("edgetun.requests")

EVERY_S = 1.0
SUM_EVERY_S = 10.0
MOST_LINES = 20
"""Requests told one by one per second; the rest is summed."""


async def run_log_lines(node: ExitNode, recent: RecentRequests | None) -> None:
    """Logs until it is cancelled."""
    seen = recent.seen if recent is not None else 0
    summed, summed_at = node.context.counters.requests_total, time.monotonic()
    reached = seen
    while True:
        await asyncio.sleep(EVERY_S)
        if recent is not None:
            seen = _tell_new(recent, seen)
        total = node.context.counters.requests_total
        if total != summed and time.monotonic() - summed_at >= SUM_EVERY_S:
            now_reached = recent.seen if recent is not None else 0
            log.info("%d requests answered, %d of them asked the origin", total - summed, now_reached - reached)
            summed, summed_at, reached = total, time.monotonic(), now_reached


def _tell_new(recent: RecentRequests, seen: int) -> int:
    new = recent.seen - seen
    if new:
        lines = list(recent.lines)[-min(new, MOST_LINES, len(recent.lines)) :]
        if new > len(lines):
            log.info("%d more requests to the origin", new - len(lines))
        for line in lines:
            outcome = str(line.status) if line.error is None else f"failed: {line.error}"
            log.info("%s %s %s %.1f ms", line.method, line.path, outcome, line.duration_s * 1000)
    return recent.seen

"""What a running agent says on its log: requests as they end, a few lines per second at most, the rest as a number."""

from __future__ import annotations

import asyncio
import logging

from edgetun_agent.observe import RecentRequests, RequestLine

log = logging.getLogger("edgetun.requests")

EVERY_S = 0.5
MOST_LINES = 20


async def tell_requests(recent: RecentRequests) -> None:
    """Logs until it is cancelled."""
    seen = recent.seen
    while True:
        await asyncio.sleep(EVERY_S)
        lines, left_out = new_lines(recent, seen, MOST_LINES)
        seen = recent.seen
        if left_out:
            log.info("%d more requests", left_out)
        for line in lines:
            log.info(
                "%s",
                describe(line),
                extra={"service": line.service, "status": line.status, "duration_ms": round(line.duration_s * 1000, 1)},
            )


def new_lines(recent: RecentRequests, seen: int, most: int) -> tuple[list[RequestLine], int]:
    """The newest lines after the first `seen`, at most `most`, and how many were left out."""
    new = recent.seen - seen
    shown = min(new, most, len(recent.lines))
    return (list(recent.lines)[-shown:] if shown else []), new - shown


def describe(line: RequestLine) -> str:
    """`GET /path 200 12 ms 5.1 kB`, or why there was no answer."""
    took = f"{line.duration_s * 1000:.0f} ms"
    if line.error is not None:
        return f"{line.method} {line.path} failed after {took}: {line.error}"
    return f"{line.method} {line.path} {line.status} {took} {_size(line.bytes_received)}"


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"

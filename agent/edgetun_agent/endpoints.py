"""Which exit node the next session goes to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from edgetun_core.enrollment import Endpoint

FAILURES_TO_LOOK_ELSEWHERE: Final = 2
"""A second session to a node that works is worth more than a third try of one that does not."""


def decide_endpoint(
    endpoints: Sequence[Endpoint],
    used: Sequence[Endpoint],
    failures: Mapping[Endpoint, int],
    leaving: Collection[Endpoint],
) -> Endpoint:
    """The best of `endpoints` (given best first, at least one): one that is not `leaving`, works, and has the fewest sessions.

    `used` holds the endpoints of the other sessions, `failures` counts attempts that failed in a row, `leaving` are those
    that said they drain.
    """
    return min(
        endpoints,
        key=lambda endpoint: (
            endpoint in leaving,
            failures.get(endpoint, 0) >= FAILURES_TO_LOOK_ELSEWHERE,
            used.count(endpoint),
            failures.get(endpoint, 0),
            endpoints.index(endpoint),
        ),
    )


def decide_crowded(
    endpoints: Sequence[Endpoint], used: Sequence[Endpoint], failures: Mapping[Endpoint, int]
) -> Endpoint | None:
    """The endpoint that has more than one session while another that works has none; a session of it is better off there."""
    if all(endpoint in used or failures.get(endpoint, 0) for endpoint in endpoints):
        return None
    return next((endpoint for endpoint in endpoints if used.count(endpoint) > 1), None)

"""Which exit node the next session goes to. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

from edgetun_core.enrollment import Endpoint

FAILURES_TO_LOOK_ELSEWHERE: Final = 2
"""A second session to a node that works is worth more than a third try of one that does not."""
LOOK_AGAIN_S: Final = 60.0
LOOK_AGAIN_MOST_S: Final = 900.0
"""How long after its last failure an endpoint is worth leaving another for: doubled with every failure, up to the most."""


class _Failed(NamedTuple):
    times: int
    until: float


class Failures:
    """Attempts that failed in a row, of the endpoints that are offered.

    A failure is forgotten when the endpoint is withdrawn and offered anew, since somebody knows more of it then; otherwise it is
    set aside after a while, so that one bad minute does not keep every session away for good.
    """

    def __init__(self) -> None:
        self._failed: dict[Endpoint, _Failed] = {}

    def failed(self, endpoint: Endpoint, now: float) -> None:
        """An attempt came to nothing."""
        times = self._failed[endpoint].times + 1 if endpoint in self._failed else 1
        self._failed[endpoint] = _Failed(times, now + min(LOOK_AGAIN_MOST_S, LOOK_AGAIN_S * 2.0 ** min(times - 1, 16)))

    def opened(self, endpoint: Endpoint) -> None:
        """A session is up."""
        self._failed.pop(endpoint, None)

    def offered(self, before: Collection[Endpoint], now_offered: Collection[Endpoint]) -> None:
        """The endpoints are others: what was not there before, or is not any more, has a clean record."""
        self._failed = {one: what for one, what in self._failed.items() if one in before and one in now_offered}

    def counts(self, now: float) -> dict[Endpoint, int]:
        """Those that count now."""
        return {one: what.times for one, what in self._failed.items() if what.until > now}

    def next_change(self, now: float) -> float | None:
        """When the next of them is set aside."""
        return min((what.until for what in self._failed.values() if what.until > now), default=None)


def decide_endpoint(
    endpoints: Sequence[Endpoint],
    used: Sequence[Endpoint],
    failures: Mapping[Endpoint, int],
    leaving: Collection[Endpoint],
    *,
    wants_spare: bool = False,
) -> Endpoint:
    """The best of `endpoints` (given best first, at least one): one that is not `leaving`, works, and has the fewest sessions.

    `used` holds the endpoints of the other sessions, `failures` counts attempts that failed in a row, `leaving` are those
    that said they drain. One in the spare region is for the session that `wants_spare`, and for the others when nothing else works.
    """
    return min(
        endpoints,
        key=lambda endpoint: (
            endpoint in leaving,
            failures.get(endpoint, 0) >= FAILURES_TO_LOOK_ELSEWHERE,
            endpoint.spare != wants_spare,
            used.count(endpoint),
            failures.get(endpoint, 0),
            endpoints.index(endpoint),
        ),
    )


def decide_crowded(
    endpoints: Sequence[Endpoint],
    used: Sequence[Endpoint],
    failures: Mapping[Endpoint, int],
    leaving: Collection[Endpoint],
) -> Endpoint | None:
    """The endpoint that has more than one session while another that works has none; a session of it is better off there."""
    if all(endpoint in used or endpoint in leaving or failures.get(endpoint, 0) for endpoint in endpoints):
        return None
    return next((endpoint for endpoint in endpoints if used.count(endpoint) > 1), None)

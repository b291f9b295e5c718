"""From a token to a place: registers, measures the regions that are offered, and asks again with what was measured.

Where there is nothing to choose from (one region, a server on its own, a control of an older version), one question is enough.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from edgetun_agent.enroll import Enrollment, enroll, renew
from edgetun_agent.probe import probe_offers
from edgetun_core.credentials import ClusterToken
from edgetun_core.enrollment import EnrollRequest, Probe
from edgetun_core.errors import EdgetunError
from edgetun_core.pki import Trust

log = logging.getLogger("edgetun.agent")

CUT_OFF_S: Final = (10.0, 20.0)
"""How long an agent without any session waits before it asks control anew where to go; a range, so that many do not ask at once."""

Prober = Callable[[Enrollment, Trust], Awaitable[tuple[Probe, ...]]]


class Placing:
    """Enrolls one agent. What was offered last is measured before every renewal, so a better place is found in time."""

    def __init__(
        self, token: ClusterToken, request: EnrollRequest, *, quic_engine: str = "qh3", transport: str = "auto"
    ) -> None:
        self._token = token
        self._request = msgspec.structs.replace(request, can_probe=True)
        self._quic_engine = quic_engine
        self._transport = transport
        self._last: Enrollment | None = None

    async def enroll(self) -> Enrollment:
        """Raises what `enroll.enroll` does."""
        first = self._last = await enroll(self._token, self._request)
        if not first.offers:
            return first
        try:
            return await self.renew()
        except EdgetunError as error:
            log.info("the measured place could not be asked for: %s", error)
            return first

    async def renew(self) -> Enrollment:
        """Raises what `enroll.renew` does."""
        request, last = self._request, self._last
        if last is not None:
            probes: tuple[Probe, ...] = ()
            if last.offers:
                probes = await probe_offers(
                    last.offers, last.trust, quic_engine=self._quic_engine, transport=self._transport
                )
            request = msgspec.structs.replace(request, probes=probes, placed=last.placed)
        renewed = await renew(self._token, request)
        if last is not None and renewed.placed != last.placed:
            log.info("placed on %s", renewed.placed)
        self._last = renewed
        return renewed


async def renew_while_cut_off(is_connected: Callable[[], bool], renew_soon: Callable[[], None]) -> None:
    """An agent whose exit nodes are all gone asks control where to go now. Runs until it is cancelled."""
    rng = random.Random()  # noqa: S311 - jitter, not a secret
    cut_off = False
    while True:
        await asyncio.sleep(rng.uniform(*CUT_OFF_S))
        if not is_connected() and cut_off:
            renew_soon()
        cut_off = not is_connected()

"""From a token to a place: registers, measures the regions that are offered, and asks again with what was measured.

Where there is nothing to choose from (one region, a server on its own, a control of an older version), one question is enough.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Final

import msgspec

from edgetun_agent.enroll import Enrollment, enroll, renew, watch
from edgetun_agent.probe import probe_offers
from edgetun_agent.proxy import Proxy
from edgetun_core.credentials import ClusterToken
from edgetun_core.enrollment import EnrollRequest, Probe
from edgetun_core.errors import EdgetunError
from edgetun_core.transport.way import Way

log = logging.getLogger("edgetun.agent")

CUT_OFF_S: Final = (10.0, 20.0)
"""How long an agent without any session waits before it asks control anew where to go; a range, so that many do not ask at once.
Its upper end doubles with every time that it asked in vain, `CUT_OFF_DOUBLINGS` times at most."""
CUT_OFF_DOUBLINGS: Final = 2

WATCH_AGAIN_S: Final = (5.0, 20.0)
"""How long after a failure control is watched again; twice and then four times as long when that fails too, since a control that has as many
watchers as it may (TooManyWatchers) would have a handshake from each of the others all the time."""
RENEWED_WITHIN_S: Final = (1.0, 2.0)
"""What a renewal that was asked for gets before control is watched again."""


class Placing:
    """Enrolls one agent. What was offered last is measured before every renewal, so a better place is found in time."""

    def __init__(
        self,
        token: ClusterToken,
        request: EnrollRequest,
        *,
        quic_engine: str = "qh3",
        transport: str = "auto",
        proxy: Proxy | None = None,
        websocket: Way | None = None,
    ) -> None:
        self._token = token
        self._request = msgspec.structs.replace(request, can_probe=True)
        self._quic_engine = quic_engine
        self._transport = transport
        self._proxy = proxy
        self._websocket = websocket
        self._last: Enrollment | None = None
        self._asked = self._request

    async def watch(self, renew_soon: Callable[[], None]) -> None:
        """Hears from control when a renewal would say something new, and asks for one. Runs until it is cancelled.

        This is how tunnels that come later, and moves, reach the agent at once; without it they come with the next renewal.
        """
        rng = random.Random()  # noqa: S311 - jitter, not a secret
        in_vain = failures = 0
        while True:
            last = self._last
            wait_s = rng.uniform(*WATCH_AGAIN_S) * 2 ** min(failures, 2)
            if last is not None and last.watch_s > 0:
                request = msgspec.structs.replace(self._asked, placed=last.placed, revision=last.revision)
                try:
                    is_news = await watch(self._token, request, last, last.control_trust, self._proxy, self._websocket)
                except EdgetunError as error:
                    failures += 1
                    log.debug("control cannot be watched now: %s", error)
                else:
                    wait_s, failures = 0.0, 0
                    if is_news and self._last is last:
                        renew_soon()
                        wait_s = rng.uniform(*RENEWED_WITHIN_S) * 2 ** min(in_vain, 5)
            await asyncio.sleep(wait_s)
            # News that no renewal could fetch (the tunnels are gone, say) is not asked for again and again.
            in_vain = in_vain + 1 if last is not None and self._last is last and wait_s > 0 else 0

    async def enroll(self) -> Enrollment:
        """Raises what `enroll.enroll` does."""
        self._asked = self._request
        first = self._last = await enroll(self._token, self._request, proxy=self._proxy, websocket=self._websocket)
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
                    last.offers,
                    last.trust,
                    quic_engine=self._quic_engine,
                    transport=self._transport,
                    way=self._proxy,
                )
            request = msgspec.structs.replace(request, probes=probes, placed=last.placed)
        renewed = await renew(self._token, request, proxy=self._proxy, websocket=self._websocket)
        self._asked = request
        if last is not None and renewed.placed != last.placed:
            log.info("placed on %s", renewed.placed)
        self._last = renewed
        return renewed


async def renew_while_cut_off(is_connected: Callable[[], bool], renew_soon: Callable[[], None]) -> None:
    """An agent whose exit nodes are all gone asks control where to go now. Runs until it is cancelled."""
    rng = random.Random()  # noqa: S311 - jitter, not a secret
    cut_off = False
    asked = 0
    while True:
        least_s, most_s = CUT_OFF_S
        await asyncio.sleep(rng.uniform(least_s, most_s * 2 ** min(asked, CUT_OFF_DOUBLINGS)))
        if is_connected():
            cut_off, asked = False, 0
        elif cut_off:
            asked += 1
            renew_soon()
        else:
            cut_off = True

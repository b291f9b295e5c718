"""Measures how far the offered regions are: the time of a TCP connect and of a QUIC handshake to where their exit nodes take sessions.

Three tries each with small timeouts, the best of them counts; regions side by side, so that the whole takes a few seconds at most,
however many do not answer. Nothing secret is sent: a probe ends before any hello.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from edgetun_core.enrollment import Endpoint, Offer, Probe
from edgetun_core.errors import EdgetunError
from edgetun_core.pki import Trust
from edgetun_core.transport.engines import dial
from edgetun_core.transport.link import Link
from edgetun_core.transport.way import Way

TRIES: Final = 3
TRY_TIMEOUT_S: Final = 1.0
AT_ONCE: Final = 8
WHOLE_TIMEOUT_S: Final = 8.0

Measure = Callable[[Endpoint], Awaitable[float]]
"""Seconds of one try; 0 when there was no answer."""


async def probe_offers(
    offers: Sequence[Offer],
    trust: Trust,
    *,
    quic_engine: str = "qh3",
    transport: str = "auto",
    tcp: Measure | None = None,
    quic: Measure | None = None,
    way: Way | None = None,
) -> tuple[Probe, ...]:
    """One probe per offer, zeros where nobody answered. `transport` other than `auto` measures only that one. Never raises.

    Where `way` leads, only TCP is measured (unless QUIC alone is wanted), with the way's own time in it.
    """
    turn = asyncio.Semaphore(AT_ONCE)
    measure_tcp = tcp or (lambda endpoint: connect_time_s(endpoint, way))
    measure_quic = quic or (lambda endpoint: handshake_time_s(endpoint, trust, quic_engine))

    async def measure(offer: Offer) -> Probe:
        async with turn:
            tcp_s, quic_s = await asyncio.gather(
                _best(offer.endpoints, measure_tcp, "tls", transport, way),
                _best(offer.endpoints, measure_quic, "quic", transport, way),
            )
        return Probe(offer.pool, offer.region, tcp_s, quic_s)

    tasks = [asyncio.create_task(measure(offer), name=f"probe {offer.region}") for offer in offers]
    if not tasks:
        return ()
    await asyncio.wait(tasks, timeout=WHOLE_TIMEOUT_S)
    probes = []
    for offer, task in zip(offers, tasks, strict=True):
        if not task.done():
            task.cancel()
        is_good = task.done() and not task.cancelled() and task.exception() is None
        probes.append(task.result() if is_good else Probe(offer.pool, offer.region))
    await asyncio.wait(tasks)
    return tuple(probes)


async def _best(endpoints: Sequence[Endpoint], measure: Measure, kind: str, wanted: str, way: Way | None) -> float:
    """The least of `TRIES` tries at the first endpoint that offers the transport and answers; 0 when none does."""
    if wanted not in ("auto", kind):
        return 0.0
    for endpoint in endpoints:
        if (endpoint.tls_port if kind == "tls" else endpoint.quic_port) <= 0:
            continue
        if kind == "quic" and wanted == "auto" and goes_by(way, endpoint):
            continue
        answered = []
        for _ in range(TRIES):
            took_s = await measure(endpoint)
            if took_s <= 0:
                break  # the next endpoint may do better than another second of waiting here
            answered.append(took_s)
        if answered:
            return min(answered)
    return 0.0


def goes_by(way: Way | None, endpoint: Endpoint) -> bool:
    """Whether an endpoint is reached by the way: then there is no QUIC to it unless somebody insists."""
    return way is not None and way.leads_to(endpoint.host, endpoint.tls_port)


async def connect_time_s(endpoint: Endpoint, way: Way | None = None) -> float:
    """One round trip: SYN and its answer; through a proxy also the proxy's own."""
    began = monotonic()
    if way is not None and goes_by(way, endpoint):
        try:
            (await way.connect(endpoint.host, endpoint.tls_port, TRY_TIMEOUT_S)).close()
        except EdgetunError:
            return 0.0
        return max(monotonic() - began, 1e-6)
    try:
        async with asyncio.timeout(TRY_TIMEOUT_S):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.tls_port)
    except (OSError, TimeoutError):
        return 0.0
    took_s = monotonic() - began
    writer.transport.abort()
    return max(took_s, 1e-6)


async def handshake_time_s(endpoint: Endpoint, trust: Trust, engine: str, timeout_s: float = TRY_TIMEOUT_S) -> float:
    """What QUIC measured as its round trip, else the time of the handshake."""
    began = monotonic()
    user = _Nobody()
    try:
        link = await dial(
            engine,
            endpoint.host,
            endpoint.quic_port,
            trust=trust,
            user=user,
            timeout_s=timeout_s,
            server_name=endpoint.server_name or None,
        )
    except EdgetunError:
        return 0.0
    took_s = link.rtt_s or monotonic() - began
    link.close(0, "measured")
    with suppress(TimeoutError):
        async with asyncio.timeout(TRY_TIMEOUT_S):
            await user.closed.wait()
    return max(took_s, 1e-6)


class _Nobody:
    """A link's user that says nothing."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def on_open(self, link: Link) -> None: ...
    def on_data(self, lane: int, data: bytes) -> None: ...
    def on_lane_paused(self, lane: int) -> None: ...
    def on_lane_resumed(self, lane: int) -> None: ...
    def on_closed(self, error: EdgetunError | None) -> None:
        self.closed.set()

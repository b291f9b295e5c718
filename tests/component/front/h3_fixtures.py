"""An HTTP/3 front on a free UDP port of the loopback, with deadlines short enough for tests."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from edgetun_core.http.exchange import Handler
from edgetun_core.pki import DevelopmentCA
from edgetun_core.transport.udp import bind_udp
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontContext, FrontLimits
from edgetun_exitnode.front.h3_front import H3Front
from support.handlers import ScriptedHandler

StartH3 = Callable[..., Awaitable[H3Front]]

QUICK = FrontLimits(sweep_s=0.05, linger_s=0.3)


@pytest.fixture(scope="session")
def h3_ca(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA(tmp_path_factory.mktemp("h3-ca"))


@pytest.fixture
async def start_h3(h3_ca: DevelopmentCA) -> AsyncIterator[StartH3]:
    fronts: list[H3Front] = []

    async def start(
        handler: Handler | None = None,
        *,
        store: CertificateStore | None = None,
        retry_from: int = 1000,
        clock: Callable[[], float] = time.monotonic,
        **limits: object,
    ) -> H3Front:
        context = FrontContext(handler or ScriptedHandler(), replace(QUICK, **limits), clock=clock)  # type: ignore[arg-type]
        certificates = store or CertificateStore(
            development=h3_ca, may_issue=lambda name: not name.startswith("unknown")
        )
        front = H3Front(context, bind_udp(socket.AF_INET, ("127.0.0.1", 0)), certificates, retry_from=retry_from)
        fronts.append(front)
        return front

    yield start
    for front in fronts:
        await front.drain(0.0)
        await asyncio.sleep(0)
        assert not front.connections
        assert front.held_bytes == 0
        assert front.counters.connections_open == 0

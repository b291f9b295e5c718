"""Sessions in a WebSocket to the exit nodes' visitor port (443): the last way out, where a network lets nothing else through.

The session's own TLS runs inside, from here to the exit node, with the certificate that control vouched for. So the outer connection
proves nothing and need not: a proxy that opens TLS can read bytes that are encrypted once more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from edgetun_agent.proxy import Proxy
from edgetun_core.enrollment import WEBSOCKET_PATH, WEBSOCKET_PROTOCOL
from edgetun_core.errors import UpstreamUnreachable

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("edgetun.agent")

PIECE_BYTES: Final = 64 * 1024
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
GOODBYE_S: Final = 1.0


class WebSocketWay:
    """A `Way`: every connection to an exit node goes in a WebSocket to `url_of(host)`, through `proxy` where that leads.

    `close` ends what is still open.
    """

    def __init__(self, url_of: Callable[[str], str], proxy: Proxy | None = None) -> None:
        self._url_of = url_of
        self._proxy = proxy
        self._pumps: dict[asyncio.Task[None], _Pump] = {}

    def leads_to(self, host: str, port: int) -> bool:
        return True

    async def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """A socket whose bytes go in a WebSocket. Raises `UpstreamUnreachable`."""
        import aiohttp

        url = self._url_of(host) + WEBSOCKET_PATH
        session = aiohttp.ClientSession(connector=self._connector(url), trust_env=False)
        failures: tuple[type[Exception], ...] = (aiohttp.ClientError, OSError, TimeoutError)
        if self._proxy is not None:
            failures = (*failures, *self._proxy.errors())
        try:
            async with asyncio.timeout(timeout_s):
                stream = await session.ws_connect(
                    url,
                    protocols=(WEBSOCKET_PROTOCOL,),
                    max_msg_size=MAX_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=GOODBYE_S),
                )
        except failures as error:
            await session.close()
            raise UpstreamUnreachable(
                f"no WebSocket to {url} ({_kind_of(error)})",
                remedy="check that the visitors' port of the exit nodes can be reached and passes WebSockets on",
            ) from None
        except BaseException:
            await session.close()
            raise
        if stream.protocol != WEBSOCKET_PROTOCOL:
            await stream.close()
            await session.close()
            raise UpstreamUnreachable(f"{url} is no exit node's", remedy="something else answers there")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        pump = _Pump(session, stream, ours)
        task = asyncio.create_task(pump.run(), name="a session's WebSocket")
        self._pumps[task] = pump
        task.add_done_callback(self._forget)
        return theirs

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._pumps.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a session's WebSocket ended by a bug", exc_info=error)

    def _connector(self, url: str) -> aiohttp.BaseConnector:
        import aiohttp
        from yarl import URL

        unproven = ssl.create_default_context()  # the TLS inside proves who is there
        unproven.check_hostname = False
        unproven.verify_mode = ssl.CERT_NONE
        parts = URL(url)
        if self._proxy is not None and self._proxy.leads_to(parts.host or "", parts.port or 443):
            return self._proxy.connector(unproven)
        return aiohttp.TCPConnector(ssl=unproven, limit=1, force_close=True)

    async def close(self) -> None:
        """Ends every WebSocket."""
        tasks = list(self._pumps)
        for pump in self._pumps.values():
            pump.stop()
        if tasks:
            await asyncio.wait(tasks, timeout=5 * GOODBYE_S)


def _kind_of(error: Exception) -> str:
    status = getattr(error, "status", None)
    return f"status {status}" if isinstance(status, int) else type(error).__name__


class _Pump:
    """Carries bytes both ways until either side ends or it is stopped; each direction waits for its receiver, so nothing piles up."""

    def __init__(
        self, session: aiohttp.ClientSession, stream: aiohttp.ClientWebSocketResponse, sock: socket.socket
    ) -> None:
        self._session, self._stream, self._sock = session, stream, sock
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Ends it within about `GOODBYE_S`."""
        self._stopped.set()

    async def run(self) -> None:
        up = asyncio.create_task(self._up(), name="WebSocket up")
        down = asyncio.create_task(self._down(), name="WebSocket down")
        stopped = asyncio.create_task(self._stopped.wait(), name="WebSocket stopped")
        tasks = (up, down, stopped)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if up.done() and not up.cancelled() and up.exception() is not None:
            # What cannot be sent any more says nothing of what has come: the exit node's last words are still to be read.
            await asyncio.wait((down, stopped), return_when=asyncio.FIRST_COMPLETED, timeout=GOODBYE_S)
        if down.done():
            # Closing now, with bytes unread that the session still sent, would take from it what it has not read yet.
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            await asyncio.wait((up, stopped), return_when=asyncio.FIRST_COMPLETED, timeout=GOODBYE_S)
        for task in tasks:
            task.cancel()
        # a broken connection is an end like another: the session inside notices, and says why
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()
        await self._stream.close()
        await self._session.close()

    async def _up(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self._sock, PIECE_BYTES):
            if not self._stream.closed:
                await self._stream.send_bytes(data)

    async def _down(self) -> None:
        import aiohttp

        loop = asyncio.get_running_loop()
        async for message in self._stream:
            if message.type is not aiohttp.WSMsgType.BINARY:
                return
            await loop.sock_sendall(self._sock, message.data)

"""Lets agents in over TLS a few at a time, in the order in which they came.

When a thousand come in the same moment, all handshakes at once end at the same late time, each with its buffers in memory until then,
and who waits no longer than ten seconds comes again and makes it worse. Those who wait their turn wait in the kernel's queue, and cost
nothing there. Whoever dawdles over a handshake is soon left out of the count, so that nobody can keep the others waiting.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

log = logging.getLogger("edgetun.control.server")

MOST_HANDSHAKES: Final = 32
DAWDLING_S: Final = 0.5
"""A handshake that takes longer waits for its agent and not for us; it does not count any more."""
HANDSHAKE_TIMEOUT_S: Final = 15.0
BACKLOG: Final = 4096
"""Connections that wait in the kernel; it may allow fewer (net.core.somaxconn)."""
PAUSE_S: Final = 0.5
"""After the process has run out of file descriptors."""


class PacedListener:
    """One TCP port. `start`, then `close`; connections that were let in are their protocols' own."""

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        most_handshakes: int = MOST_HANDSHAKES,
        most_pending: int = 4096,
        dawdling_s: float = DAWDLING_S,
    ) -> None:
        self._make = make
        self._context = context
        self._most_handshakes = most_handshakes
        self._most_pending = most_pending
        self._dawdling_s = dawdling_s
        self._sockets: list[socket.socket] = []
        self._counted: set[socket.socket] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_listening = False
        self.accepted_total = 0
        self.refused_total = 0
        """Handshakes that failed."""

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    async def start(self, host: str, port: int) -> None:
        """Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, proto, _, address in dict.fromkeys(found):
                try:
                    sock = socket.socket(family, kind, proto)
                except OSError:
                    continue  # a family that this machine does not have
                self._sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setblocking(False)
                sock.bind(address if port or len(self._sockets) == 1 else (address[0], self.port, *address[2:]))
                sock.listen(BACKLOG)
        except OSError:
            await self.close()
            raise
        self._listen()

    async def close(self) -> None:
        """Takes nobody in any more; handshakes under way are dropped. Idempotent."""
        self._deafen()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _listen(self) -> None:
        if not self._is_listening and self._sockets:
            self._is_listening = True
            for sock in self._sockets:
                asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock)

    def _deafen(self) -> None:
        if self._is_listening:
            self._is_listening = False
            for sock in self._sockets:
                asyncio.get_running_loop().remove_reader(sock.fileno())

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while len(self._counted) < self._most_handshakes and len(self._tasks) < self._most_pending:
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No file descriptors, mostly. Whoever waits in the queue waits on.
                log.warning("no connection can be accepted: %s", error.strerror)
                self._deafen()
                loop.call_later(PAUSE_S, self._listen)
                return
            sock.setblocking(False)
            self.accepted_total += 1
            self._counted.add(sock)
            task = loop.create_task(self._take(sock), name="handshake with an agent")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._deafen()

    async def _take(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        dawdling = loop.call_later(self._dawdling_s, self._passed, sock)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await loop.connect_accepted_socket(self._make, sock, ssl=self._context)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self.refused_total += 1
            log.debug("a handshake failed: %s", error)
            sock.close()
        except BaseException:
            sock.close()
            raise
        finally:
            dawdling.cancel()
            loop.call_soon(self._passed, sock)

    def _passed(self, sock: socket.socket) -> None:
        """A handshake is over, or takes too long to be waited for."""
        self._counted.discard(sock)
        if len(self._tasks) < self._most_pending:
            self._listen()


__all__ = ["PacedListener"]

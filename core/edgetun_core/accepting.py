"""Lets connections in over TLS a few at a time, in the order in which they came.

When a thousand come in the same moment, all handshakes at once end at the same late time, each with its buffers in memory until then,
and who waits no longer than five or ten seconds comes again and makes it worse. So only few shake hands at a time; the others wait their
turn, each at the cost of a socket. Who went away meanwhile, or waited so long that it will have given up before the end, is turned away
without a handshake. A connection that says nothing takes no turn, and whoever dawdles over a handshake is soon left out of the count, so
that nobody can keep the others waiting.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from edgetun_core.transport.tls_transport import LinkTls, Opening, TlsTransport

log = logging.getLogger("edgetun.accepting")

MOST_HANDSHAKES: Final = 32
MOST_PENDING: Final = 4096
DAWDLING_S: Final = 0.5
"""A handshake that takes longer waits for its client and not for us; it does not count any more."""
HANDSHAKE_TIMEOUT_S: Final = 15.0
PATIENCE_S: Final = 8.0
"""How long a connection may wait for its turn: clients of control give up after ten seconds."""
BACKLOG: Final = 4096
"""Connections that wait in the kernel; it may allow fewer (net.core.somaxconn)."""
ACCEPT_AT_ONCE: Final = 64
"""Then the event loop has its turn."""
CLOSE_TIMEOUT_S: Final = 1.0
LINGER_S: Final = 30.0
"""How long a connection that was closed here waits at most for its client to have read all."""
PAUSE_S: Final = 0.5
"""After the process has run out of file descriptors."""

_TCP_ESTABLISHED: Final = 1


class PacedListener:
    """One TCP port. `start`, then `close`; connections that were let in are their protocols' own.

    At most `most_handshakes` are under way at a time, and at most `most_pending` connections wait for their turn or for the end of their
    handshake; the others wait in the kernel's queue.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        *,
        most_handshakes: int = MOST_HANDSHAKES,
        most_pending: int = MOST_PENDING,
        dawdling_s: float = DAWDLING_S,
        patience_s: float = PATIENCE_S,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        linger_s: float = LINGER_S,
    ) -> None:
        self._make = make
        self._context = context
        self._most_pending = most_pending
        self._dawdling_s = dawdling_s
        self._patience_s = patience_s
        self._handshake_timeout_s = handshake_timeout_s
        self._linger_s = linger_s
        self._turns = asyncio.Semaphore(most_handshakes)  # which gives them in the order of asking
        self._sockets: list[socket.socket] = []
        self._counted: dict[socket.socket, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._shaking: dict[asyncio.Task[None], TlsTransport] = {}
        self._is_listening = False
        self.accepted_total = 0
        self.refused_total = 0
        """Handshakes that failed, and connections that were turned away without one."""

    @property
    def port(self) -> int:
        return int(self._sockets[0].getsockname()[1])

    @property
    def host(self) -> str:
        return str(self._sockets[0].getsockname()[0])

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> None:
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
                if reuse_port:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setblocking(False)
                sock.bind(address if port or len(self._sockets) == 1 else (address[0], self.port, *address[2:]))
                sock.listen(BACKLOG)
        except OSError:
            await self.close()
            raise
        self._listen()

    def stop(self) -> None:
        """Takes nobody in any more. Idempotent."""
        self._deafen()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    async def close(self) -> None:
        """Takes nobody in any more; handshakes under way are dropped. Idempotent."""
        self.stop()
        for task in self._tasks:
            shaking = self._shaking.get(task)
            if shaking is None:
                task.cancel()
            else:
                shaking.abort()  # its handshake fails by that
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT_S)
            for task in left:
                task.cancel()

    def _listen(self) -> None:
        if not self._is_listening and self._sockets and len(self._tasks) < self._most_pending:
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
        for _ in range(ACCEPT_AT_ONCE):
            if len(self._tasks) >= self._most_pending:
                self._deafen()
                return
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
            task = loop.create_task(self._take(sock), name="handshake with a client")
            self._tasks.add(task)
            task.add_done_callback(partial(self._gone, sock))

    def _gone(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            sock.close()  # a task that was cancelled before its first step has closed nothing
        elif (error := task.exception()) is not None:
            log.error("a connection could not be let in", exc_info=error)
        self._listen()

    async def _take(self, sock: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(self._handshake_timeout_s):
                await _first_byte(sock)
            async with asyncio.timeout(self._patience_s):
                await self._turns.acquire()
            await self._shake_hands(sock, task)
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            self.refused_total += 1
            log.debug("a handshake failed: %s", error)
            sock.close()
        except BaseException:
            sock.close()
            raise

    async def _shake_hands(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        self._look_later(sock)
        try:
            if _is_gone(sock):
                raise ConnectionResetError("the client went away before its turn")
            opening = Opening(self._make)
            transport = self._shaking[task] = LinkTls(opening, self._context, linger_s=self._linger_s)
            await loop.connect_accepted_socket(lambda: transport, sock)
            try:
                async with asyncio.timeout(self._handshake_timeout_s):
                    await opening.done
            except BaseException:
                transport.abort()
                raise
        finally:
            self._shaking.pop(task, None)
            loop.call_soon(self._passed, sock)

    def _look_later(self, sock: socket.socket) -> None:
        self._counted[sock] = asyncio.get_running_loop().call_later(self._dawdling_s, self._look, sock)

    def _look(self, sock: socket.socket) -> None:
        """A handshake takes long. Where the client has said something that was not read yet, it is we who are late."""
        if _has_more(sock):
            self._look_later(sock)
        else:
            self._passed(sock)

    def _passed(self, sock: socket.socket) -> None:
        """A handshake is over, or waits for a client that dawdles."""
        look = self._counted.pop(sock, None)
        if look is not None:
            look.cancel()
            self._turns.release()


async def _first_byte(sock: socket.socket) -> None:
    """Returns when the client has said something. Raises OSError when it never will."""
    try:
        said = sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        number = sock.fileno()
        loop.add_reader(number, lambda: None if readable.done() else readable.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(number)
        said = sock.recv(1, socket.MSG_PEEK)
    if not said:
        raise ConnectionResetError("the client said nothing and went away")


def _has_more(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:  # BlockingIOError is one
        return False


def _is_gone(sock: socket.socket) -> bool:
    """Whether the client has closed its end since it spoke, where the system says so."""
    known = getattr(socket, "TCP_INFO", None)  # Linux; its first byte is the state
    return known is not None and sock.getsockopt(socket.IPPROTO_TCP, known, 1)[0] != _TCP_ESTABLISHED


__all__ = ["PacedListener"]

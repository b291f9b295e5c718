"""TLS connections that stay unopened: a look at the ClientHello decides whose they are, before anything is read off them.

The bytes are peeked at (MSG_PEEK), so whoever takes the connection gets all of them, but for the PROXY protocol header of a
trusted proxy, which is read off first. Only such connections pass through here, and those of a node where a tunnel takes
connections by name; waiting for the rest of a ClientHello costs a reader, not a task.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final

from edgetun_core.proxy_protocol import Endpoints, ProxyHeaderError, read_proxy_header
from edgetun_exitnode.front.client_hello import MAX_HELLO_BYTES, NotClientHello, read_server_name
from edgetun_exitnode.front.ports import StreamFronts
from edgetun_exitnode.front.tcp import StreamConnection
from edgetun_exitnode.pipeline.streams import StreamPlan

log = logging.getLogger(__name__)

Otherwise = Callable[[socket.socket, str, Endpoints | None], None]
"""Takes a connection that no tunnel takes as it is, with the address it is counted by and what a proxy said of the visitor."""

_ONE: Final = 1


class Passthrough:
    """Sorts the connections of an HTTPS front. `otherwise` and `left` are the front's."""

    def __init__(
        self, streams: StreamFronts, otherwise: Otherwise, left: Callable[[str], None], patience_s: float
    ) -> None:
        """`left(address)` hears of every connection that does not come back by `otherwise`."""
        self._streams = streams
        self._otherwise = otherwise
        self._left = left
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._looking: dict[_Look, None] = {}
        self._handing_over: set[asyncio.Task[None]] = set()

    @property
    def is_needed(self) -> bool:
        """Whether any tunnel takes connections by name."""
        return self._streams.plans.has_names

    @property
    def waiting(self) -> int:
        """Connections whose ClientHello is not there yet."""
        return len(self._looking)

    def trusts(self, address: str) -> bool:
        """Whether a connection from there must begin with a PROXY protocol header."""
        return self._streams.trusted.holds(address)

    def take(self, sock: socket.socket, address: str, proxy: str, now: float) -> None:
        """Decides about a connection that was just accepted (and is non-blocking); `proxy` is who has to say whose it is.

        `now` is by the clock that `sweep` goes by.
        """
        look = _Look(self, sock, address, now + self._patience_s, proxy)
        self._looking[look] = None
        look.again()

    def sweep(self, now: float) -> None:
        """Drops those that took too long over their first words; the front calls it once a second."""
        for look in [look for look in self._looking if now > look.deadline]:
            look.drop()

    def drop_oldest(self) -> bool:
        """Makes room for a newcomer; False when nobody waits here."""
        for look in self._looking:
            look.drop()
            return True
        return False

    def close(self) -> None:
        for look in tuple(self._looking):
            look.drop()
        for task in self._handing_over:
            task.cancel()

    # From a look.

    def forget(self, look: _Look) -> None:
        self._looking.pop(look, None)

    def lost(self, look: _Look) -> None:
        look.sock.close()
        self._left(look.address)

    def decide(self, look: _Look, name: str) -> None:
        plan = self._streams.plans.find(name) if name else None
        if plan is None:
            self._otherwise(look.sock, look.address, look.told)
            return
        self._left(look.address)
        task = self._loop.create_task(self._hand_over(look, plan, name), name="hand over a TLS connection")
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    def wrong_header(self, look: _Look, error: ProxyHeaderError) -> None:
        self._streams.tell_wrong_header(look.proxy, error)
        look.drop()

    async def _hand_over(self, look: _Look, plan: StreamPlan, name: str) -> None:
        sock, told = look.sock, look.told
        if told is None and look.proxy:
            told = Endpoints(look.proxy, 0, "", 0)  # the proxy speaks for itself
        try:
            await self._loop.connect_accepted_socket(lambda: StreamConnection(self._streams, plan, name, told), sock)
        except OSError as error:
            sock.close()
            log.debug("a connection for %s was gone before it began: %s", name, error)
        except BaseException:
            sock.close()
            raise


class _Look:
    """One connection whose ClientHello is looked at."""

    __slots__ = ("_is_told", "_owner", "_seen", "_waits", "address", "deadline", "proxy", "sock", "told")

    def __init__(self, owner: Passthrough, sock: socket.socket, address: str, deadline: float, proxy: str) -> None:
        self._owner = owner
        self.sock = sock
        self.address = address
        self.deadline = deadline
        self.proxy = proxy
        self.told: Endpoints | None = None
        self._is_told = not proxy
        self._waits = False
        self._seen = 0

    def again(self) -> None:
        """Looks at what is there, and waits for more when that is not enough."""
        try:
            data = self.sock.recv(MAX_HELLO_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            self._wait(_ONE)
            return
        except OSError:
            self.drop()
            return
        if not data or len(data) == self._seen:
            self.drop()  # no more will come
            return
        self._seen = len(data)
        if not self._is_told:
            self._read_header(data)
            return
        try:
            name = read_server_name(data) if self._owner.is_needed else ""
        except NotClientHello:
            name = ""
        if name is None:
            self._wait(len(data) + 1)
            return
        self._done()
        self._owner.decide(self, name)

    def _read_header(self, data: bytes) -> None:
        """What the proxy says is taken off; the ClientHello comes behind it."""
        try:
            header = read_proxy_header(data)
        except ProxyHeaderError as error:
            self._owner.wrong_header(self, error)
            return
        if header is None:
            self._wait(len(data) + 1)
            return
        self.sock.recv(header.size_bytes)  # it was peeked at, so it is there
        self.told = header.endpoints
        self._is_told = True
        self._seen = 0
        self.again()

    def _wait(self, low_water: int) -> None:
        """The kernel wakes us when more is there than we have seen, and not for what we have seen."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)
        if not self._waits:
            self._waits = True
            self._owner._loop.add_reader(self.sock, self.again)

    def _done(self) -> None:
        self._owner.forget(self)
        if self._waits:
            self._waits = False
            self._owner._loop.remove_reader(self.sock)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _ONE)

    def drop(self) -> None:
        """Closes the connection."""
        try:
            self._done()
        finally:
            self._owner.lost(self)

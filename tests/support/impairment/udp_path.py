"""A UDP port on the way to another one, with a `Wire` each way; a NAT that can forget its bindings. In the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from support.impairment.wire import GOOD, Impairment, Wire

Address = tuple[Any, ...]

SO_RCVBUFFORCE = 33
BUFFER_BYTES = 8 * 1024 * 1024


class UdpPath(asyncio.DatagramProtocol):
    """Datagrams from diallers go `up` to the target, its answers come `down`. Each dialler has a port of its own at the target's side."""

    def __init__(self, target: Address, up: Impairment, down: Impairment, seed: int) -> None:
        self.up = Wire(up, seed)
        self.down = Wire(down, seed + 1)
        self.rebindings = 0
        self.forget_after_s = float("inf")
        """A NAT's time-out: a binding that nothing used for so long is gone, and the dialler's next datagram makes another."""
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._front: asyncio.DatagramTransport | None = None
        self._backs: dict[Address, _Back] = {}
        self._retired: list[_Back] = []
        self._cut_off: set[Address] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._is_closed = False

    @property
    def port(self) -> int:
        assert self._front is not None
        return int(self._front.get_extra_info("sockname")[1])

    @property
    def now(self) -> float:
        return self._loop.time()

    @property
    def ports_at_target(self) -> list[int]:
        """The ports from which the target sees the diallers."""
        return [back.port for back in self._backs.values()]

    def set(
        self, both: Impairment | None = None, *, up: Impairment | None = None, down: Impairment | None = None
    ) -> None:
        """Another weather from now on, both ways or one."""
        self.up.impairment = both or up or self.up.impairment
        self.down.impairment = both or down or self.down.impairment

    async def rebind(self, host: str = "") -> None:
        """The NAT forgets: each dialler's next datagram leaves from another port, and answers to the old one are lost.

        With `host` it leaves from that address, as when the dialler is in another network.
        """
        for address, old in list(self._backs.items()):
            self._backs[address] = await self._bind(address, host)
            old.is_forgotten = True
            self._retired.append(old)
        self.rebindings += 1

    def forget_diallers(self) -> None:
        """The sockets that diallers have now are cut off for good; new ones of theirs work."""
        self._cut_off.update(self._backs)
        for old in self._backs.values():
            old.is_forgotten = True

    # asyncio.DatagramProtocol

    def connection_made(self, transport: Any) -> None:
        self._front = transport
        _grow(transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if addr in self._cut_off:
            return
        back = self._backs.get(addr)
        if back is not None and self._loop.time() - back.used_at > self.forget_after_s:
            back.is_forgotten = True
            self._retired.append(back)
            self.rebindings += 1
            back = None
        if back is None:
            back = self._backs[addr] = _Back(self, addr)
            back.binding = self._loop.create_task(back.bind(self._target))
        back.used_at = self._loop.time()
        self._later(self.up, len(data), lambda: self._backs[addr].send(data))

    def answer(self, data: bytes, addr: Address) -> None:
        """The target sent something to a dialler."""
        self._later(self.down, len(data), lambda: self._front.sendto(data, addr) if self._front is not None else None)

    async def _bind(self, address: Address, host: str) -> _Back:
        back = _Back(self, address)
        await back.bind(self._target, host)
        return back

    def _later(self, wire: Wire, size_bytes: int, deliver: Any) -> None:
        now = self._loop.time()
        at = wire.carry(size_bytes, now)
        if at is None:
            return
        if at <= now:
            deliver()
            return

        def fire() -> None:
            self._timers.discard(handle)
            if not self._is_closed:
                deliver()

        handle = self._loop.call_at(at, fire)
        self._timers.add(handle)

    def close(self) -> None:
        self._is_closed = True
        for timer in self._timers:
            timer.cancel()
        if self._front is not None:
            self._front.close()
        for back in (*self._backs.values(), *self._retired):
            back.close()


def _grow(transport: asyncio.DatagramTransport) -> None:
    """What is lost is to be lost by the weather: a burst waits in the kernel while the loop is busy, as far as the kernel lets it."""
    sock = transport.get_extra_info("socket")
    for option in (SO_RCVBUFFORCE, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
            return


class _Back(asyncio.DatagramProtocol):
    """A dialler's port at the target's side. What comes before it is bound waits, within reason."""

    def __init__(self, path: UdpPath, address: Address) -> None:
        self.is_forgotten = False
        self.used_at = path.now
        self.binding: asyncio.Task[None] | None = None
        self._path = path
        self._address = address
        self._transport: asyncio.DatagramTransport | None = None
        self._early: list[bytes] = []

    async def bind(self, target: Address, host: str = "") -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, remote_addr=(target[0], target[1]), local_addr=(host, 0) if host else None
        )
        _grow(self._transport)
        early, self._early = self._early, []
        for data in early:
            self._transport.sendto(data)

    @property
    def port(self) -> int:
        return int(self._transport.get_extra_info("sockname")[1]) if self._transport is not None else 0

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.sendto(data)
        elif len(self._early) < 100:
            self._early.append(data)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        now = self._path.now
        if not self.is_forgotten and now - self.used_at <= self._path.forget_after_s:
            self.used_at = now
            self._path.answer(data, self._address)

    def error_received(self, exc: Exception) -> None:
        """The target's port is closed: a dialler behind a NAT would not hear of it."""

    def close(self) -> None:
        if self.binding is not None:
            self.binding.cancel()
        if self._transport is not None:
            self._transport.close()


@contextlib.asynccontextmanager
async def udp_path(
    target_port: int,
    both: Impairment = GOOD,
    *,
    down: Impairment | None = None,
    seed: int = 1,
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[UdpPath]:
    """A path to `target_port`; its own port is `path.port`, a free one unless `port` says which."""
    loop = asyncio.get_running_loop()
    _, path = await loop.create_datagram_endpoint(
        lambda: UdpPath((host, target_port), both, down or both, seed), local_addr=(host, port)
    )
    try:
        yield path
    finally:
        path.close()
        await asyncio.sleep(0.01)

"""What tests of transports need: a recording user of a link, pairs of links, and a path that loses datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from edgetun_core.errors import EdgetunError
from edgetun_core.transport.engines import DevelopmentCA, Listener, ServerIdentity, Trust, dial, listen
from edgetun_core.transport.link import Link


class Recorder:
    """A LinkUser that keeps what it is told."""

    def __init__(self, *, echo: bool = False) -> None:
        self.link: Any = None
        self.echo = echo
        self.received: dict[int, bytearray] = {}
        self.paused: set[int] = set()
        self.pauses = 0
        self.closed: list[EdgetunError | None] = []
        self.late_calls: list[str] = []
        self.on_resumed: Callable[[], None] = lambda: None
        self.on_bytes: Callable[[int, bytes], None] = lambda lane, data: None

    @property
    def error(self) -> EdgetunError | None:
        assert len(self.closed) == 1
        return self.closed[0]

    def on_open(self, link: Link) -> None:
        assert self.link is None
        self.link = link

    def on_data(self, lane: int, data: bytes) -> None:
        self._check("on_data")
        assert isinstance(data, bytes)
        self.received.setdefault(lane, bytearray()).extend(data)
        if self.echo:
            self.link.write(lane, data)
        self.on_bytes(lane, data)

    def on_lane_paused(self, lane: int) -> None:
        self._check("on_lane_paused")
        assert lane not in self.paused
        self.paused.add(lane)
        self.pauses += 1

    def on_lane_resumed(self, lane: int) -> None:
        self._check("on_lane_resumed")
        self.paused.remove(lane)
        self.on_resumed()

    def on_closed(self, error: EdgetunError | None) -> None:
        self._check("on_closed")
        self.closed.append(error)

    def _check(self, call: str) -> None:
        if self.closed:
            self.late_calls.append(call)


async def eventually(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Waits for a condition; fails when it does not come true in time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while not condition():
        if loop.time() > until:
            raise AssertionError(f"did not come true within {within_s} s")
        await asyncio.sleep(0.002)


class Place:
    """A listener of one engine, and diallers of another (or the same)."""

    def __init__(self, listening: str, dialling: str, ca: DevelopmentCA) -> None:
        self.listening = listening
        self.dialling = dialling
        self.ca = ca
        self.identity: ServerIdentity = ca.identity(["localhost", "127.0.0.1"])
        self.accepted: list[Recorder] = []
        self.dialled: list[Recorder] = []
        self.listener: Any = None
        self.echo = True

    @property
    def is_tls(self) -> bool:
        return self.listening == "tls"

    async def listen(self, *, port: int = 0, **options: Any) -> Listener:
        self.listener = await listen(
            self.listening, "127.0.0.1", port, identity=self.identity, accept=self._accept, **options
        )
        return self.listener

    def _accept(self) -> Recorder:
        user = Recorder(echo=self.echo)
        self.accepted.append(user)
        return user

    async def dial(self, *, port: int | None = None, trust: Trust | None = None, **options: Any) -> Recorder:
        """Dials and waits until both ends have all lanes."""
        user = Recorder()
        self.dialled.append(user)
        await dial(
            self.dialling, "127.0.0.1", port or self.listener.port, trust=trust or self.ca.trust, user=user, **options
        )
        return user

    async def pair(self, **options: Any) -> tuple[Recorder, Recorder]:
        """A new link: the dialler's end, the listener's end."""
        before = len(self.accepted)
        user = await self.dial(**options)
        lanes = 2 if self.is_tls else 20 if options.get("is_lossy") else 8
        await eventually(
            lambda: (
                len(self.accepted) > before
                and (other := self.accepted[-1].link) is not None
                and other.lanes == lanes
                and user.link.lanes == lanes
            )
        )
        return user, self.accepted[-1]

    async def leave(self) -> None:
        """Closes everything; nobody may hear anything after `on_closed`."""
        for user in self.dialled:
            if user.link is not None:
                user.link.close(0, "")
        if self.listener is not None:
            await self.listener.close()
        await eventually(lambda: all(user.closed for user in self.dialled + self.accepted if user.link is not None))
        for user in self.dialled + self.accepted:
            assert user.late_calls == []
            assert len(user.closed) <= 1


class LossyPath(asyncio.DatagramProtocol):
    """Relays datagrams between diallers and one listener, and loses some of them."""

    def __init__(self, target: tuple[str, int], loss: float, seed: int) -> None:
        self._target = target
        self.loss = loss
        self._random = random.Random(seed)
        self._transport: Any = None
        self._backs: dict[Any, asyncio.DatagramTransport] = {}
        self.lost = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        asyncio.ensure_future(self._forward(data, addr)) if addr not in self._backs else self._send(data, addr)

    async def _forward(self, data: bytes, addr: Any) -> None:
        loop = asyncio.get_running_loop()
        if addr not in self._backs:
            back, _ = await loop.create_datagram_endpoint(lambda: _Back(self, addr), remote_addr=self._target)
            self._backs.setdefault(addr, back)
            if self._backs[addr] is not back:
                back.close()
        self._send(data, addr)

    def _send(self, data: bytes, addr: Any) -> None:
        if self.passes():
            self._backs[addr].sendto(data)

    def passes(self) -> bool:
        if self._random.random() < self.loss:
            self.lost += 1
            return False
        return True

    def answer(self, data: bytes, addr: Any) -> None:
        if self.passes():
            self._transport.sendto(data, addr)

    def close(self) -> None:
        self._transport.close()
        for back in self._backs.values():
            back.close()


class _Back(asyncio.DatagramProtocol):
    def __init__(self, path: LossyPath, addr: Any) -> None:
        self._path = path
        self._addr = addr

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._path.answer(data, self._addr)

    def error_received(self, exc: Exception) -> None:
        pass


@contextlib.asynccontextmanager
async def lossy_path(target_port: int, loss: float, seed: int = 1) -> AsyncIterator[tuple[int, LossyPath]]:
    """A UDP port on the way to `target_port`."""
    loop = asyncio.get_running_loop()
    transport, path = await loop.create_datagram_endpoint(
        lambda: LossyPath(("127.0.0.1", target_port), loss, seed), local_addr=("127.0.0.1", 0)
    )
    try:
        yield transport.get_extra_info("sockname")[1], path
    finally:
        path.close()
        await asyncio.sleep(0.01)


async def outcome(awaitable: Awaitable[object]) -> BaseException | None:
    """The error that came of it, if any."""
    try:
        await awaitable
    except EdgetunError as error:
        return error
    return None

"""A TCP port on the way to another one: delay, a rate, a black hole without FIN, refusals and resets. In the test's own event loop.

The kernel at both ends hides loss, reordering and the MTU from a byte stream; `packet_path` shows those to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

from support.impairment.wire import GOOD, Impairment, Wire

READ_BYTES = 64 * 1024
IN_FLIGHT_BYTES = 1024 * 1024
"""What may be under way in one direction of one connection."""


class TcpPath:
    """Accepts, dials the target, and carries bytes both ways."""

    def __init__(self, target: tuple[str, int], both: Impairment, down: Impairment, seed: int) -> None:
        self.up = both
        self.down = down
        self.is_refusing = False
        self.connections = 0
        self.port = 0
        self._target = target
        self._seed = seed
        self._open: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._server: asyncio.Server | None = None
        self._weather = asyncio.Event()
        self._stalled: set[tuple[int, bool]] = set()

    def set(
        self, both: Impairment | None = None, *, up: Impairment | None = None, down: Impairment | None = None
    ) -> None:
        """Another weather from now on, both ways or one. Bytes that met a black hole go on when it ends, as TCP sends them again."""
        self.up = both or up or self.up
        self.down = both or down or self.down
        self._weather.set()
        self._weather = asyncio.Event()

    def stall(self, number: int, *, up: bool = True, down: bool = True) -> None:
        """One connection carries nothing any more, the others go on; `number` counts from 0 in the order in which they came."""
        self._stalled |= {(number, is_up) for is_up, is_meant in ((True, up), (False, down)) if is_meant}

    def rebind(self) -> None:
        """The NAT forgets: what goes on over the connections of before gets lost, and new ones work."""
        for number in range(self.connections):
            self.stall(number)

    def reset_all(self) -> None:
        """Every connection gets a RST both ways, now."""
        for writers in list(self._open.values()):
            for writer in writers:
                sock: socket.socket | None = writer.get_extra_info("socket")
                if sock is not None:
                    with contextlib.suppress(OSError):
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def start(self, host: str, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._accepted, host, port, limit=READ_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = [writer]
        try:
            if self.is_refusing:
                return
            number = self.connections
            self.connections += 1
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=READ_BYTES)
            self._open[task].append(far_writer)
            up, down = Wire(seed=self._seed), Wire(seed=self._seed + 1)
            await asyncio.gather(
                self._carry(reader, far_writer, up, (number, True)),
                self._carry(far_reader, writer, down, (number, False)),
            )
        except (OSError, asyncio.CancelledError):
            pass  # its own task's end: cancelled by `close` alone, and the streams would log that as an error
        finally:
            for each in self._open.pop(task, ()):
                each.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: Wire, which: tuple[int, bool]
    ) -> None:
        """One direction until its end or an error; what is read leaves in order, each piece at its time."""
        loop = asyncio.get_running_loop()
        is_up = which[1]
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT_BYTES // READ_BYTES)

        async def deliver() -> None:
            while True:
                at, data = await waiting.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                while (self.up if is_up else self.down).is_black_hole or which in self._stalled:
                    await self._weather.wait()
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        delivering = loop.create_task(deliver())
        try:
            while True:
                data = await reader.read(READ_BYTES)
                it = self.up if is_up else self.down
                # nothing of a stream is lost, it only comes later
                wire.impairment = Impairment(
                    delay_s=it.delay_s, jitter_s=it.jitter_s, rate_bytes_s=it.rate_bytes_s, queue_bytes=1 << 62
                )
                at = wire.carry(len(data), loop.time())
                assert at is not None
                await waiting.put((at, data))
                if not data:
                    await delivering
                    return
        finally:
            delivering.cancel()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


@contextlib.asynccontextmanager
async def tcp_path(
    target_port: int,
    both: Impairment = GOOD,
    *,
    down: Impairment | None = None,
    seed: int = 1,
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[TcpPath]:
    """A path to `target_port`; its own port is `path.port`, a free one unless `port` says which."""
    path = TcpPath((host, target_port), both, down or both, seed)
    await path.start(host, port)
    try:
        yield path
    finally:
        await path.close()

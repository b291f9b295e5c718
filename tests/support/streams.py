"""TCP and UDP tunnels under test: the snapshot of one, a local service that follows a script, free ports, resets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from edgetun_core.snapshot import OriginRule, PoolRule, Snapshot, StreamRule, TunnelRule
from support.whole import KEY, TUNNEL

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

LINGER_NOT = struct.pack("ii", 1, 0)


def stream_snapshot(
    url: str,
    stream: StreamRule,
    *,
    hostnames: tuple[str, ...] = (),
    proxy_protocol: str = "",
    pool: PoolRule | None = None,
    version: int = 1,
    grace_s: float = 2.0,
) -> Snapshot:
    """One TCP or UDP tunnel to `url`."""
    origin = OriginRule("default", url, proxy_protocol=proxy_protocol, connect_timeout_s=5.0)
    tunnel = TunnelRule(TUNNEL, hostnames, (origin,), (), reconnect_grace_s=grace_s, stream=stream)
    return Snapshot(version, "pool", "here", (tunnel,), (KEY.public,), pool_rule=pool or PoolRule())


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket(type=kind) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Service:
    """A local TCP service; `connections` are the addresses of whoever connected."""

    port: int
    connections: list[tuple[str, int]]

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"


@asynccontextmanager
async def local_service(serve: Serve) -> AsyncIterator[Service]:
    """Serves every connection by `serve`; a service that leaves with an error resets its connection."""
    service = Service(0, [])
    tasks: set[asyncio.Task[None]] = set()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        service.connections.append(writer.get_extra_info("peername")[:2])
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes, and ends when the visitor has."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def reset_by(writer: asyncio.StreamWriter) -> None:
    """Closes a connection with RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    writer.transport.abort()


async def within(awaitable: Awaitable[object], seconds: float = 15.0) -> object:
    """The result, or a failed test when it takes too long."""
    return await asyncio.wait_for(awaitable, seconds)

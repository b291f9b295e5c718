"""Follows control: identity, stream, reconnects with jitter; presence one way, snapshots and orders the other.

Imported only with `--control`, since aiohttp costs an exit node's start more than all the rest. Serving never waits for
anything here: when control is away, the node obeys the last snapshot, which is on disk too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import aiohttp

from edgetun_core import __version__
from edgetun_core.control_stream import (
    STREAM_PATH,
    Ack,
    Drain,
    Move,
    NodeHello,
    NodeLoad,
    Peers,
    Resync,
    SessionInfo,
    decode_from_control,
    encode,
)
from edgetun_core.control_stream.messages import MAX_MESSAGE_BYTES
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import ConfigError, EdgetunError, ProtocolError
from edgetun_core.fleet_identity import client_context
from edgetun_core.snapshot import Snapshot, SnapshotChange
from edgetun_exitnode.control.identity import ControlUnreachable, NodeIdentity, told
from edgetun_exitnode.control.intake import Intake
from edgetun_exitnode.control.last_good import LastGood
from edgetun_exitnode.control.presence import Told

log = logging.getLogger("edgetun.exitnode.control")

GATHER_S: Final = 0.25
"""How long changes of sessions are gathered before they are told."""
LOOK_EVERY_S: Final = 10.0
"""How often load and round trips are looked at."""
HEARTBEAT_S: Final = 10.0
RETRY_FIRST_S: Final = 0.5
RETRY_MOST_S: Final = 15.0
HEALTHY_AFTER_S: Final = 10.0
GOODBYE_S: Final = 1.0
WRITE_EVERY_S: Final = 1.0
WRITE_MOST_S: Final = 15.0
WRITE_PAUSE: Final = 100.0
"""Between two writes of the last snapshot, this many times what the first one took: ten thousand tunnels are a megabyte."""


class FollowingNode(Protocol):
    """What this part asks of an exit node."""

    def apply(self, snapshot: Snapshot, change: SnapshotChange | None = None) -> None: ...
    def sessions_told(self) -> dict[str, SessionInfo]: ...
    def load_told(self) -> NodeLoad: ...
    def ports_told(self) -> dict[str, str]: ...
    def move(self, order: Move) -> None: ...
    def obey_drain(self, order: Drain) -> None: ...
    def lost_control(self, since: float | None = None) -> None: ...
    def found_control(self) -> None: ...
    def take_peers(self, message: Peers) -> None: ...
    def control_away(self) -> None: ...


class Follower:
    """One exit node's link to control. `start` after the node exists, `close` at the end."""

    def __init__(
        self,
        node: FollowingNode,
        identity: NodeIdentity,
        state: Path,
        *,
        addresses: Callable[[], tuple[Endpoint, ...]] = tuple,
        relay: Callable[[], Endpoint | None] = lambda: None,
        prepare: Callable[[], Awaitable[object]] | None = None,
        rng: random.Random | None = None,
        retry_s: tuple[float, float] = (RETRY_FIRST_S, RETRY_MOST_S),
    ) -> None:
        name = identity.name
        self.is_connected = False
        self.connects = 0
        self.snapshots_applied = 0
        self.last_error: EdgetunError | None = None
        self._node = node
        self._identity = identity
        self._intake = Intake(name.pool, name.region)
        self._last_good = LastGood(state)
        self._addresses = addresses
        self._relay = relay
        self._prepare = prepare
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter, not a secret
        self._retry_s = retry_s
        self._told = Told()
        self._sessions_changed = asyncio.Event()
        self._unwritten = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.has_snapshot = asyncio.Event()

    @property
    def digest(self) -> str:
        """Of the snapshot that the node obeys."""
        return self._intake.digest

    def resume(self) -> bool:
        """Obeys the last good snapshot from disk; False when there is none."""
        name = self._identity.name
        found = self._last_good.read(name.pool, name.region)
        if found is None:
            return False
        self._intake.resume(*found)
        self._node.apply(found[0])
        self._node.lost_control(self._last_good.written_at())
        self.has_snapshot.set()
        log.info("obeying the last snapshot from disk: %d tunnels", len(found[0].tunnels))
        return True

    def start(self) -> None:
        """Begins to follow; returns at once."""
        self._tasks = [
            asyncio.create_task(self._run(), name="follow control"),
            asyncio.create_task(self._keep_on_disk(), name="keep the last snapshot"),
        ]

    def sessions_changed(self) -> None:
        """A session was opened, drains, or is gone; cheap, callable at any rate."""
        self._sessions_changed.set()

    async def close(self) -> None:
        """Ends the stream. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()

    # ---- the stream

    async def _run(self) -> None:
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                await self._follow_once()
                error: EdgetunError = ControlUnreachable("control closed the stream")
            except EdgetunError as failure:
                error = failure
            except Exception as bug:
                # The edge of a task: without it the node would silently never hear from control again.
                log.exception("following control failed")
                error = EdgetunError(f"a bug: {type(bug).__name__}")
            was_connected, self.is_connected = self.is_connected, False
            self._node.lost_control()
            self._node.control_away()
            if was_connected or self.last_error is None or str(self.last_error) != str(error):
                log.warning("no stream to control (%s); serving on, trying again", error)
            self.last_error = error
            attempt = 0 if was_connected and time.monotonic() - began > HEALTHY_AFTER_S else attempt + 1
            first_s, most_s = self._retry_s
            bound_s = min(most_s, first_s * 2 ** min(attempt, 10))
            await asyncio.sleep(self._rng.uniform(first_s / 4, bound_s))

    async def _follow_once(self) -> None:
        server = await self._identity.ensure()
        if self._prepare is not None:
            await self._prepare()  # what the hello tells of must be there
        tls = client_context(self._identity.trust, server.cert_pem, server.key_pem)
        connector = aiohttp.TCPConnector(ssl=tls, limit=1, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=None)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                asyncio.timeout(15.0) as opening,
                session.ws_connect(
                    self._identity.control + STREAM_PATH,
                    heartbeat=HEARTBEAT_S,
                    max_msg_size=MAX_MESSAGE_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=GOODBYE_S),
                ) as stream,
            ):
                opening.reschedule(None)
                await self._converse(stream)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ControlUnreachable(f"{self._identity.control} cannot be reached ({told(error)})") from None

    async def _converse(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        name = self._identity.name
        present = self._intake.snapshot
        await stream.send_bytes(
            encode(
                NodeHello(
                    name.pool,
                    name.region,
                    name.node,
                    self._addresses(),
                    present.version if present is not None else 0,
                    self._intake.digest,
                    self._node.load_told(),
                    f"edgetun/{__version__}",
                    self._relay(),
                )
            )
        )
        self._told.begin()
        self._sessions_changed.set()
        telling = asyncio.create_task(self._tell(stream), name="tell presence")
        try:
            async for message in stream:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    raise ProtocolError("control sent something that is no message")
                if not self.is_connected:
                    self.is_connected = True
                    self._node.found_control()
                    self.connects += 1
                    self.last_error = None
                    log.info("following control at %s as %s", self._identity.control, name)
                reply = self._take(message.data)
                if reply is not None:
                    await stream.send_bytes(encode(reply))
        finally:
            telling.cancel()
            await asyncio.wait((telling,))

    def _take(self, data: bytes) -> Ack | Resync | None:
        message = decode_from_control(data)
        if isinstance(message, Peers):
            self._node.take_peers(message)
            return None
        taken = self._intake.take(message)
        if taken.apply is not None:
            self._node.apply(taken.apply, taken.change)
            self.snapshots_applied += 1
            self._unwritten.set()
            self.has_snapshot.set()
            log.debug("snapshot %d: %d tunnels", taken.apply.version, len(taken.apply.tunnels))
        if isinstance(taken.reply, Resync):
            log.info("asking control for the whole snapshot: %s", taken.reply.reason)
        match taken.order:
            case Move() as order:
                self._node.move(order)
            case Drain() as order:
                self._node.obey_drain(order)
            case None:
                pass
        return taken.reply

    async def _tell(self, stream: aiohttp.ClientWebSocketResponse) -> None:
        """Presence: what changed, gathered. The certificate is renewed here too; the stream that stands keeps the old one."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._sessions_changed.wait()
                    await asyncio.sleep(GATHER_S)
            self._sessions_changed.clear()
            try:
                for presence in self._told.report(
                    self._node.sessions_told(), self._node.load_told(), self._node.ports_told()
                ):
                    await stream.send_bytes(encode(presence))
            except (aiohttp.ClientError, OSError):
                await stream.close()
                return
            except Exception:
                # The edge of a task; without presence the stream is worth little, so it is opened anew.
                log.exception("what control should hear could not be told")
                await stream.close()
                return
            if self._identity.is_due:
                with suppress(EdgetunError):
                    await self._identity.ensure()

    # ---- the disk

    async def _keep_on_disk(self) -> None:
        """Writes the newest snapshot a moment after it came; at most one write a second, and with little of the time at most."""
        loop = asyncio.get_running_loop()
        while True:
            await self._unwritten.wait()
            self._unwritten.clear()
            began = loop.time()
            snapshot, digest = self._intake.snapshot, self._intake.digest
            if snapshot is not None:
                try:
                    await asyncio.to_thread(self._last_good.write, snapshot, digest)
                except ConfigError as error:
                    log.warning("%s", error)
            await asyncio.sleep(min(WRITE_MOST_S, max(WRITE_EVERY_S, WRITE_PAUSE * (loop.time() - began))))

"""Control on one machine, wired: folder store, publisher, registration, and the entrance that shares the sessions' port."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from edgetun_control.control import Control, ControlSettings
from edgetun_control.placement import FixedPlacement
from edgetun_control.publish import Publisher
from edgetun_control.server import ControlEntrance, build_app
from edgetun_control.stores.folder import FolderStore


class FolderControl:
    """What `edgetun serve` runs beside its exit node.

    The order: `start`, subscribe the exit node to `publisher`, listen with `make_protocol` among the other protocols, then
    give `placement` the endpoints that came of it. `close` in the end. Nothing is registered before there is an endpoint.
    """

    def __init__(
        self,
        state: Path,
        settings: ControlSettings,
        *,
        ca_pem: bytes | None,
        pool: str = "default",
        region: str = "default",
        require_tls: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = FolderStore(state, clock=clock)
        self.publisher = Publisher(self.store, pool=pool, region=region, clock=clock)
        self.placement = FixedPlacement(())
        self.control = Control(settings, self.store, self.publisher, self.placement, clock=clock)
        self._entrance = ControlEntrance(build_app(self.control, ca_pem, require_tls=require_tls))
        self._make: Callable[[], asyncio.Protocol] | None = None

    async def start(self) -> None:
        """Raises `ConfigError` when the folder cannot be used or another server uses it."""
        await self.store.start()
        try:
            await self.publisher.start()
            self._make = await self._entrance.start()
        except BaseException:
            await self.close()
            raise

    def make_protocol(self) -> asyncio.Protocol:
        """For `listen(other_protocols={"http/1.1": ..., "": ...})`."""
        assert self._make is not None, "start() comes first"
        return self._make()

    async def close(self) -> None:
        """Idempotent."""
        await self._entrance.close()
        await self.publisher.close()
        await self.store.close()

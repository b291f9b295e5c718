"""Makes the mesh of a node once it has a certificate, and keeps on disk whom it knows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import ConfigError, ProtocolError
from edgetun_core.fleet_identity import ExitNodeName, inner_name
from edgetun_core.pki import ServerIdentity
from edgetun_exitnode.front.listening import explain
from edgetun_exitnode.mesh.holders import Holders
from edgetun_exitnode.mesh.kept import read_peers, write_peers
from edgetun_exitnode.mesh.mesh import Mesh
from edgetun_exitnode.node import ExitNode

log = logging.getLogger("edgetun.exitnode.mesh")

KEEP_EVERY_S: Final = 2.0
PATIENCE_S: Final = 5.0
"""How long after its snapshot a node waits for the list of peers before it takes visitors all the same: an older control sends none."""


class Membership:
    """One node's place in the mesh: `join` when there is a certificate, `keep` as a task, `knows_enough` for readiness."""

    def __init__(self, node: ExitNode, name: ExitNodeName, state: Path) -> None:
        self._node = node
        self._name = name
        self._state = state
        self.holders = Holders(str(name))
        self.joined = asyncio.Event()
        self.is_remembered = False
        self._has_been_complete = False
        self._waiting_since: float | None = None

    def restore(self) -> None:
        """Takes the list from disk; blocking, and quick."""
        data = read_peers(self._state)
        if data is not None:
            try:
                self.holders.restore(data, time.monotonic())
            except ProtocolError as error:
                log.warning("the list of peers in %s is damaged: %s", self._state, error)
            else:
                self.is_remembered = True

    async def join(
        self, identity: ServerIdentity, ca_pem: Callable[[], bytes], host: str, relay_host: str, relay_port: int
    ) -> None:
        """Raises `ConfigError` when the port cannot be used. Without `relay_host` nobody relays here, and control names no others to relay to."""
        node = self._node
        mesh = Mesh(
            self._name,
            identity,
            ca_pem,
            self.holders,
            node.router,
            wake=node.registry.wake,
            clock=time.monotonic,
            store=node.store,
            purge=node.purge,
            rates=node.rates,
            shares=node.registry.shares,
            share=node.registry.share,
        )
        if relay_host and relay_port >= 0:
            reached_at = Endpoint(
                relay_host, relay_port, 0, self._name.node, inner_name(self._name.pool, self._name.region)
            )
            try:
                port = await mesh.listen(host, relay_port, reached_at)
            except ConfigError as error:
                if isinstance(error.__cause__, OSError):
                    raise explain(error.__cause__, host, relay_port, "--relay-port") from error.__cause__
                raise
            log.info("other exit nodes on %s, TCP %d", host, port)
        node.join(mesh)
        self.joined.set()

    def knows_enough(self) -> bool:
        """Whether the list of peers is there, or waiting for it is over. Read from other threads."""
        if self.holders.is_complete:
            self._has_been_complete = True
        if self._has_been_complete or self.is_remembered:
            return True
        if self._node.snapshot is None:
            return False
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        return now - self._waiting_since > PATIENCE_S

    async def keep(self) -> None:
        """Writes the list a while after it changed. Ends only by being cancelled."""
        kept = -1
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            if self.holders.epoch != kept and self.holders.peers:
                kept = self.holders.epoch
                data = self.holders.encode(time.monotonic())
                await asyncio.to_thread(write_peers, self._state, data)

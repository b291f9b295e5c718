"""An exit node and an agent in one process: what `edgetun http`, `edgetun up` and `edgetun demo` are made of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from edgetun.local_session import LocalSession
from edgetun_agent.observe import AgentListener, RecentRequests
from edgetun_agent.serve import Origins
from edgetun_core.errors import ConfigError
from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import Snapshot, TunnelRule
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.node import ExitNode, NodeLimits

log = logging.getLogger("edgetun")


class LocalEdge:
    """Composes the two; made on the loop that it runs on."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        listener: AgentListener | None = None,
        limits: NodeLimits | None = None,
        probe: bool = True,
    ) -> None:
        self.recent = RecentRequests()
        self.origins = Origins((), listener=listener, recent=self.recent, probe=probe)
        self.node = ExitNode("local", limits=limits)
        self.session = LocalSession(self.origins)
        self.http_port = -1
        self.https_port = -1
        self._making_ca: asyncio.Task[None] | None = None
        self.apply(snapshot)

    def apply(self, snapshot: Snapshot) -> None:
        """Serves another set of tunnels from now on."""
        self.origins.update(snapshot.tunnels)
        self.node.apply(snapshot)
        self.node.registry.remove(self.session)
        self.node.registry.add(self.session, [tunnel.id for tunnel in snapshot.tunnels])

    async def listen(
        self,
        host: str,
        http_port: int,
        https_port: int,
        state: Path,
        certificates: Iterable[tuple[Path, Path]] = (),
        *,
        http3: bool = True,
    ) -> None:
        """Opens the fronts; a port of -1 leaves one out. Raises AddressUnavailable."""
        taken = await self.node.listen_streams(host)
        if http_port < 0 and https_port < 0 and not self.node.streams.ports:
            for problem in taken.values():
                raise problem
            raise ConfigError(
                "nothing to listen on: --http-port and --https-port are both -1", remedy="give one a port"
            )
        if http_port >= 0:
            self.http_port = (await self.node.listen_http(host, http_port)).port
        if https_port >= 0:
            ca, given = DevelopmentCA(state / "ca"), list(certificates)
            store = CertificateStore(
                given,
                development=ca,
                may_issue=lambda name: self.node.router.table.find(name.encode()) is not None,
            )
            self.https_port = (await self.node.listen_https(host, https_port, store, http3=http3)).port
            self._making_ca = asyncio.create_task(self._make_ca(ca, not given), name="make the development CA")

    def urls_of(self, tunnel: TunnelRule, host: str) -> list[str]:
        """Where visitors find a tunnel; `host` is what is listened on."""
        stream = tunnel.stream
        if stream is None:
            return [url for hostname in tunnel.hostnames for url in self.urls(hostname)]
        if stream.port:
            return [f"{stream.kind}://{f'[{host}]' if ':' in host else host}:{stream.port}"]
        return [f"tls://{hostname}:{self.https_port}" for hostname in tunnel.hostnames if self.https_port >= 0]

    def urls(self, hostname: str) -> list[str]:
        """Where visitors find a hostname."""
        found = []
        if self.http_port >= 0:
            found.append(f"http://{hostname}" + ("" if self.http_port == 80 else f":{self.http_port}"))
        if self.https_port >= 0:
            found.append(f"https://{hostname}" + ("" if self.https_port == 443 else f":{self.https_port}"))
        return found

    async def _make_ca(self, ca: DevelopmentCA, is_told: bool) -> None:
        """So that it can be imported before the first visitor speaks TLS; in a thread, as its library takes a while to load."""
        try:
            await asyncio.to_thread(lambda: ca.ca_pem)
        except ConfigError as error:
            log.warning("%s", error)
            return
        if is_told:
            log.info("https is signed by %s; import that, or browsers will warn", ca.certificate_file)

    async def drain(self, deadline_s: float) -> None:
        """Goes away in good order."""
        await self.node.drain(deadline_s)
        self.node.registry.remove(self.session)
        await self.origins.close()

    async def close(self) -> None:
        """Goes away at once."""
        if self._making_ca is not None:
            await asyncio.wait((self._making_ca,))
        await self.node.close()
        await self.origins.close()

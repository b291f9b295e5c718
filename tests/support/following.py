"""A control that exit nodes follow over real mTLS, without Kubernetes: a stub says whose ServiceAccount token is good."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from edgetun_control.exits.fleet import Fleet, FollowingNode, SilentFleetListener
from edgetun_control.exits.identity import Account, Authority, IdentityService
from edgetun_control.exits.server import ExitListener, build_exit_app
from edgetun_core.control_stream import SessionInfo
from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import Snapshot

TOKEN = "service-account-token"


class Reviewer:
    async def review(self, token: str) -> Account | None:
        return Account("edgetun-system", "edgetun-exit-pool-here") if token == TOKEN else None


class Published:
    """What a publisher would hold."""

    def __init__(self, present: Snapshot) -> None:
        self.present = present

    def region_snapshot(self, pool: str, region: str) -> Snapshot:
        return msgspec.structs.replace(self.present, pool=pool, region=region)

    def region_change(self, pool: str, region: str, since: int) -> None:
        return None


class Heard(SilentFleetListener):
    def __init__(self) -> None:
        self.opened: list[SessionInfo] = []
        self.closed: list[SessionInfo] = []

    def session_opened(self, node: FollowingNode, session: SessionInfo) -> None:
        self.opened.append(session)

    def session_closed(self, node: FollowingNode, session: SessionInfo) -> None:
        self.closed.append(session)


class Control:
    """Restartable, on one port."""

    def __init__(self, ca: DevelopmentCA, folder: Path, published: Published) -> None:
        self.ca, self.folder, self.published = ca, folder, published
        self.port = 0

    async def start(self) -> None:
        self.heard = Heard()
        self.fleet = Fleet(self.published, time.monotonic, self.heard)
        authority = Authority(self.ca.ca_pem, (self.folder / "ca/ca.key").read_bytes())
        identities = IdentityService(Reviewer(), lambda: authority, "edgetun-system", own_names=["control.example"])
        self.listener = ExitListener(build_exit_app(self.fleet, identities))
        await self.listener.start("127.0.0.1", self.port, self.ca.identity(["127.0.0.1"]), self.ca.ca_pem)
        self.port = self.listener.port

    async def stop(self) -> None:
        await self.listener.close()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def publish(self, present: Snapshot) -> None:
        self.published.present = present
        self.fleet.published()

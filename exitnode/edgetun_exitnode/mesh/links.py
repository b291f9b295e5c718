"""Who hears of a session with another exit node: at the end that was dialled, and at the one that dials."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edgetun_core.errors import AuthError, EdgetunError, SessionLost
from edgetun_core.transport.runner import SessionRunner
from edgetun_exitnode.mesh.peer import Peer
from edgetun_exitnode.mesh.serving import Serving

if TYPE_CHECKING:
    from edgetun_exitnode.mesh.mesh import Mesh


class Accepted:
    """Hears of a session that another exit node opened."""

    def __init__(self, mesh: Mesh, serving: Serving) -> None:
        self._mesh = mesh
        self._serving = serving
        self._peer: Peer | None = None

    def on_session_open(self, runner: SessionRunner) -> None:
        name = self._mesh.who(runner.link)
        if name is None:
            runner.close(AuthError("not an exit node of this pool"))
            return
        self._serving.sender = str(name)
        self._peer = self._mesh.peer(str(name))
        self._mesh.opened(self._peer, runner, False)

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        if self._peer is not None:
            self._mesh.takes_no_more(self._peer, runner)

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        if self._peer is not None:
            self._mesh.closed(self._peer, runner, error)


class Dialled:
    """Hears of a session that this node opened."""

    def __init__(self, mesh: Mesh, peer: Peer, opened: asyncio.Future[SessionRunner]) -> None:
        self._mesh = mesh
        self._peer = peer
        self._opened = opened

    def on_session_open(self, runner: SessionRunner) -> None:
        name = self._mesh.who(runner.link)
        if str(name) != self._peer.name:
            runner.close(AuthError(f"at the address of exit node {self._peer.name} is {name or 'another'}"))
            return
        self._mesh.opened(self._peer, runner, True)
        if not self._opened.done():
            self._opened.set_result(runner)

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        self._mesh.takes_no_more(self._peer, runner)

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        self._mesh.closed(self._peer, runner, error)
        if not self._opened.done():
            self._opened.set_exception(error or SessionLost("the exit node closed the session"))

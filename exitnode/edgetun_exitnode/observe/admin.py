"""The admin listener of an exit node: its metrics, and `POST /v1/purge` for who can read the node's state folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgetun_core.admin import Actions, AdminServer, start_admin
from edgetun_core.errors import ConfigError
from edgetun_core.purge import ADMIN_FILE, PURGE_PATH, AdminAccess, decode_order
from edgetun_exitnode.node import ExitNode

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def start_exit_node_admin(
    host: str, port: int, node: ExitNode, collect: Callable[[], Iterable[Metric]], state: Path
) -> AdminServer:
    """Listens, and leaves where and with which secret in `state` for `edgetun purge`. The secret is new at every start."""

    async def purge(body: bytes) -> dict[str, Any]:
        report: dict[str, Any] = msgspec.to_builtins(await node.purge_everywhere(decode_order(body)))
        return report

    token = secrets.token_urlsafe(32)
    server = start_admin(host, port, collect, node.readiness, Actions(token, {PURGE_PATH: purge}))
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{reached}]:{server.port}" if ":" in reached else f"http://{reached}:{server.port}"
    try:
        write_access(state, AdminAccess(url, token))
    except OSError as error:
        server.close()
        raise ConfigError(
            f"{state / ADMIN_FILE} cannot be written: {error.strerror}", remedy="choose another --state"
        ) from error
    return server


def write_access(state: Path, access: AdminAccess) -> None:
    """Writes the file as a whole, readable by its owner only."""
    state.mkdir(parents=True, exist_ok=True)
    part = state / f"{ADMIN_FILE}.{os.getpid()}"
    with suppress(FileNotFoundError):
        part.unlink()
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.encode(access))
    part.replace(state / ADMIN_FILE)

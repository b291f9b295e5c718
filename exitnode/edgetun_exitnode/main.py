"""`edgetun-exitnode`: one exit node as a process of its own. Only wires."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgetun_core.errors import ConfigError, EdgetunError
from edgetun_core.exits import exit_code_of
from edgetun_core.logs import setup_logging
from edgetun_core.pki import DevelopmentCA
from edgetun_core.process import (
    StopSignals,
    parse_host_port,
    raise_open_files_limit,
    run_loop,
    seconds_since_start,
    settle,
)
from edgetun_core.settings import load_settings
from edgetun_core.snapshot import Snapshot, decode_snapshot
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontLimits
from edgetun_exitnode.node import ExitNode, NodeLimits
from edgetun_exitnode.settings import ExitNodeSettings, parse_certificate_pairs

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("edgetun.exitnode")

LOOK_EVERY_S = 0.5


def main() -> int:
    """Runs until it is stopped; the exit code is one of `ExitCode`."""
    started = time.monotonic()
    try:
        settings = load_settings(ExitNodeSettings, sys.argv[1:], os.environ, prog="edgetun-exitnode")
        setup_logging(json=settings.json, quiet=settings.quiet, level=settings.log_level)
        return run_loop(_run(settings, started))
    except EdgetunError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return exit_code_of(error)


async def _run(settings: ExitNodeSettings, started: float) -> int:
    if bool(settings.control) == (settings.snapshot is not None):
        raise ConfigError("give either --control or --snapshot", remedy="see edgetun-exitnode --help")
    raise_open_files_limit()
    signals = StopSignals()
    limits = NodeLimits(
        FrontLimits(max_connections=settings.max_connections),
        settings.cache_bytes,
        settings.cache_disk_bytes,
        settings.cache_bytes_per_tunnel,
    )
    node = ExitNode(settings.name, limits=limits)
    admin = None
    follower: asyncio.Task[None] | None = None
    try:
        node.open_disk(settings.cache_folder or settings.state / "cache")
        if settings.control:
            from edgetun_exitnode.control.wiring import follow_control  # aiohttp: a quarter of a second

            await _listen(node, settings, tunnel=False)
            follower = await follow_control(node, settings, settings.tunnel_port)
        else:
            assert settings.snapshot is not None
            snapshot = read_snapshot(settings.snapshot)
            if not snapshot.credential_keys:
                log.warning(
                    "%s holds no keys that agents' credentials are signed with, so no agent can be let in; "
                    "`edgetun serve` and --control bring them",
                    settings.snapshot,
                )
            node.apply(snapshot)
            await _listen(node, settings)
            follower = asyncio.create_task(_follow(node, settings.snapshot), name="follow the snapshot file")
        log.info("ready in %.2f s", seconds_since_start(started))
        settle()
        if settings.metrics:
            from edgetun_exitnode.observe.admin import start_exit_node_admin

            host, port = parse_host_port(settings.metrics, "--metrics")
            admin = start_exit_node_admin(host, port, node, lambda: _collect(node), settings.state)
        stopping = asyncio.create_task(signals.wait(), name="stop signal")
        await asyncio.wait((follower, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if follower.done():
            follower.result()  # it has no end of its own
        log.info("draining for at most %g s", settings.drain_s)
        await node.drain(settings.drain_s)
    finally:
        if follower is not None:
            follower.cancel()
            with suppress(asyncio.CancelledError):
                await follower
        if admin is not None:
            admin.close()
        await node.close()
    return 0


async def _listen(node: ExitNode, settings: ExitNodeSettings, *, tunnel: bool = True) -> None:
    if settings.http_port < 0 and settings.https_port < 0:
        raise ConfigError("no visitor can come: --http-port and --https-port are both -1", remedy="give one a port")
    ca = DevelopmentCA(settings.state / "ca")
    if settings.http_port >= 0:
        front = await node.listen_http(settings.listen, settings.http_port)
        log.info("http on %s:%d", settings.listen, front.port)
    if settings.https_port >= 0:
        store = CertificateStore(parse_certificate_pairs(settings.certificate), development=ca)
        front = await node.listen_https(settings.listen, settings.https_port, store, http3=settings.http3)
        log.info("https on %s:%d%s", settings.listen, front.port, ", http/3 too" if settings.http3 else "")
    await node.listen_streams(settings.listen)
    if tunnel and settings.tunnel_port >= 0:
        identity = ca.identity(settings.tunnel_name)
        tls, quic = await node.listen_tunnel(
            settings.listen, settings.tunnel_port, identity, quic_engine=settings.quic_engine, state=settings.state
        )
        log.info("agents on %s, TCP %d and UDP %d", settings.listen, tls, quic)


def read_snapshot(path: Path) -> Snapshot:
    """Reads a snapshot file. Raises ConfigError that says what is wrong with it."""
    try:
        return decode_snapshot(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"snapshot {path}: {error.strerror}", remedy="make one with `edgetun compile`") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(f"snapshot {path}: {error}", remedy="make it again with `edgetun compile`") from error


async def _follow(node: ExitNode, path: Path) -> None:
    """Takes the snapshot file anew whenever it changed; one that cannot be read leaves things as they are."""
    seen = _stamp(path)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        stamp = _stamp(path)
        if stamp == seen:
            continue
        seen = stamp
        try:
            snapshot = read_snapshot(path)
        except ConfigError as error:
            log.warning("keeping the last good snapshot: %s", error)
            continue
        node.apply(snapshot)
        log.info("snapshot %d: %d tunnels", snapshot.version, len(snapshot.tunnels))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _collect(node: ExitNode) -> Iterable[Metric]:
    from edgetun_exitnode.observe.metrics import collect_exit_node

    return collect_exit_node(node)


if __name__ == "__main__":
    sys.exit(main())

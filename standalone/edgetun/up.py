"""`edgetun up -f tunnel.yaml`: the tunnels of manifest files, in one process; changed files take effect at once."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path

from edgetun.foreground import foreground
from edgetun.local_edge import LocalEdge
from edgetun.manifests import compile_files, stamps
from edgetun.settings import UpSettings, default_state_dir
from edgetun_core.errors import ConfigError
from edgetun_core.exits import ExitCode
from edgetun_core.process import run_loop
from edgetun_core.snapshot import PoolRule, Snapshot
from edgetun_exitnode.node import NodeLimits

log = logging.getLogger("edgetun.up")

LOOK_EVERY_S = 0.5


def run(settings: UpSettings) -> int:
    """Runs until it is stopped; returns the exit code."""
    compiled = compile_files(settings.file, settings.pool, settings.region, version=_version())
    for line in compiled.lines:
        sys.stderr.write(f"{line}\n")
    if compiled.snapshot is None:
        return ExitCode.USAGE
    return run_loop(_run(settings, compiled.snapshot, compiled.certificates))


async def _run(settings: UpSettings, snapshot: Snapshot, certificates: tuple[tuple[Path, Path], ...]) -> int:
    async with foreground(settings) as shown:
        edge = LocalEdge(snapshot, limits=NodeLimits.of(snapshot.pool_rule))
        follower: asyncio.Task[None] | None = None
        try:
            edge.node.open_disk((settings.state or default_state_dir()) / "cache")
            await edge.listen(
                settings.listen,
                settings.http_port,
                settings.https_port,
                settings.state or default_state_dir(),
                certificates,
                http3=settings.http3,
            )
            if settings.watch and "-" not in settings.file:
                follower = asyncio.create_task(_follow(edge, settings), name="follow the manifests")
                follower.add_done_callback(lambda task: shown.signals.stop() if not task.cancelled() else None)
            await shown.serve(
                edge.node,
                lambda: _urls(edge, settings.listen),
                recent=edge.recent,
                origins=edge.origins,
                metrics=settings.metrics,
                state=settings.state,
            )
            await edge.drain(settings.drain_s)
        finally:
            if follower is not None:
                follower.cancel()
                with suppress(asyncio.CancelledError):
                    await follower
            await edge.close()
    return ExitCode.OK


def _urls(edge: LocalEdge, host: str) -> list[tuple[str, str]]:
    snapshot = edge.node.snapshot
    if snapshot is None:
        return []
    return [(url, tunnel.origins[0].url) for tunnel in snapshot.tunnels for url in edge.urls_of(tunnel, host)]


async def _follow(edge: LocalEdge, settings: UpSettings) -> None:
    """Takes changed files; ones with an error change nothing, and say why."""
    seen = stamps(settings.file)
    limits = edge.node.snapshot.pool_rule if edge.node.snapshot is not None else PoolRule()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        now = stamps(settings.file)
        if now == seen:
            continue
        seen = now
        try:
            compiled = await asyncio.to_thread(
                compile_files, settings.file, settings.pool, settings.region, version=_version()
            )
        except ConfigError as error:
            log.warning("the files changed, but the tunnels stay as they were: %s", error)
            continue
        for line in compiled.lines:
            log.warning("%s", line)
        if compiled.snapshot is None:
            log.warning("the files changed, but the tunnels stay as they were until the errors above are mended")
            continue
        edge.apply(compiled.snapshot)
        log.info("the files changed: %d tunnels", len(compiled.snapshot.tunnels))
        if compiled.snapshot.pool_rule != limits:
            log.warning("the limits of the ExitPool changed; they take effect when edgetun is started again")


def _version() -> int:
    return time.time_ns() // 1_000_000

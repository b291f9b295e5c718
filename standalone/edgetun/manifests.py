"""Manifest files to a snapshot, for `edgetun up` and `edgetun compile`; says what `edgetun validate` says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgetun.validate import LOCAL_REGION, validate_files
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.token import AgentToken
from edgetun_core.compile import Plan
from edgetun_core.errors import ConfigError
from edgetun_core.snapshot import Snapshot


class CompiledFiles(NamedTuple):
    """What files come to. `lines` are their problems, rendered; `snapshot` is None when one of them is an error."""

    snapshot: Snapshot | None
    lines: tuple[str, ...]
    certificates: tuple[tuple[Path, Path], ...]


def compile_files(paths: Sequence[str], pool: str, region: str, *, version: int) -> CompiledFiles:
    """Compiles files for one region of one pool; without a pool's name, for all of them together.

    Raises ConfigError when the pool or the region named is not there.
    """
    if not paths:
        raise ConfigError("no manifest is named", remedy="write -f tunnel.yaml")
    validation = validate_files(paths)
    lines = tuple(f"{problem.severity}: {problem.render()}" for problem in validation.problems)
    lines += tuple(
        f"warning: {resource.ref}: has no effect without a cluster; use edgetun token instead"
        for resource in validation.resources
        if isinstance(resource, AgentToken)
    )
    if not validation.is_servable:
        return CompiledFiles(None, lines, ())
    pools = [resource for resource in validation.resources if isinstance(resource, ExitPool)]
    plan = Plan(validation.resources)
    if not pool and not region:
        first = pools[0].metadata.name if len(pools) == 1 else ""
        return CompiledFiles(plan.everything(first, LOCAL_REGION, version), lines, certificates_of(pools))
    chosen = _choose_pool(pools, pool)
    regions = [each.name for each in chosen.spec.regions]
    if region and region not in regions:
        raise ConfigError(
            f'ExitPool {chosen.metadata.name} has no region "{region}"', remedy=f"it has {', '.join(regions)}"
        )
    snapshot = plan.snapshot(chosen.metadata.name, region or regions[0], version)
    return CompiledFiles(snapshot, lines, certificates_of([chosen]))


def _choose_pool(pools: Sequence[ExitPool], name: str) -> ExitPool:
    if not name and len(pools) == 1:
        return pools[0]
    for pool in pools:
        if pool.metadata.name == name:
            return pool
    names = ", ".join(pool.metadata.name for pool in pools) or "none"
    raise ConfigError(f'no ExitPool is called "{name}" in the files', remedy=f"they have: {names}")


def certificates_of(pools: Iterable[ExitPool]) -> tuple[tuple[Path, Path], ...]:
    """The certificate files that pools name, for visitors."""
    return tuple(
        (Path(certificate.cert_file), Path(certificate.key_file or ""))
        for pool in pools
        for certificate in pool.spec.certificates
        if certificate.cert_file is not None
    )


def stamps(paths: Iterable[str]) -> tuple[tuple[str, int, int], ...]:
    """What tells that files, or the files in folders, have changed."""
    found = []
    for name in paths:
        path = Path(name)
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            try:
                status = file.stat()
            except OSError:
                continue
            found.append((str(file), status.st_mtime_ns, status.st_size))
    return tuple(found)

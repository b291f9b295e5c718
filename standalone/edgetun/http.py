"""`edgetun http 3000`: a local server behind an exit node, in one process."""

from __future__ import annotations

from pathlib import Path

from edgetun.foreground import foreground
from edgetun.local_edge import LocalEdge
from edgetun.quick import quick_snapshot, read_hostname
from edgetun.settings import HttpSettings, default_state_dir
from edgetun_agent.origin.address import check_ca_file, read_host_header, read_typed_origin
from edgetun_core.exits import ExitCode
from edgetun_core.process import run_loop
from edgetun_core.snapshot import OriginRule


def run(settings: HttpSettings) -> int:
    """Runs until it is stopped; returns the exit code."""
    return run_loop(_run(settings))


async def _run(settings: HttpSettings) -> int:
    check_ca_file(settings.origin_ca, "--origin-ca")
    typed = read_typed_origin(settings.origin)
    origin = OriginRule(
        "default",
        typed.url,
        protocol=typed.protocol or "http1",
        host_header=read_host_header(settings.host_header),
        tls_verify=not settings.origin_insecure,
        tls_ca_file=settings.origin_ca,
    )
    hostname = read_hostname(settings.host, Path.cwd().name)
    snapshot = quick_snapshot(origin, hostname, cache_s=settings.cache_s, collapse=settings.collapse)
    async with foreground(settings) as shown:
        edge = LocalEdge(snapshot)
        try:
            await edge.listen(
                settings.listen,
                settings.http_port,
                settings.https_port,
                settings.state or default_state_dir(),
                http3=settings.http3,
            )
            urls = [(url, origin.url) for url in edge.urls(hostname)]
            await shown.serve(
                edge.node,
                lambda: urls,
                recent=edge.recent,
                origins=edge.origins,
                metrics=settings.metrics,
                state=settings.state,
            )
            await edge.drain(settings.drain_s)
        finally:
            await edge.close()
    return ExitCode.OK

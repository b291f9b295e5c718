"""`edgetun-control`: one replica of control on a cluster. Only wires."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from edgetun_cluster.client import Cluster
from edgetun_cluster.connection import connect
from edgetun_control.cluster_control import ClusterControl
from edgetun_control.settings import ControlServiceSettings
from edgetun_core.errors import EdgetunError
from edgetun_core.exits import ExitCode, exit_code_of
from edgetun_core.logs import setup_logging
from edgetun_core.process import StopSignals, parse_host_port, raise_open_files_limit, run_loop
from edgetun_core.settings import load_settings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("edgetun.control")


def main() -> int:
    """Runs until it is stopped; the exit code is one of `ExitCode`."""
    started = time.monotonic()
    try:
        settings = load_settings(ControlServiceSettings, sys.argv[1:], os.environ, prog="edgetun-control")
        setup_logging(json=settings.json, quiet=settings.quiet, level=settings.log_level)
        return run_loop(_run(settings, started))
    except EdgetunError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return exit_code_of(error)


async def _run(settings: ControlServiceSettings, started: float) -> int:
    raise_open_files_limit()
    signals = StopSignals()
    connection = await connect(settings.kubeconfig)
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(connection, user_agent="edgetun-control"))
        control = ClusterControl(
            cluster,
            settings.namespace or connection.namespace,
            domain=settings.domain,
            adhoc_pool=settings.adhoc_pool,
            more_names=settings.control_name,
            max_connections=settings.max_connections,
        )
        stack.push_async_callback(control.close)
        if settings.metrics:
            from edgetun_core.admin import start_admin

            host, port = parse_host_port(settings.metrics, "--metrics")
            stack.callback(start_admin(host, port, lambda: _collect(control), control.readiness).close)
        starting = asyncio.create_task(
            control.start(settings.listen, settings.port, settings.exit_port, wait_s=settings.wait_s), name="start"
        )
        stopping = asyncio.create_task(signals.wait(), name="stop signal")
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            log.info("ready in %.2f s", time.monotonic() - started)
            await stopping
        else:
            starting.cancel()
            await asyncio.wait((starting,))
    return ExitCode.OK


def _collect(control: ClusterControl) -> Iterable[Metric]:
    from edgetun_control.metrics import collect_control

    return collect_control(control)


if __name__ == "__main__":
    sys.exit(main())

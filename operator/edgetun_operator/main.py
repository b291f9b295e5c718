"""`edgetun-operator`: only wires. Loses the Lease -> ends, and is started again as one that waits."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from edgetun_cluster.client import Cluster
from edgetun_cluster.connection import Connection, connect
from edgetun_cluster.events import EventRecorder
from edgetun_cluster.leases import LeaderElection
from edgetun_core.errors import EdgetunError
from edgetun_core.exits import ExitCode, exit_code_of
from edgetun_core.logs import setup_logging
from edgetun_core.process import StopSignals, parse_host_port, run_loop
from edgetun_core.settings import load_settings
from edgetun_operator.controller import Controller
from edgetun_operator.desired.fleet import CONTROL_PORT, TUNNEL_PORT, Fleet
from edgetun_operator.desired.labels import MANAGER
from edgetun_operator.metrics import collect_operator, readiness
from edgetun_operator.reconcile.agenttoken import TokenReconciler
from edgetun_operator.reconcile.apply import Applier
from edgetun_operator.reconcile.exitpool import PoolReconciler
from edgetun_operator.reconcile.own_ca import OwnCA
from edgetun_operator.reconcile.reservation import ReservationReconciler
from edgetun_operator.reconcile.status import StatusWriter
from edgetun_operator.reconcile.system import SystemReconciler
from edgetun_operator.reconcile.tunnel import TunnelReconciler
from edgetun_operator.settings import OperatorSettings
from edgetun_operator.triggers import run_triggers
from edgetun_operator.work import WorkQueue
from edgetun_operator.world import World

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("edgetun.operator")

LEASE_NAME: Final = "edgetun-operator"
CONTROL_SERVICE: Final = "edgetun-control"


def main() -> int:
    """Runs until it is stopped; the exit code is one of `ExitCode`."""
    try:
        settings = load_settings(OperatorSettings, sys.argv[1:], os.environ, prog="edgetun-operator")
        setup_logging(json=settings.json, quiet=settings.quiet, level=settings.log_level)
        return run_loop(_run(settings))
    except EdgetunError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return exit_code_of(error)


async def _run(settings: OperatorSettings) -> int:
    signals = StopSignals()
    connection = await connect(settings.kubeconfig)
    namespace = settings.namespace or connection.namespace
    identity = settings.identity or f"{socket.gethostname()}-{secrets.token_hex(3)}"
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Cluster(connection, user_agent="edgetun-operator"))
        events = EventRecorder(cluster, "edgetun-operator", manager=MANAGER, instance=identity)
        events.start()
        stack.push_async_callback(events.close)
        world = World(cluster, namespace)
        stack.push_async_callback(world.close)
        queue = WorkQueue()
        applier, statuses = Applier(cluster), StatusWriter(cluster, events)
        controller = _build_controller(settings, namespace, cluster, world, queue, applier, statuses)
        election = LeaderElection(cluster, LEASE_NAME, namespace, identity, manager=MANAGER)
        if settings.metrics:
            from edgetun_core.admin import start_admin

            def collect() -> Iterable[Metric]:
                leads = election.is_leader or not settings.leader_elect
                return collect_operator(cluster, world, queue, applier, statuses, leads)

            host, port = parse_host_port(settings.metrics, "--metrics")
            stack.callback(start_admin(host, port, collect, lambda: readiness(world)).close)
        world.start()
        working = asyncio.create_task(_work(settings, connection, world, queue, controller, election), name="operator")
        stopping = asyncio.create_task(signals.wait(), name="stop signal")
        lost = asyncio.create_task(election.lost.wait(), name="lease lost")
        await asyncio.wait((working, stopping, lost), return_when=asyncio.FIRST_COMPLETED)
        failed = working.done() or lost.done()
        for task in (working, stopping, lost):
            task.cancel()
        results = await asyncio.gather(working, stopping, lost, return_exceptions=True)
        await election.close()
        if isinstance(results[0], Exception):
            raise results[0]
    return ExitCode.FAILURE if failed else ExitCode.OK


async def _work(
    settings: OperatorSettings,
    connection: Connection,
    world: World,
    queue: WorkQueue,
    controller: Controller,
    election: LeaderElection,
) -> None:
    await world.synced()
    if settings.leader_elect:
        election.start()
        await election.elected()
    controller.start()
    log.info("watching %d pools, %d tunnels, %d tokens", len(world.pools), len(world.tunnels), len(world.tokens))
    async with asyncio.TaskGroup() as group:
        group.create_task(queue.run(controller.reconcile, settings.workers), name="reconcile")
        group.create_task(run_triggers(queue.add, connection), name="triggers")


def _build_controller(
    settings: OperatorSettings,
    namespace: str,
    cluster: Cluster,
    world: World,
    queue: WorkQueue,
    applier: Applier,
    statuses: StatusWriter,
) -> Controller:
    service = f"{CONTROL_SERVICE}.{namespace}.svc"
    control_urls = settings.control_url or (f"https://{service}:{TUNNEL_PORT}",)
    for_nodes = settings.control_for_nodes or f"https://{service}:{CONTROL_PORT}"
    names = [CONTROL_SERVICE, f"{CONTROL_SERVICE}.{namespace}", service, f"{service}.cluster.local"]
    names += [urlsplit(url).hostname or "" for url in (*control_urls, for_nodes)]
    names += settings.control_name
    ca = OwnCA()

    def fleet(ca_pem: str) -> Fleet:
        return Fleet(
            namespace=namespace,
            image=settings.exit_image,
            pull_policy=settings.exit_image_pull_policy,
            pull_secrets=settings.exit_image_pull_secret,
            control=for_nodes,
            ca_pem=ca_pem,
            http3=settings.http3,
            log_level=settings.exit_log_level,
        )

    def ca_changed() -> None:
        controller.ca_changed()

    controller = Controller(
        world,
        queue,
        SystemReconciler(cluster, world, ca, list(dict.fromkeys(names)), ca_changed),
        PoolReconciler(cluster, world, applier, statuses, ca, fleet),
        TunnelReconciler(cluster, world, statuses, settings.reclaim_policy),
        TokenReconciler(cluster, world, applier, statuses, ca, control_urls),
        ReservationReconciler(cluster, world, statuses),
    )
    return controller


if __name__ == "__main__":
    sys.exit(main())

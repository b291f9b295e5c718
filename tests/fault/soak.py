"""Half an hour of everything at once over real processes, and whether memory, file descriptors, threads and tasks stay flat.

    make soak                                            30 minutes
    python tests/fault/soak.py --minutes 10 --record docs/soak.md

A fleet on a real API server: operator, control, two exit nodes that relay to each other, two agents that are cut off every so often, and
a third that is killed and comes again. Ends with 1 and says which process grows when one does. With --record the table goes into a page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import re
import secrets
import sys
import tempfile
import time
import urllib.error
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgetun_core.pki import DevelopmentCA
from support.chaos.carrying_out import Ways
from support.chaos.mixed_load import Doors, MixedLoad, echo_services
from support.chaos.origin import accountant
from support.cluster import ControlPlane, free_ports
from support.fleet import AgentPlan, Fleet, Member
from support.impairment import GOOD, Impairment
from support.kube_binaries import NotHere, find_or_build
from support.manifests import read_crds
from support.trend import Allowance, Trend, decide_trend

SAMPLE_EVERY_S = 5.0
WARM_UP_SHARE = 1 / 3
TROUBLE_EVERY_S = 25.0
MIB = 1024 * 1024

METRICS = {
    "RSS": ("process_resident_memory_bytes", Allowance(0.04, 4 * MIB)),
    "file descriptors": ("process_open_fds", Allowance(0.05, 5)),
    "threads": ("edgetun_threads", Allowance(0.0, 1)),
    "tasks": ("edgetun_event_loop_tasks", Allowance(0.05, 5)),
}
AGENTS = (
    AgentPlan("alpha", ("web", "tcp", "udp"), 2, ("--transport=tls",)),
    AgentPlan("beta", ("web", "tcp", "udp"), 2),
    AgentPlan("gamma", ("web",), 1),
)
WATCHED = ("control", "exit-1", "exit-2", "alpha", "beta")
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"


@dataclass(frozen=True, slots=True)
class Row:
    process: str
    what: str
    trend: Trend
    first: float
    last: float


class Samples:
    """What the watched processes told, by process and metric."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, str], list[tuple[float, float]]] = {}
        self.missed = 0

    async def take(self, now: float, members: Sequence[Member]) -> None:
        for member in members:
            try:
                told = await asyncio.to_thread(member.metrics)
            except (OSError, urllib.error.URLError):
                self.missed += 1
                continue
            for what, (name, _) in METRICS.items():
                if name in told:
                    self.points.setdefault((member.name, what), []).append((now, told[name]))

    def rows(self) -> list[Row]:
        found = []
        for (process, what), points in self.points.items():
            warm_up_s = WARM_UP_SHARE * (points[-1][0] - points[0][0])
            trend = decide_trend(points, warm_up_s, METRICS[what][1])
            found.append(Row(process, what, trend, points[0][1], points[-1][1]))
        return found


async def trouble(fleet: Fleet, ways: Ways, seed: int) -> None:
    """Cuts agents off now and then: connections reset, a NAT that forgets, three seconds of black hole, an agent killed."""
    rng = random.Random(seed)
    while True:
        for what in ("reset", "rebind", "black hole", "kill"):
            await asyncio.sleep(TROUBLE_EVERY_S)
            node = rng.choice(fleet.nodes)
            if what == "reset":
                ways.reset(node)
            elif what == "rebind":
                await ways.rebind(node)
            elif what == "black hole":
                ways.set(node, Impairment(is_black_hole=True))
                await asyncio.sleep(3.0)
                ways.set(node, GOOD)
            else:
                gamma = fleet.members["gamma"]
                gamma.kill()
                await asyncio.to_thread(gamma.gone)
                del gamma.runs[:-1]
                await asyncio.to_thread(gamma.start)


async def run(arguments: argparse.Namespace, cluster: ControlPlane, folder: Path) -> int:
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(accountant("web", deque(maxlen=1000), 3.0))
        tcp_origin, udp_origin = await stack.enter_async_context(echo_services())
        unique = secrets.token_hex(3)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"soak-{unique}"}}
        cluster.install_crds(read_crds())
        cluster.client.create(namespace)
        fleet = Fleet(cluster, f"soak-{unique}", f"p{unique}", folder)
        stack.push_async_callback(asyncio.to_thread, fleet.__exit__)
        ways = await stack.enter_async_context(Ways(fleet))
        tcp_port, udp_port = free_ports(2)
        tunnels: dict[str, dict[str, Any]] = {
            "web": {"origin": {"url": f"http://127.0.0.1:{origin.port}"}, "reconnectGrace": "5s"},
            "tcp": {"origin": {"url": f"tcp://127.0.0.1:{tcp_origin}"}, "tcp": {"port": tcp_port}},
            "udp": {"origin": {"url": f"udp://127.0.0.1:{udp_origin}"}, "udp": {"port": udp_port, "idleTimeout": "5s"}},
        }
        ports = {"ports": {"tcp": [{"from": tcp_port}], "udp": [{"from": udp_port}]}}
        flags = (
            "--https-port={https}",
            "--cache-bytes=16000000",
            f"--certificate={_certificate(folder, fleet.host('web'))}",
        )
        await asyncio.to_thread(fleet.start, tunnels, AGENTS, is_by_way=True, pool_spec=ports, exit_flags=flags)
        nodes = [(fleet.address[node], node) for node in fleet.nodes]
        doors = Doors(
            tuple((address, fleet.http_port[node]) for address, node in nodes),
            fleet.https_port["exit-1"],
            tuple((address, tcp_port) for address, _ in nodes),
            tuple((address, udp_port) for address, _ in nodes),
            fleet.host("web"),
        )
        load = MixedLoad(doors, arguments.seed)
        samples = Samples()
        began = time.monotonic()
        load.start()
        troubling = asyncio.create_task(trouble(fleet, ways, arguments.seed))
        watched = [fleet.members[name] for name in WATCHED]
        try:
            while (gone_s := time.monotonic() - began) < arguments.minutes * 60:
                await samples.take(gone_s, watched)
                _tell(gone_s, samples, load)
                dead = [member.name for member in watched if member.has_ended]
                if dead or troubling.done():
                    print(f"ended by themselves: {dead}\n{fleet.said()}")
                    return 1
                await asyncio.sleep(SAMPLE_EVERY_S)
        finally:
            troubling.cancel()
            await load.stop()
        if arguments.samples:
            arguments.samples.write_text(json.dumps({f"{p} {w}": v for (p, w), v in samples.points.items()}))
        noisy = [problem for member in watched for problem in member.unexpected()]
        return report(arguments, samples, load, noisy)


def _certificate(folder: Path, host: str) -> str:
    """What --certificate wants."""
    files = folder / "host.crt", folder / "host.key"
    for file, pem in zip(files, DevelopmentCA(folder / "ca").issue([host]), strict=True):
        file.write_bytes(pem)
    return ":".join(map(str, files))


def _tell(gone_s: float, samples: Samples, load: MixedLoad) -> None:
    rss = {p: f"{points[-1][1] / MIB:.1f}" for (p, what), points in samples.points.items() if what == "RSS"}
    print(
        f"{gone_s:6.0f} s  RSS MiB {rss}  done {sum(load.done.values())}, not answered {sum(load.undone.values())}, "
        f"wrong {len(load.wrong)}",
        flush=True,
    )


def _shown(what: str, value: float) -> str:
    return f"{value / MIB:.2f} MiB" if what == "RSS" else f"{value:.1f}"


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| process | what | median | slope per hour | growth in the time looked at | may be | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        trend = row.trend
        shown = [_shown(row.what, v) for v in (trend.median, trend.slope_per_hour, trend.growth, trend.allowed)]
        lines.append(
            f"| {row.process} | {row.what} | {' | '.join(shown)} | {'flat' if trend.is_flat else '**grows**'} |"
        )
    return "\n".join(lines)


def report(arguments: argparse.Namespace, samples: Samples, load: MixedLoad, noisy: Sequence[str]) -> int:
    rows = samples.rows()
    growing = [row for row in rows if not row.trend.is_flat]
    told = table(rows)
    print(told)
    print("done:", dict(load.done))
    print("not answered:", dict(load.undone))
    problems = [
        f"{row.process}: {row.what} grows by {_shown(row.what, row.trend.slope_per_hour)} per hour "
        f"({_shown(row.what, row.trend.growth)} in the time looked at, {_shown(row.what, row.trend.allowed)} may be)"
        for row in growing
    ]
    problems += [f"wrong: {one}" for one in load.wrong[:20]]
    problems += list(noisy)
    names = [name for name in dir(MixedLoad) if not name.startswith("_") and name not in ("start", "stop")]
    problems += [f"{name} was never done, so this shows nothing of it" for name in names if not load.done[name]]
    if arguments.record:
        _record(arguments, told, load, problems)
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if not problems:
        print(f"flat: {len(rows)} measurements of {len(WATCHED)} processes over {arguments.minutes:g} minutes")
    return 1 if problems else 0


def _record(arguments: argparse.Namespace, told: str, load: MixedLoad, problems: Sequence[str]) -> None:
    """Puts the result between the marks of the page."""
    page = arguments.record.read_text()
    undone = sum(load.undone.values())
    verdict = "Everything is flat." if not problems else "Not flat: " + "; ".join(problems[:10]) + "."
    text = (
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {arguments.minutes:g} minutes, the first {WARM_UP_SHARE:.0%} not looked at; "
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"load average {os.getloadavg()[2]:.1f} at the end. {sum(load.done.values()):,} visits of {len(load.done)} kinds, "
        f"{undone:,} not answered while somebody was cut off, {len(load.wrong)} answered wrongly. {verdict}\n\n{told}"
    )
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{arguments.record} has no place for the result; it wants {BEGIN} and {END}")
    arguments.record.write_text(pattern.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, help="page to put the result into, between its marks")
    parser.add_argument("--samples", type=Path, help="file for all measurements, as JSON")
    arguments = parser.parse_args()
    try:
        cluster = ControlPlane(find_or_build(lambda text: print(text, file=sys.stderr)))
    except NotHere as error:
        raise SystemExit(f"the soak wants a Kubernetes control plane: {error}") from error
    try:
        with tempfile.TemporaryDirectory(prefix="edgetun-soak-") as folder:
            return asyncio.run(run(arguments, cluster, Path(folder)))
    finally:
        cluster.close()


if __name__ == "__main__":
    sys.exit(main())

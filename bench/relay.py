"""What it costs to be relayed: a visitor at an exit node that holds the session, and at one that hands the request to it.

1 KB, nothing cached, both exit nodes and the agent on one core. CPU is of all of them together, per request: what the relay adds
is the difference of the two rows. Beside it stands what each of them takes of it.

python bench/relay.py [--quick]
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from baselines import nginx_origin
from harness import (
    CLIENT_CORE,
    BenchError,
    Column,
    Process,
    Row,
    Running,
    Stage,
    Subject,
    free_port,
    get_status,
    measure,
    parse_arguments,
    report,
    run_main,
    wait_until,
    wrk,
)
from latency import ask_again_and_again
from peers import require
from subjects import BIN

HERE = Path(__file__).resolve().parent
HOST = "shop.test"
VISITORS = 64
COLUMNS = [
    Column("rps", "requests/s", 0, ratio=True),
    Column("cpu", "CPU s per 100,000, all", 2, ratio=True, less_is_better=True),
    Column("visitors", "the visitor's node", 2),
    Column("holder", "the node with the session", 2),
    Column("agent", "the agent", 2),
    Column("p50", "p50 ms", 2),
    Column("errors", "errors"),
    Column("added", "added p50 ms, one visitor", 3),
]


class Fleet(Stage):
    """Control, two exit nodes and an agent whose only session is with the `holder`."""

    def __init__(self, origin: Running, transport: str) -> None:
        super().__init__()
        self.transport = transport
        self.holder_port, self.other_port = free_port(), free_port()
        tunnel, control = free_port(), free_port()
        where = [str(self.folder), f"http://127.0.0.1:{origin.port}", str(control), str(tunnel), transport]
        self.agent = self.start("control-and-agent", [sys.executable, str(HERE / "relay_control.py"), *where])
        wait_until("control", (self.folder / "token").exists, [self.agent])
        self.holder = self._node("holder", control, self.holder_port, tunnel)
        self.other = self._node("other", control, self.other_port, -1)
        self.all = (self.agent, self.holder, self.other)
        wait_until("the holder", lambda: get_status(self.holder_port, HOST) == 200, self.all, 30)
        wait_until("the other node", lambda: get_status(self.other_port, HOST) == 200, self.all, 30)

    def _node(self, name: str, control: int, port: int, tunnel: int) -> Process:
        return self.start(
            name,
            [
                str(BIN / "edgetun-exitnode"), "--control", f"https://127.0.0.1:{control}",
                "--control-ca", str(self.folder / "ca.pem"), "--control-token-file", str(self.folder / "token"),
                "--pool", "pool", "--region", "here", "--name", name, "--state", str(self.folder / name),
                "--listen", "127.0.0.1", "--http-port", str(port), "--https-port", "-1", "--tunnel-port", str(tunnel),
                "--relay-host", "127.0.0.1", "--relay-port", str(free_port()), "--quiet",
                "--quic-engine", "qh3" if self.transport == "quic" else "none",
            ],
        )  # fmt: skip


FLEETS: dict[int, Fleet] = {}
"""By port of what is measured."""


@contextmanager
def subject(origin: Running, *, transport: str, is_relayed: bool) -> Iterator[Running]:
    with Fleet(origin, transport) as fleet:
        port = fleet.other_port if is_relayed else fleet.holder_port
        FLEETS[port] = fleet
        yield Running(port, fleet.all, host=HOST)


def measure_one(running: Running, row: Row, *, seconds: float) -> None:
    fleet = FLEETS[running.port]
    program = require("wrk")
    wrk(program, running, connections=VISITORS, seconds=min(1.0, seconds))  # warm up
    before = [process.cpu_s() for process in fleet.all]
    result = wrk(program, running, connections=VISITORS, seconds=seconds)
    spent = [process.cpu_s() - was for process, was in zip(fleet.all, before, strict=True)]
    if not result.requests:
        raise BenchError("it answered nothing")
    agent, holder, other = (each / result.requests * 100_000 for each in spent)
    is_relayed = running.port == fleet.other_port
    row.add(
        rps=result.rps,
        # The node that no visitor asks still follows control, which is not what its requests cost.
        cpu=agent + holder + (other if is_relayed else 0.0),
        agent=agent,
        p50=result.p50_ms,
        errors=result.errors,
    )
    if is_relayed:
        row.add(visitors=other, holder=holder, added=_added_ms(fleet, seconds))
    else:
        row.add(visitors=holder)


def _added_ms(fleet: Fleet, seconds: float) -> float:
    """By how much the median answer to one visitor comes later over the relay."""
    relayed, straight = (Running(port, fleet.all, host=HOST) for port in (fleet.other_port, fleet.holder_port))
    took: dict[int, list[float]] = {relayed.port: [], straight.port: []}
    for each in (relayed, straight):
        ask_again_and_again(each, min(0.3, seconds))
    for _ in range(6):  # in turn, so that a noisy moment falls on both
        for each in (relayed, straight):
            took[each.port] += ask_again_and_again(each, seconds / 8)
    return statistics.median(took[relayed.port]) - statistics.median(took[straight.port])


def main() -> None:
    arguments = parse_arguments(__doc__)
    os.sched_setaffinity(0, {CLIENT_CORE})
    with nginx_origin() as origin:
        subjects: dict[str, Subject] = {
            f"{'relayed' if is_relayed else 'direct'}, {transport.upper()} session": partial(
                subject, origin, transport=transport, is_relayed=is_relayed
            )
            for transport in ("tls", "quic")
            for is_relayed in (False, True)
        }
        one = partial(measure_one, seconds=arguments.seconds)
        rows = measure(subjects, one, repeats=arguments.repeats, only=arguments.only)
    report("relay", f"Relayed by another exit node, 1 KB, {VISITORS} visitors", rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

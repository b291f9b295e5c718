"""What it costs to be relayed: a visitor at an exit node that holds the session, and at one that hands the request to it.

1 KB, nothing cached, both exit nodes and the agent on one core. CPU is of the one node that the row names.

python bench/relay.py [--quick]
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from baselines import nginx_origin
from harness import (
    CLIENT_CORE,
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
)
from keep_alive import COLUMNS, keep_alive_run
from latency import ask_again_and_again
from subjects import BIN

HERE = Path(__file__).resolve().parent
HOST = "shop.test"
DIRECT, RELAYING, HOLDING = "direct: the node", "relayed: the visitor's node", "relayed: the node with the session"

ADDED = Column("added", "added p50 ms, one visitor", 3)


class Fleet(Stage):
    """Control, two exit nodes and an agent whose only session is with the `holder`."""

    def __init__(self, origin: Running) -> None:
        super().__init__()
        self.holder_port, self.other_port = free_port(), free_port()
        tunnel, control = free_port(), free_port()
        where = [str(self.folder), f"http://127.0.0.1:{origin.port}", str(control), str(tunnel)]
        behind = self.start("control-and-agent", [sys.executable, str(HERE / "relay_control.py"), *where])
        wait_until("control", (self.folder / "token").exists, [behind])
        self.holder = self._node("holder", control, self.holder_port, tunnel)
        self.other = self._node("other", control, self.other_port, -1)
        processes = [behind, self.holder, self.other]
        wait_until("the holder", lambda: get_status(self.holder_port, HOST) == 200, processes, 30)
        wait_until("the other node", lambda: get_status(self.other_port, HOST) == 200, processes, 30)

    def _node(self, name: str, control: int, port: int, tunnel: int) -> Process:
        return self.start(
            name,
            [
                str(BIN / "edgetun-exitnode"), "--control", f"https://127.0.0.1:{control}",
                "--control-ca", str(self.folder / "ca.pem"), "--control-token-file", str(self.folder / "token"),
                "--pool", "pool", "--region", "here", "--name", name, "--state", str(self.folder / name),
                "--listen", "127.0.0.1", "--http-port", str(port), "--https-port", "-1", "--tunnel-port", str(tunnel),
                "--relay-host", "127.0.0.1", "--relay-port", str(free_port()), "--quic-engine", "none", "--quiet",
            ],
        )  # fmt: skip


@contextmanager
def subject(origin: Running, *, relayed: bool, of_holder: bool) -> Iterator[Running]:
    with Fleet(origin) as fleet:
        port = fleet.other_port if relayed else fleet.holder_port
        straight = Running(fleet.holder_port, (fleet.holder,), host=HOST)
        STRAIGHT[port] = straight
        yield Running(port, (fleet.holder if of_holder else fleet.other,), host=HOST)


STRAIGHT: dict[int, Running] = {}
"""By port of what is measured: the same fleet's node with the session."""


def with_latency(one: Callable[[Running, Row], None], seconds: float) -> Callable[[Running, Row], None]:
    def both(running: Running, row: Row) -> None:
        one(running, row)
        straight = STRAIGHT[running.port]
        ask_again_and_again(running, min(0.3, seconds))
        took: dict[int, list[float]] = {running.port: [], straight.port: []}
        for _ in range(6):  # in turn, so that a noisy moment falls on both
            for each in (running, straight):
                took[each.port] += ask_again_and_again(each, seconds / 8)
        row.add(added=statistics.median(took[running.port]) - statistics.median(took[straight.port]))

    return both


def main() -> None:
    arguments = parse_arguments(__doc__)
    os.sched_setaffinity(0, {CLIENT_CORE})
    one = with_latency(keep_alive_run(arguments), arguments.seconds)
    with nginx_origin() as origin:
        subjects: dict[str, Subject] = {
            DIRECT: partial(subject, origin, relayed=False, of_holder=True),
            RELAYING: partial(subject, origin, relayed=True, of_holder=False),
            HOLDING: partial(subject, origin, relayed=True, of_holder=True),
        }
        rows = measure(subjects, one, repeats=arguments.repeats, only=arguments.only)
    report("relay", "Relayed by another exit node, 1 KB, 64 visitors", rows, [*COLUMNS, ADDED], arguments)


if __name__ == "__main__":
    run_main(main)

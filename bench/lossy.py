"""Over a bad link: requests and bulk at 0, 1, 5 and 10 % loss and round trips of 5, 50 and 200 ms, beside the tunnels people use.

python bench/lossy.py [--quick] [--only frp] [--cell "5 %, 50 ms"] [--congestion cubic]     (as root: it makes network namespaces)

Every packet between agent and edge, UDP or TCP, goes through the same relay with the same seed, rate and queue. Loss is per packet, each
way; "delay" is what it adds to the round trip, half each way. Each system begins anew in each cell, on a link that has the cell's delay
already and begins to lose when the tunnel is up. Visitors stand beside the edge, the origin beside the agent.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import rivals
import subjects
from bad_link import QUEUE_BYTES, RATE_MBIT, BadLink, bad_link, congestion_control, inside, weather
from baselines import bulk_origin
from bulk import _connect, _read_head
from harness import BenchError, Column, Row, Running, add_arguments, finish_arguments, report, run_main
from visitors import keep_asking

LOSSES = (0.0, 0.01, 0.05, 0.10)
RTTS_S = (0.005, 0.050, 0.200)
VISITORS = 32
BODY_BYTES = 1024
WARM_S = 3.0
PATIENCE_S = 15.0
"""How long visitors may take to have all been answered once, before they are measured."""
OURS = "edgetun"
"""What people get who set nothing: the row that must be the best."""

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Cell:
    """One weather."""

    loss: float
    rtt_s: float

    @property
    def name(self) -> str:
        return f"{self.loss * 100:g} %, {self.rtt_s * 1000:g} ms"


def download_for(running: Running, seconds: float) -> float:
    """Megabits per second that one visitor gets of an endless body, the wait for its head included."""
    size = 1_000_000_000
    begin = time.perf_counter()
    got = 0
    with _connect(running) as sock:
        sock.settimeout(seconds)
        sock.sendall(f"GET /{size} HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode())
        try:
            got = len(_read_head(sock))
            buffer = bytearray(1024 * 1024)
            while (left := begin + seconds - time.perf_counter()) > 0:
                sock.settimeout(left)
                count = sock.recv_into(buffer)
                if not count:
                    raise BenchError("broken off")
                got += count
        except TimeoutError:
            pass
    return got * 8 / 1e6 / seconds


def one_cell(
    link: BadLink,
    cell: Cell,
    subject: Callable[[], AbstractContextManager[Running]],
    seconds: float,
) -> Figures:
    """One system in one weather."""
    link.path.set(weather(rtt_s=cell.rtt_s))
    with subject() as running:
        link.path.set(weather(rtt_s=cell.rtt_s, loss=cell.loss))
        # The first of them under loss: what a tunnel learns of its path, and changes for it, is not what is measured.
        download_for(running, WARM_S)
        asked = keep_asking(running, count=VISITORS, body_bytes=BODY_BYTES, seconds=seconds, patience_s=PATIENCE_S)
        figures = {"rps": asked.rps, "p50": asked.percentile(0.5), "p99": asked.percentile(0.99)}
        figures |= {"ready": float(asked.ready), "ready_s": asked.ready_s, "broken": float(asked.broken)}
        figures["bulk"] = download_for(running, seconds)
        link.path.set(weather())  # so that it ends soon
    return figures


def all_subjects(link: BadLink, origin: Running) -> dict[str, Callable[[], AbstractContextManager[Running]]]:
    site = link.site
    return {
        OURS: partial(subjects.tunnel, origin, transport="auto", site=site),
        "edgetun TLS": partial(subjects.tunnel, origin, transport="tls", site=site),
        "edgetun aioquic": partial(subjects.tunnel, origin, transport="quic", engine="aioquic", site=site),
        "frp QUIC": partial(rivals.frp, origin, kind="tcp", transport="quic", site=site),
        "frp TLS": partial(rivals.frp, origin, kind="tcp", transport="tls", site=site),
        "frp KCP": partial(rivals.frp, origin, kind="tcp", transport="kcp", site=site),
        "rathole TLS": partial(rivals.rathole, origin, site=site),
        "chisel": partial(rivals.chisel, origin, site=site),
    }


def tables(
    results: Mapping[tuple[str, str], list[Figures]],
    cells: Sequence[Cell],
    names: Sequence[str],
    figure: str,
    *,
    less: bool,
) -> tuple[list[Row], list[Column]]:
    """A row per cell, a column per system, and how edgetun compares with the best of the others (above 1 it is better)."""
    rows = []
    for cell in cells:
        row = Row(cell.name)
        for name in names:
            for figures in results.get((cell.name, name), ()):
                if figure in figures:
                    row.add(**{name: figures[figure]})
        ours = row.median(OURS)
        rivals_ = {name: value for name in names if not name.startswith(OURS) and (value := row.median(name))}
        if ours and rivals_:
            best = min(rivals_.values()) if less else max(rivals_.values())
            row.add(ratio=best / ours if less else ours / best)
        rows.append(row)
    digits = 1 if figure == "bulk" else 0
    columns = [Column(name, name, digits) for name in names]
    return rows, [*columns, Column("ratio", "edgetun over the best peer", 2)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, repeats=1, seconds=3)
    parser.add_argument("--cell", action="append", default=[], help='cells whose name begins with this, such as "5 %%"')
    parser.add_argument("--congestion", default="", help="the kernel's algorithm for TCP, such as cubic or bbr")
    parser.add_argument("--seed", type=int, default=1)
    arguments = finish_arguments(parser)
    if arguments.quick and not arguments.cell:
        arguments.cell = ["0 %, 50 ms", "5 %, 50 ms"]
    return arguments


def main() -> None:
    arguments = _arguments()
    cells = [Cell(loss, rtt_s) for loss in LOSSES for rtt_s in RTTS_S]
    cells = [cell for cell in cells if not arguments.cell or any(cell.name.startswith(word) for word in arguments.cell)]
    if not cells:
        raise BenchError(f"no cell is named so; there are {', '.join(Cell(x, y).name for x in LOSSES for y in RTTS_S)}")
    results: dict[tuple[str, str], list[Figures]] = {}
    with bad_link(seed=arguments.seed, congestion=arguments.congestion) as link:
        algorithm = congestion_control()
        with inside(link.agent_side):
            origin_context = bulk_origin()
            origin = origin_context.__enter__()
        try:
            systems = all_subjects(link, origin)
            names = [name for name in systems if not arguments.only or any(word in name for word in arguments.only)]
            for repeat in range(arguments.repeats):
                for cell in cells:
                    for name in names:
                        where = f"  {repeat + 1}/{arguments.repeats} {cell.name}: {name} ..."
                        print(where, end="", flush=True, file=sys.stderr)
                        try:
                            figures = one_cell(link, cell, systems[name], arguments.seconds)
                        except Exception as error:  # what is missing, or fails in a weather, does not end the run
                            print(f" failed: {error}", file=sys.stderr)
                            continue
                        results.setdefault((cell.name, name), []).append(figures)
                        print(
                            f" {figures['rps']:.0f} rps, p50 {figures['p50']:.0f}, p99 {figures['p99']:.0f} ms, "
                            f"{figures['broken']:.0f} broken ({figures['ready']:.0f} there after {figures['ready_s']:.1f} s); bulk {figures['bulk']:.1f} Mbit/s",
                            file=sys.stderr,
                        )
        finally:
            origin_context.__exit__(None, None, None)
    suffix = f"-{arguments.congestion}" if arguments.congestion else ""
    link_text = f"{RATE_MBIT} Mbit/s, {QUEUE_BYTES // 1024} KB queue, the kernel's TCP with {algorithm}"
    for script, figure, less, what in (
        ("lossy", "rps", False, f"requests per second of 1 KB, {VISITORS} visitors"),
        ("lossy-p50", "p50", True, "the same requests' median, ms"),
        ("lossy-p99", "p99", True, "the same requests' p99, ms"),
        ("lossy-bulk", "bulk", False, "one download, Mbit/s"),
    ):
        rows, columns = tables(results, cells, names, figure, less=less)
        title = f"Over a bad link (loss each way, delay of the round trip; {link_text}): {what}"
        report(script + suffix, title, rows, columns, arguments)
        ratios = [ratio for row in rows if (ratio := row.median("ratio")) is not None]
        if ratios:
            good = sum(ratio >= 1 for ratio in ratios)
            print(f"edgetun is the best in {good} of {len(ratios)} cells, median {statistics.median(ratios):.2f}\n")


if __name__ == "__main__":
    run_main(main)

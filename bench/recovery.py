"""After a failure: how long until a visitor is answered again, beside frp, rathole and chisel.

python bench/recovery.py [--quick] [--only frp] [--case agent]     (as root: it makes network namespaces)

The edge and its visitors stand in one network namespace, the agent in another (bad_link.py, with a round trip of 5 ms). Once something
happened, a visitor comes every 25 ms on a connection of its own; the first answer of any counts, and visitors who wait count with their wait.

The whole ends within `MOST_S`. Some peers need half a minute for what others do at once, so nobody is waited for longer than `PATIENCE_S`
(the table says "> 10"), and what took a system longer than `SLOW_S` is not done again in later repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import rivals
import subjects
import uvloop
from bad_link import BadLink, bad_link, inside, weather
from harness import (
    CLIENT_CORE,
    PYTHON,
    ROOT,
    BenchError,
    Column,
    Process,
    Row,
    Running,
    Stage,
    add_arguments,
    finish_arguments,
    free_port,
    get_status,
    is_listening,
    report,
    run_main,
    wait_until,
)

RTT_S = 0.005
EVERY_S = 0.025
PATIENCE_S = 10.0
"""After this it counts as not recovered."""
SLOW_S = 6.0
MOST_S = 440.0
"""After this nothing new is begun."""
SETTLE_S = 1.0
AWAY_S = 5.0
MOST_VISITORS = 200
"""How many may wait for an answer at a time; the oldest goes for a new one."""

Subject = Callable[[], AbstractContextManager[Running]]


# -- visitors -----------------------------------------------------------------------------------------------------


async def _ask(running: Running, answered: asyncio.Event) -> None:
    """One visitor, who waits as long as it takes."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    except OSError:
        return
    try:
        writer.write(f"GET /1 HTTP/1.1\r\nHost: {running.host}\r\nConnection: close\r\n\r\n".encode())
        if (await reader.read(64)).startswith(b"HTTP/1.1 200"):
            answered.set()
    except OSError:
        pass
    finally:
        writer.transport.abort()


async def _first_answer_at(running: Running, end: float) -> float:
    answered = asyncio.Event()
    visitors: dict[asyncio.Task[None], None] = {}
    try:
        while time.monotonic() < end:
            visitor = asyncio.get_running_loop().create_task(_ask(running, answered))
            visitors[visitor] = None
            visitor.add_done_callback(lambda gone: visitors.pop(gone, None))
            if len(visitors) > MOST_VISITORS:
                next(iter(visitors)).cancel()
            try:
                async with asyncio.timeout(EVERY_S):
                    await answered.wait()
                return time.monotonic()
            except TimeoutError:
                pass
        return end
    finally:
        for visitor in list(visitors):
            visitor.cancel()
        await asyncio.gather(*visitors, return_exceptions=True)


def first_answer_at(running: Running, end: float) -> float:
    """The monotonic time at which a visitor has an answer; `end` when none has by then."""
    return uvloop.run(_first_answer_at(running, end))


# -- what happens -------------------------------------------------------------------------------------------------


def edge_returns(_: BadLink, running: Running, *, away_s: float) -> Iterator[float]:
    """The edge is killed, stays away, and starts again: from when it accepts agents. Yields the time from which to count."""
    edge, _ = running.servers
    edge.kill()
    time.sleep(away_s)
    with stopping(edge.again()) as again:
        wait_until("the edge again", lambda: is_listening(running.agents_port), [again])
        yield time.monotonic()


def agent_is_killed(_: BadLink, running: Running) -> Iterator[float]:
    """kill -9 of the agent, started again at once: from then on, the start of its process included."""
    _, agent = running.servers
    agent.kill()
    at = time.monotonic()
    with stopping(agent.again()):
        yield at


def agent_is_cut_off(link: BadLink, running: Running) -> Iterator[float]:
    """Nothing gets through to the agent or back, without a word; the same agent comes back by another network at once."""
    _, agent = running.servers
    link.path.set(weather(rtt_s=RTT_S, is_black_hole=True))
    at = time.monotonic()
    elsewhere = agent.arguments[len(link.site.to_agent) :]
    try:
        with stopping(agent.again(elsewhere)):
            yield at
    finally:
        link.path.set(weather(rtt_s=RTT_S))


CASES: dict[str, tuple[str, Callable[[BadLink, Running], Iterator[float]]]] = {
    "edge": ("edge kill -9, started at once: from its port's opening", partial(edge_returns, away_s=0.0)),
    "away": (f"edge away for {AWAY_S:g} s: from its port's opening", partial(edge_returns, away_s=AWAY_S)),
    "agent": ("agent kill -9, started at once: from then", agent_is_killed),
    "cut": ("agent cut off, starts elsewhere at once: from then", agent_is_cut_off),
}


@contextmanager
def stopping(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.stop(1.0)


def seconds_to_answer(link: BadLink, subject: Subject, what: Callable[[BadLink, Running], Iterator[float]]) -> float:
    """From what happens to the first answer; `PATIENCE_S` when there is none by then."""
    link.path.set(weather(rtt_s=RTT_S))
    with subject() as running:
        time.sleep(SETTLE_S)
        for _ in range(3):
            if get_status(running.port, running.host, "/1") != 200:
                raise BenchError("it does not answer before anything happened")
        with contextmanager(what)(link, running) as since:
            return min(PATIENCE_S, max(0.0, first_answer_at(running, since + PATIENCE_S) - since))


# -- the run ------------------------------------------------------------------------------------------------------


@contextmanager
def two_origins(link: BadLink) -> Iterator[Running]:
    """An origin at the same port on both sides."""
    port = free_port()
    command = [PYTHON, str(ROOT / "bench" / "bulk_origin.py"), str(port)]
    with Stage() as stage:
        here = stage.start("bulk-origin", command, core=CLIENT_CORE)
        with inside(link.agent_side):
            there = stage.start("bulk-origin", command, core=CLIENT_CORE)
            wait_until("origin", lambda: get_status(port, path="/1") == 200, [there])
        wait_until("origin", lambda: get_status(port, path="/1") == 200, [here])
        yield Running(port, (here,))


def all_subjects(link: BadLink, origin: Running) -> dict[str, Subject]:
    site = link.site
    return {
        "edgetun": partial(subjects.tunnel, origin, transport="auto", site=site),
        "edgetun TLS": partial(subjects.tunnel, origin, transport="tls", site=site),
        "frp QUIC": partial(rivals.frp, origin, kind="tcp", transport="quic", site=site),
        "frp TLS": partial(rivals.frp, origin, kind="tcp", transport="tls", site=site),
        "frp KCP": partial(rivals.frp, origin, kind="tcp", transport="kcp", site=site),
        "rathole TLS": partial(rivals.rathole, origin, site=site),
        "chisel TLS": partial(rivals.chisel, origin, site=site),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, repeats=3, seconds=0)
    parser.add_argument("--case", action="append", default=[], choices=list(CASES), help="what happens")
    return finish_arguments(parser)


def run(link: BadLink, systems: dict[str, Subject], rows: dict[str, Row], cases: list[str], repeats: int) -> None:
    """Every case of every system in turn, for as long as there is time."""
    end = time.monotonic() + MOST_S
    for repeat in range(repeats):
        for case in cases:
            for name, row in rows.items():
                if max(row.figures.get(case, [0.0])) > SLOW_S:
                    continue
                if time.monotonic() > end:
                    print(f"  {MOST_S:g} s are over: what is left of {repeats} repeats is left out", file=sys.stderr)
                    return
                print(f"  {repeat + 1}/{repeats} {case}: {name} ...", end="", flush=True, file=sys.stderr)
                try:
                    took_s = seconds_to_answer(link, systems[name], CASES[case][1])
                except (BenchError, OSError, subprocess.SubprocessError) as error:
                    row.note = row.note or f"{case}: {str(error).splitlines()[0]}"
                    print(f" failed: {error}", file=sys.stderr)
                else:
                    row.add(**{case: took_s})
                    print(f" {took_s:.2f} s" if took_s < PATIENCE_S else f" no answer in {took_s:g} s", file=sys.stderr)


def main() -> None:
    arguments = _arguments()
    cases = [name for name in CASES if not arguments.case or name in arguments.case]
    with bad_link() as link, two_origins(link) as origin:
        systems = all_subjects(link, origin)
        rows = {
            name: Row(name) for name in systems if not arguments.only or any(word in name for word in arguments.only)
        }
        run(link, systems, rows, cases, arguments.repeats)
    columns = [Column(case, CASES[case][0], 2, ratio=True, less_is_better=True, most=PATIENCE_S) for case in cases]
    title = f"After a failure: seconds until a visitor is answered again (round trip {RTT_S * 1000:g} ms)"
    report("recovery", title, list(rows.values()), columns, arguments)
    for row in rows.values():
        if row.note:
            print(f"{row.subject}: {row.note}")


if __name__ == "__main__":
    run_main(main)

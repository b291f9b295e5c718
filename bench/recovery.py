"""After a failure: how long until a visitor is answered again, beside frp and rathole.

python bench/recovery.py [--quick] [--only frp] [--case agent]     (as root: it makes network namespaces)

The edge and its visitors stand in one network namespace, the agent in another (bad_link.py, with a round trip of 5 ms). Once something
happened, a visitor comes every 25 ms on a connection of its own; the first answer of any counts, and visitors who wait count with their wait.
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
PATIENCE_S = 40.0
"""After this it counts as not recovered."""
SETTLE_S = 1.0
AWAY_S = 5.0

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


async def _first_answer_at(running: Running) -> float:
    answered = asyncio.Event()
    end = time.monotonic() + PATIENCE_S
    visitors: set[asyncio.Task[None]] = set()
    try:
        while time.monotonic() < end:
            visitor = asyncio.get_running_loop().create_task(_ask(running, answered))
            visitors.add(visitor)
            visitor.add_done_callback(visitors.discard)
            try:
                async with asyncio.timeout(EVERY_S):
                    await answered.wait()
                return time.monotonic()
            except TimeoutError:
                pass
        return float("inf")
    finally:
        for visitor in list(visitors):
            visitor.cancel()
        await asyncio.gather(*visitors, return_exceptions=True)


def first_answer_at(running: Running) -> float:
    """The monotonic time at which a visitor has an answer; raises when none has after `PATIENCE_S`."""
    at = uvloop.run(_first_answer_at(running))
    if at == float("inf"):
        raise BenchError(f"no answer within {PATIENCE_S:g} s")
    return at


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
    """From what happens to the first answer."""
    link.path.set(weather(rtt_s=RTT_S))
    with subject() as running:
        time.sleep(SETTLE_S)
        for _ in range(3):
            if get_status(running.port, running.host, "/1") != 200:
                raise BenchError("it does not answer before anything happened")
        with contextmanager(what)(link, running) as since:
            return max(0.0, first_answer_at(running) - since)


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
        "rathole TLS": partial(rivals.rathole, origin, site=site),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, repeats=5, seconds=0)
    parser.add_argument("--case", action="append", default=[], choices=list(CASES), help="what happens")
    return finish_arguments(parser)


def main() -> None:
    arguments = _arguments()
    cases = {name: case for name, case in CASES.items() if not arguments.case or name in arguments.case}
    with bad_link() as link, two_origins(link) as origin:
        systems = all_subjects(link, origin)
        rows = {
            name: Row(name) for name in systems if not arguments.only or any(word in name for word in arguments.only)
        }
        for repeat in range(arguments.repeats):
            for case, (_, what) in cases.items():
                for name, row in rows.items():
                    where = f"  {repeat + 1}/{arguments.repeats} {case}: {name} ..."
                    print(where, end="", flush=True, file=sys.stderr)
                    try:
                        took_s = seconds_to_answer(link, systems[name], what)
                    except (BenchError, OSError, subprocess.SubprocessError) as error:
                        row.note = row.note or f"{case}: {str(error).splitlines()[0]}"
                        print(f" failed: {error}", file=sys.stderr)
                    else:
                        row.add(**{case: took_s})
                        print(f" {took_s:.2f} s", file=sys.stderr)
    columns = [Column(case, text, 2, ratio=True, less_is_better=True) for case, (text, _) in cases.items()]
    title = f"After a failure: seconds until a visitor is answered again (round trip {RTT_S * 1000:g} ms)"
    report("recovery", title, list(rows.values()), columns, arguments)
    for row in rows.values():
        if row.note:
            print(f"{row.subject}: {row.note}")


if __name__ == "__main__":
    run_main(main)

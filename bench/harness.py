"""What every benchmark does the same way: pinned processes that end, CPU seconds, medians, a table with ratios, a record.

Servers under test (edge and agent together) run on core 0, the client and what stands for the origin on core 1. CPU
seconds and ratios within one run are what to trust: the machine's speed changes by the hour.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / ".cache" / "results.jsonl"
SERVER_CORE, CLIENT_CORE = 0, 1
PYTHON = sys.executable
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A benchmark cannot run, or what it measured is not what it meant to; the message is for a person."""


# -- processes ---------------------------------------------------------------------------------------------------


def cpu_s_of(pid: int) -> float:
    """User and system seconds of a process so far, all threads.

    The scheduler's own nanoseconds where the kernel keeps them: on a kernel that accounts by ticks, a process that
    works in short bursts would be charged by luck.
    """
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except (OSError, IndexError):
        pass
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


class Process:
    """A program pinned to a core, its output in a file, ended by its own pid."""

    started: ClassVar[set[Process]] = set()
    """Every process of this run that has not been ended."""

    def __init__(
        self, name: str, command: Sequence[str], core: int, folder: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.arguments = tuple(command)
        self._core, self._folder, self._env = core, folder, env
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **(env or {})},
            )
        Process.started.add(self)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def cpu_s(self) -> float:
        """User and system seconds so far, all threads, and those of its running children (varnish works in one)."""
        seconds = cpu_s_of(self.pid)
        try:
            for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                seconds += cpu_s_of(int(child))
        except OSError:
            pass  # a child that ended just now
        return seconds

    def rss_bytes(self, *, peak: bool = False) -> int:
        """Resident memory now, or the most it ever was."""
        found = re.search(
            rf"^Vm{'HWM' if peak else 'RSS'}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE
        )
        assert found is not None
        return int(found[1]) * 1024

    def forget_peak(self) -> None:
        """Starts `rss_bytes(peak=True)` anew (clear_refs 5 resets the high-water mark)."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """Ends it without a word, as a power cut does."""
        Process.started.discard(self)
        self._popen.kill()
        self._popen.wait()

    def again(self, arguments: Sequence[str] = ()) -> Process:
        """The same program anew, or in another way; whoever asks ends it."""
        return Process(self.name, arguments or self.arguments, self._core, self._folder, self._env)

    def stop(self, grace_s: float = 3.0) -> None:
        Process.started.discard(self)
        if self.is_running:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._popen.wait()


class Stage(ExitStack):
    """A temporary folder and the processes of one subject; leaving it ends them, newest first."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="edgetun-bench-"))
        self.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def start(
        self, name: str, command: Sequence[str], *, core: int = SERVER_CORE, env: Mapping[str, str] | None = None
    ) -> Process:
        process = Process(name, command, core, self.folder, env)
        self.callback(process.stop)
        return process

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


def free_port() -> int:
    """A TCP port that is free now, for UDP too."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(
    what: str, is_true: Callable[[], bool], processes: Iterable[Process] = (), deadline_s: float = 15.0
) -> None:
    """Polls until true; `BenchError` with the logs when a process died or the time is over."""
    end = time.monotonic() + deadline_s
    watched = list(processes)
    while not is_true():
        dead = [process for process in watched if not process.is_running]
        if dead or time.monotonic() > end:
            logs = "\n".join(f"--- {process.name}\n{process.tail()}" for process in dead or watched)
            raise BenchError(f"{what}: {'died' if dead else f'not within {deadline_s:g} s'}\n{logs}")
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def get_status(port: int, host: str = "localhost", path: str = "/") -> int:
    """The status of one GET over plain HTTP; 0 when nobody answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = sock.recv(64)
    except OSError:
        return 0
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.") and answer[9:12].isdigit() else 0


def is_echoing(port: int) -> bool:
    """Whether a UDP port gives back what it gets, within half a second."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        sock.connect(("127.0.0.1", port))
        try:
            sock.send(b"ready?")
            return sock.recv(64) == b"ready?"
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Site:
    """Where the two ends of a tunnel stand: the edge at an address, the agent behind a command that puts it elsewhere."""

    address: str = "127.0.0.1"
    to_agent: tuple[str, ...] = ()
    agent_core: int = SERVER_CORE

    @property
    def listen(self) -> str:
        """What the edge listens on, its visitors' port included, which is asked at 127.0.0.1."""
        return self.address if self.address == "127.0.0.1" else "0.0.0.0"


HERE = Site()


# -- what is measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """A subject that is ready: where a client asks, and which processes its CPU and memory are."""

    port: int
    servers: tuple[Process, ...]
    host: str = "localhost"
    scheme: str = "http"
    origin: Process | None = None
    agents_port: int = 0
    """Where the edge takes agents, over TCP at least."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/"

    def cpu_s(self) -> float:
        return sum(process.cpu_s() for process in self.servers)

    def rss_bytes(self) -> int:
        return sum(process.rss_bytes() for process in self.servers)


@dataclass(slots=True)
class Row:
    """Figures of one subject: every figure by name, one value per repeat."""

    subject: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""

    def add(self, **figures: float) -> None:
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        values = self.figures.get(name)
        return statistics.median(values) if values else None


@dataclass(frozen=True, slots=True)
class Column:
    """A figure as the table shows it; `ratio` adds how the first subject compares with the row's."""

    name: str
    title: str
    digits: int = 0
    ratio: bool = False
    less_is_better: bool = False
    most: float = float("inf")
    """What was measured no further: the figure is more."""


@contextmanager
def cpu_of(running: Running) -> Iterator[list[float]]:
    """Yields a list that holds the servers' CPU seconds when the block has ended."""
    before = running.cpu_s()
    spent: list[float] = []
    yield spent
    spent.append(running.cpu_s() - before)


_WRK_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True, slots=True)
class WrkResult:
    rps: float
    requests: int
    p50_ms: float
    p99_ms: float
    errors: int


def parse_wrk(text: str) -> WrkResult:
    """Reads what `wrk --latency` prints."""

    def latency(percent: str) -> float:
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
        return float(found[1]) * _WRK_UNITS[found[2]] if found else 0.0

    requests = re.search(r"^\s*(\d+) requests in", text, re.MULTILINE)
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    if requests is None or rate is None:
        raise BenchError(f"wrk said something unexpected:\n{text}")
    socket_errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = sum(map(int, socket_errors.groups())) if socket_errors else 0
    errors += int(wrong[1]) if wrong else 0
    return WrkResult(float(rate[1]), int(requests[1]), latency("50"), latency("99"), errors)


def wrk(program: str, running: Running, *, connections: int, seconds: float, headers: Sequence[str] = ()) -> WrkResult:
    """One thread of wrk on the client's core."""
    command = ["taskset", "-c", str(CLIENT_CORE), program, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency"]
    if running.host != "localhost":
        command += ["-H", f"Host: {running.host}"]
    for header in headers:
        command += ["-H", header]
    url = running.url.replace("127.0.0.1", running.host) if running.host == "localhost" else running.url
    done = subprocess.run([*command, url], capture_output=True, text=True, check=False, timeout=seconds + 30)
    if done.returncode:
        raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    return parse_wrk(done.stdout)


@dataclass(frozen=True, slots=True)
class H2loadResult:
    rps: float
    requests: int
    mean_ms: float
    errors: int


def parse_h2load(text: str) -> H2loadResult:
    """Reads what `h2load` prints."""
    rate = re.search(r"^finished in [\d.]+m?s, ([\d.]+) req/s", text, re.MULTILINE)
    counts = re.search(
        r"^requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout",
        text,
        re.MULTILINE,
    )
    times = re.search(r"^time for request:\s+\S+\s+\S+\s+([\d.]+)(us|ms|s)\s", text, re.MULTILINE)
    if rate is None or counts is None:
        raise BenchError(f"h2load said something unexpected:\n{text}")
    mean_ms = float(times[1]) * _WRK_UNITS[times[2]] if times is not None else 0.0
    # "errored" are part of "failed"
    return H2loadResult(float(rate[1]), int(counts[1]), mean_ms, int(counts[2]) + int(counts[4]))


def h2load(program: str, running: Running, *, connections: int, streams: int, requests: int) -> H2loadResult:
    """So many requests by one thread of h2load on the client's core, over HTTP/2."""
    command = ["taskset", "-c", str(CLIENT_CORE), program, "-t1", f"-c{connections}", f"-m{streams}", f"-n{requests}"]
    command += [f"--connect-to=127.0.0.1:{running.port}", f"{running.scheme}://{running.host}:{running.port}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode or "Application protocol: h2" not in done.stdout:
        raise BenchError(f"h2load failed: {done.stderr.strip() or done.stdout.strip()}")
    return parse_h2load(done.stdout)


def edgetun_load(running: Running, *arguments: str, core: int = CLIENT_CORE) -> dict[str, Any]:
    """`edgetun load --json` on the client's core; its result as it printed it."""
    command = [
        "taskset", "-c", str(core), PYTHON, "-m", "edgetun.cli", "load", f"{running.scheme}://{running.host}:{running.port}/",
        "--connect", f"127.0.0.1:{running.port}", "--json", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    if not done.stdout.startswith("{"):
        raise BenchError(f"edgetun load failed: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# -- running and telling -----------------------------------------------------------------------------------------

Subject = Callable[[], Any]  # a context manager that yields a Running


MAX_OTHERS = 0.06
"""Share of the whole machine that others may take while something is measured; else it is measured again."""
TRIES = 12


class _Others:
    """What the rest of the machine did meanwhile, as a share of all cores."""

    def __init__(self) -> None:
        self._busy, self._ours, self._at = self._look()

    @staticmethod
    def _look() -> tuple[float, float, float]:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = sum(process.cpu_s() for process in Process.started if process.is_running)
        ours += time.process_time() + children.ru_utime + children.ru_stime
        return (sum(ticks[:8]) - ticks[3] - ticks[4]) / _TICKS_PER_SECOND, ours, time.monotonic()

    def share(self) -> float:
        busy, ours, at = self._look()
        spent = (busy - self._busy) - (ours - self._ours)
        return max(0.0, spent / (at - self._at) / (os.cpu_count() or 1))


def _measure_undisturbed(one: Callable[[Running, Row], None], running: Running, row: Row, tries: int) -> None:
    """Measures again, a few times, when others took the machine's time meanwhile; the least disturbed try counts."""
    best: tuple[float, Row] | None = None
    for _ in range(tries):
        attempt, others = Row(row.subject), _Others()
        one(running, attempt)
        share = others.share()
        if best is None or share < best[0]:
            best = share, attempt
        if share <= MAX_OTHERS:
            break
        time.sleep(1.0)
    assert best is not None
    row.note = best[1].note or row.note
    row.add(others=best[0], **{name: values[-1] for name, values in best[1].figures.items()})


def measure(
    subjects: Mapping[str, Subject],
    one: Callable[[Running, Row], None],
    *,
    repeats: int,
    only: Sequence[str] = (),
    tries: int = TRIES,
) -> list[Row]:
    """Runs every subject once per repeat, in turn, so that a slow minute of the machine hits all of them alike.

    `tries` is 1 for what the machine's other work does not change, such as memory.
    """
    rows = {name: Row(name) for name in subjects if not only or any(word in name for word in only)}
    for repeat in range(repeats):
        for name, row in rows.items():
            print(f"  {repeat + 1}/{repeats} {name} ...", end="", flush=True, file=sys.stderr)
            try:
                with subjects[name]() as running:
                    _measure_undisturbed(one, running, row, tries)
            except Exception as error:  # one peer that is missing or broken must not end the others' run
                row.note = str(error).splitlines()[0]
                print(f" failed: {error}", file=sys.stderr)
            else:
                print(f" done (others took {row.figures['others'][-1]:.0%} of the machine)", file=sys.stderr)
    return list(rows.values())


def report(
    script: str, title: str, rows: Sequence[Row], columns: Sequence[Column], arguments: argparse.Namespace
) -> None:
    """Prints the table and, unless told not to, appends it to the record."""
    record = {
        "script": script,
        "title": title,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "repeats": arguments.repeats,
        "seconds": arguments.seconds,
        "columns": [{"title": text, "name": column.name} for column in columns for text in [column.title]],
        "table": table(rows, columns),
        "figures": {row.subject: row.figures for row in rows},
    }
    print(f"\n{title}\n")
    for line in aligned(record["table"]):
        print(line)
    print()
    if not arguments.no_record:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(record) + "\n")


def table(rows: Sequence[Row], columns: Sequence[Column]) -> list[list[str]]:
    """Heads and cells as text; the ratio is the first row's figure over each other's, turned so that more is better."""
    heads = ["subject"]
    for column in columns:
        heads.append(column.title)
        if column.ratio:
            heads.append("ratio")
    lines = [heads]
    for row in rows:
        cells = [row.subject]
        for column in columns:
            value = row.median(column.name)
            is_more = value is not None and value >= column.most
            cells.append("-" if value is None else f"> {value:g}" if is_more else f"{value:,.{column.digits}f}")
            if column.ratio:
                first = rows[0].median(column.name)
                if value is None or first is None or not value or not first or row is rows[0]:
                    cells.append("")
                else:
                    ratio = f"{value / first if column.less_is_better else first / value:.2f}x"
                    cells.append(f"> {ratio}" if is_more and first < column.most else ratio)
        lines.append(cells if not row.note or row.figures else [row.subject, row.note, *[""] * (len(cells) - 2)])
    return lines


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    noted = [line for line in lines if len(line) > 2 and any(line[2:])]
    widths = [max(len(line[i]) for line in (noted or lines)) for i in range(len(lines[0]))]
    widths[0] = max(len(line[0]) for line in lines)
    return [
        "  ".join(cell.ljust(width) if i == 0 or line not in noted else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip


def machine() -> str:
    """The machine in one line."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    gib = round(int(memory[1]) / 1024**2) if memory else 0
    cpu = model[1] if model else platform.machine()
    return f"{os.cpu_count()} cores ({cpu}), {gib} GiB, Linux {platform.release()}, Python {platform.python_version()}"


def parse_arguments(
    description: str | None, *, repeats: int = 5, seconds: float = 5, extra: Mapping[str, int] | None = None
) -> argparse.Namespace:
    """The flags that every benchmark has, and `extra` whole numbers of its own."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    add_arguments(parser, repeats=repeats, seconds=seconds)
    for name, default in (extra or {}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return finish_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser, *, repeats: int, seconds: float) -> None:
    """The flags that every benchmark has."""
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--seconds", type=float, default=seconds, help="length of one measurement")
    parser.add_argument(
        "--only", action="append", default=[], help="subjects whose name holds this; may be given several times"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short repeat, to see that all works; nothing is recorded"
    )
    parser.add_argument("--no-record", action="store_true", help=f"do not append to {RESULTS.relative_to(ROOT)}")


def finish_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line, and makes of `--quick` what it means."""
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.seconds, arguments.no_record = 1, min(1.0, arguments.seconds), True
    return arguments


def run_main(main: Callable[[], None]) -> None:
    """Runs a benchmark's main; mistakes show without a traceback. SIGTERM ends it as Ctrl-C does: with everything it made."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except (BenchError, KeyboardInterrupt) as error:
        sys.exit(f"error: {error}" if str(error) else 130)

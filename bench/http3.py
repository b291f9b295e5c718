"""Cached 1 KB over HTTP/3, one core: edgetun's cache beside caddy, which answers the same bytes from its configuration.

python bench/http3.py [--quick]

4 connections x 16 streams and 64 x 10, by one client for both (http3_load.py) on the other core. `client` is the share of its
core that the client was busy: below 0.9 it was not what limits. Compare CPU seconds where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import subjects
from baselines import ONE_KB, nginx_origin, write_certificate
from harness import (
    CLIENT_CORE,
    PYTHON,
    ROOT,
    BenchError,
    Column,
    Row,
    Running,
    Stage,
    Subject,
    cpu_of,
    free_port,
    is_listening,
    measure,
    parse_arguments,
    report,
    run_main,
    wait_until,
)
from peers import require

COLUMNS = [
    Column("rps", "requests/s", 0, ratio=True),
    Column("cpu", "CPU s per 100,000", 2, ratio=True, less_is_better=True),
    Column("client", "client's core", 2),
    Column("p50", "p50 ms", 2),
    Column("p99", "p99 ms", 2),
    Column("errors", "errors"),
]


@contextmanager
def caddy() -> Iterator[Running]:
    """One thread for its Go code; HTTP/3 on the port of its HTTPS."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, Stage() as stage:
        (cert, key), _ = write_certificate(Path(folder), [subjects.HOST])
        config = stage.write(
            "Caddyfile",
            f"""{{
	admin off
	auto_https off
	log default {{
		level ERROR
	}}
	servers {{
		protocols h1 h2 h3
	}}
}}
https://{subjects.HOST}:{port} {{
	bind 127.0.0.1
	tls {cert} {key}
	header Cache-Control max-age=3600
	respond "{ONE_KB}" 200
}}
""",
        )
        process = stage.start(
            "caddy",
            [require("caddy"), "run", "--config", config, "--adapter", "caddyfile"],
            env={"GOMAXPROCS": "1", "HOME": str(stage.folder)},
        )
        wait_until("caddy", lambda: is_listening(port), [process])
        yield Running(port, (process,), host=subjects.HOST, scheme="https")


def load(running: Running, connections: int, streams: int, seconds: float) -> dict[str, float]:
    """The client, in a process of its own on the client's core."""
    command = [
        *(
            "taskset",
            "-c",
            str(CLIENT_CORE),
            PYTHON,
            str(ROOT / "bench" / "http3_load.py"),
            "127.0.0.1",
            str(running.port),
        ),
        *(
            "--name",
            running.host,
            "--connections",
            str(connections),
            "--streams",
            str(streams),
            "--seconds",
            f"{seconds:g}",
        ),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60)
    if done.returncode:
        raise BenchError(f"the load client failed: {done.stderr.strip()}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run(arguments: argparse.Namespace, connections: int, streams: int) -> Callable[[Running, Row], None]:
    def one(running: Running, row: Row) -> None:
        load(running, connections, streams, min(1.0, arguments.seconds))  # warm up, and fill the cache
        with cpu_of(running) as spent:
            result = load(running, connections, streams, arguments.seconds)
        if not result["total"]:
            raise BenchError("it answered nothing")
        row.add(
            rps=result["rps"],
            cpu=spent[0] / result["total"] * 100_000,
            client=result["client_cpu_s"] / result["seconds"],
            p50=result["p50_ms"],
            p99=result["p99_ms"],
            errors=result["errors"],
        )

    return one


def main() -> None:
    arguments = parse_arguments(__doc__)
    with nginx_origin(fresh_s=3600) as origin:
        rivals: dict[str, Subject] = {
            "edgetun": partial(subjects.http, origin, cache="1h", https=True),
            "caddy (respond)": caddy,
        }
        for script, connections, streams in (("http3", 4, 16), ("http3-wide", 64, 10)):
            title = f"Cached 1 KB over HTTP/3, {connections} connections x {streams} streams, one core"
            rows = measure(rivals, run(arguments, connections, streams), repeats=arguments.repeats, only=arguments.only)
            report(script, title, rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

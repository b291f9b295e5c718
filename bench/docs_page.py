"""Writes `docs/benchmarks.md` from the newest record of each benchmark.

python bench/docs_page.py
"""

from __future__ import annotations

import json
from typing import Any

from goals import goals_section
from harness import RESULTS, ROOT
from peers import CHISEL, FRP, PIKO, RATHOLE

PAGE = ROOT / "docs" / "benchmarks.md"
NOTES = ROOT / "bench" / "notes.md"
"""What a person says of the figures: misses and their reasons, where the time goes."""
ORDER = [
    "crowd",
    "cached",
    "cached-tls",
    "cached-100k",
    "cached-handshake",
    "http2",
    "http2-100k",
    "compressed",
    "http3",
    "http3-wide",
    "cache-scale",
    "passthrough",
    "latency",
    "relay",
    "bulk",
    "bulk-memory",
    "streams",
    "streams-udp",
    "idle",
    "idle-tls",
    "lossy",
    "lossy-p50",
    "lossy-p99",
    "lossy-bulk",
    "lossy-cubic",
    "lossy-p50-cubic",
    "lossy-p99-cubic",
    "lossy-bulk-cubic",
    "recovery",
    "congestion",
    "path-mtu",
    "full-node",
    "startup",
    "fleet",
    "fleet-compile",
    "fleet-agents",
    "fleet-whole",
]
SOURCES = {"cache-scale": "cache_scale", "path-mtu": "path_mtu", "full-node": "full_node"}
"""Scripts whose records do not begin with their name."""

HEAD = """# Benchmarks

Written by `bench/docs_page.py` from what the scripts in `bench/` recorded; `make bench` runs them all. Every table is one
run in which the subjects took turns, and shows medians. The servers (edge and agent together) have one core, the client and
the origin the other. "ratio" is edgetun's (the first row's) advantage over the row: above 1 edgetun is better. Absolute
figures are this machine's; CPU seconds and ratios carry over.

Peers: frp {frp}, rathole {rathole}, chisel {chisel}, piko {piko}, nginx and wrk of the distribution; `python bench/peers.py build` gets them.
"""


def newest() -> dict[str, dict[str, Any]]:
    """The last record of each script."""
    found: dict[str, dict[str, Any]] = {}
    for line in RESULTS.read_text().splitlines():
        record = json.loads(line)
        found[record["script"]] = record
    return found


def section(record: dict[str, Any]) -> str:
    heads, *lines = record["table"]
    rows = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    rows += ["| " + " | ".join(cell or " " for cell in line) + " |" for line in lines]
    when, machine = record["when"][:10], record["machine"]
    facts = f"{when}, {machine}; {record['repeats']} repeats."
    return (
        f"## {record['title']}\n\n"
        + "\n".join(rows)
        + f"\n\n{facts} `bench/{SOURCES.get(record['script'], record['script'].split('-')[0])}.py`\n"
    )


def main() -> None:
    records = newest()
    head = HEAD.format(
        frp=FRP.rpartition("@")[2],
        piko=PIKO.rpartition("@")[2],
        rathole=f"v{RATHOLE}",
        chisel=CHISEL.rpartition("@")[2],
    )
    known = [script for script in ORDER if script in records]
    notes = NOTES.read_text() if NOTES.exists() else ""
    PAGE.write_text(
        "\n".join(
            [head, goals_section(records), *([notes] if notes else []), *(section(records[script]) for script in known)]
        )
    )
    print(f"wrote {PAGE.relative_to(ROOT)}: {', '.join(known)}")


if __name__ == "__main__":
    main()

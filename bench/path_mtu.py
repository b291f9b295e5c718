"""What larger packets are worth to a session: bulk over a link that carries UDP payloads of 1,200, 1,350 and 1,452 bytes.

python bench/path_mtu.py [--quick] [--only qh3]; about a minute
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from congestion import cell
from harness import Column, Row, parse_arguments, report, run_main

from edgetun_core.transport.engines import DevelopmentCA

ENGINES = ("qh3:cubic", "aioquic:rate")
PAYLOADS = (1452, 1350, 1200)
ROUND_TRIP_MS = 5


def main() -> None:
    arguments = parse_arguments(__doc__, repeats=3, seconds=4)
    rows = {
        (engine, payload): Row(f"{engine}, {payload} bytes")
        for engine in ENGINES
        for payload in PAYLOADS
        if not arguments.only or any(word in engine for word in arguments.only)
    }
    with tempfile.TemporaryDirectory() as folder:
        DevelopmentCA(Path(folder))
        for _ in range(arguments.repeats):
            for (engine, payload), row in rows.items():
                found = cell(engine, 0.0, ROUND_TRIP_MS, arguments.seconds, folder, payload_bytes=payload)
                row.add(**found)
                print(f"  {row.subject} {found}", file=sys.stderr, flush=True)
    columns = [
        Column("mb_s", "MB/s", 2),
        Column("cpu_s_gb", "CPU s/GB, both ends", 1, ratio=True, less_is_better=True),
    ]
    report("path-mtu", "Bulk over a session by what the path carries", list(rows.values()), columns, arguments)


if __name__ == "__main__":
    run_main(main)

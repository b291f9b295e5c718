"""Crowds of visitors at several ports at once, in one process; prints what each port's got, as JSON by port.

python -P crowds.py URL VISITORS_OF_EACH WITHIN_S PORT...
"""

from __future__ import annotations

import asyncio
import json
import sys

from edgetun.load import run_load
from edgetun.load_plan import Crowd, LoadPlan
from edgetun_core.process import raise_open_files_limit


async def run(url: str, visitors: int, within_s: float, ports: list[int]) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    results = await asyncio.gather(
        *(
            run_load(
                LoadPlan(url, Crowd(visitors, within_s), timeout_s=60.0, connect=("127.0.0.1", port), owns_host=True)
            )
            for port in ports
        )
    )
    found = {
        port: {"statuses": dict(result.statuses), "errors": dict(result.errors), "examples": result.examples}
        for port, result in zip(ports, results, strict=True)
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    raise_open_files_limit()
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), [int(port) for port in sys.argv[4:]]))

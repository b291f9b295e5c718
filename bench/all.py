"""Every benchmark, one after the other, and then `docs/benchmarks.md` from what they recorded.

python bench/all.py [--quick]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = [
    "startup",
    "crowd",
    "cached",
    "compressed",
    "http2",
    "http3",
    "cache_scale",
    "passthrough",
    "latency",
    "relay",
    "bulk",
    "streams",
    "idle",
    "recovery",
    "lossy",
    "congestion",
    "path_mtu",
    "full_node",
    "fleet",
]


def main() -> int:
    failed = []
    for script in SCRIPTS:
        print(f"== {script}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{script}.py"), *sys.argv[1:]], check=False).returncode:
            failed.append(script)
    if "--quick" not in sys.argv and "--no-record" not in sys.argv:
        subprocess.run([sys.executable, str(HERE / "docs_page.py")], check=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

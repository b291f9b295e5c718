"""Pass-through: 1 KB, nothing cached, 64 visitors, the edge and the agent together on one core.

python bench/passthrough.py [--quick] [--only frp]
"""

from __future__ import annotations

from functools import partial

import rivals
import subjects
from baselines import direct, nginx_origin, nginx_proxy
from harness import Running, Subject, measure, parse_arguments, report, run_main
from keep_alive import COLUMNS, keep_alive_run


def the_subjects(origin: Running) -> dict[str, Subject]:
    return {
        "edgetun TLS": partial(subjects.tunnel, origin, transport="tls"),
        "edgetun QUIC (qh3)": partial(subjects.tunnel, origin, transport="quic"),
        "edgetun QUIC (aioquic)": partial(subjects.tunnel, origin, transport="quic", engine="aioquic"),
        "nginx reverse proxy (no tunnel)": partial(nginx_proxy, origin),
        "frp tcp, TLS": partial(rivals.frp, origin, kind="tcp", transport="tls"),
        "frp tcp, QUIC": partial(rivals.frp, origin, kind="tcp", transport="quic"),
        "frp http, TLS": partial(rivals.frp, origin, kind="http", transport="tls"),
        "frp http, QUIC": partial(rivals.frp, origin, kind="http", transport="quic"),
        "rathole TLS": partial(rivals.rathole, origin),
        "piko (no TLS)": partial(rivals.piko, origin),
        "direct (no hop)": partial(direct, origin),
    }


def main() -> None:
    arguments = parse_arguments(__doc__)
    one = keep_alive_run(arguments)

    with nginx_origin() as origin:
        rows = measure(the_subjects(origin), one, repeats=arguments.repeats, only=arguments.only)
    report("passthrough", "Pass-through, 1 KB, 64 visitors, edge and agent on one core", rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

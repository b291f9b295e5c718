"""Cached answers, one core: edgetun beside nginx's proxy_cache and varnish, HTTP/1.1 in the clear and over TLS 1.3, 1 KB and 100 KB, and handshakes.

python bench/cached.py [--quick]
"""

from __future__ import annotations

from functools import partial

import subjects
from baselines import nginx_cache, nginx_origin, nginx_tls, varnish
from harness import Column, Subject, measure, parse_arguments, report, run_main
from keep_alive import COLUMNS, keep_alive_run

LARGE = 100_000
LARGE_COLUMNS = [Column("mb_cpu", "MB per CPU s", 0, ratio=True), Column("mb", "MB/s", 0, ratio=True), *COLUMNS[2:]]
HANDSHAKE_COLUMNS = [
    Column("rps", "connections/s", 0, ratio=True),
    Column("cpu", "CPU s per 100,000", 2, ratio=True, less_is_better=True),
    *COLUMNS[2:],
]


def main() -> None:
    arguments = parse_arguments(__doc__)
    keep_alive = keep_alive_run(arguments)
    close = keep_alive_run(arguments, headers=["Connection: close"])
    large = keep_alive_run(arguments, body_bytes=LARGE)

    with nginx_origin(fresh_s=3600) as origin, nginx_origin(fresh_s=3600, body_bytes=LARGE) as large_origin:
        plain: dict[str, Subject] = {
            "edgetun": partial(subjects.http, origin, cache="1h"),
            "nginx proxy_cache": partial(nginx_cache, origin),
            "varnish": partial(varnish, origin),
        }
        secure: dict[str, Subject] = {
            "edgetun": partial(subjects.http, origin, cache="1h", https=True),
            "nginx proxy_cache": partial(nginx_tls, origin, subjects.HOST),
        }
        plain_large: dict[str, Subject] = {
            "edgetun": partial(subjects.http, large_origin, cache="1h"),
            "nginx proxy_cache": partial(nginx_cache, large_origin),
        }
        for script, title, the_subjects, one, columns in (
            ("cached", "Cached 1 KB, HTTP/1.1 keep-alive, 64 visitors, one core", plain, keep_alive, COLUMNS),
            (
                "cached-tls",
                "Cached 1 KB, HTTP/1.1 keep-alive over TLS 1.3, 64 visitors, one core",
                secure,
                keep_alive,
                COLUMNS,
            ),
            (
                "cached-100k",
                "Cached 100 KB, HTTP/1.1 keep-alive, 64 visitors, one core",
                plain_large,
                large,
                LARGE_COLUMNS,
            ),
            (
                "cached-handshake",
                "A new TLS 1.3 connection for each cached 1 KB, 64 visitors, one core",
                secure,
                close,
                HANDSHAKE_COLUMNS,
            ),
        ):
            rows = measure(the_subjects, one, repeats=arguments.repeats, only=arguments.only)
            report(script, title, rows, columns, arguments)


if __name__ == "__main__":
    run_main(main)

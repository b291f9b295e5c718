"""Cached 1 KB, keep-alive, one core: edgetun beside nginx's proxy_cache and varnish, plain HTTP/1.1 and TLS 1.3.

python bench/cached.py [--quick]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import subjects
from baselines import nginx_cache, nginx_origin, varnish, write_certificate
from harness import Running, Subject, measure, parse_arguments, report, run_main
from keep_alive import COLUMNS, keep_alive_run


@contextmanager
def nginx_tls(origin: Running) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        files, _ = write_certificate(Path(folder), [subjects.HOST])
        with nginx_cache(origin, files) as running:
            yield Running(running.port, running.servers, subjects.HOST, "https")


def main() -> None:
    arguments = parse_arguments(__doc__)
    one = keep_alive_run(arguments)

    with nginx_origin(fresh_s=3600) as origin:
        plain: dict[str, Subject] = {
            "edgetun": partial(subjects.http, origin, cache="1h"),
            "nginx proxy_cache": partial(nginx_cache, origin),
            "varnish": partial(varnish, origin),
        }
        secure: dict[str, Subject] = {
            "edgetun": partial(subjects.http, origin, cache="1h", https=True),
            "nginx proxy_cache": partial(nginx_tls, origin),
        }
        for script, title, the_subjects in (
            ("cached", "Cached 1 KB, HTTP/1.1 keep-alive, 64 visitors, one core", plain),
            ("cached-tls", "Cached 1 KB, HTTP/1.1 keep-alive over TLS 1.3, 64 visitors, one core", secure),
        ):
            rows = measure(the_subjects, one, repeats=arguments.repeats, only=arguments.only)
            report(script, title, rows, COLUMNS, arguments)


if __name__ == "__main__":
    run_main(main)

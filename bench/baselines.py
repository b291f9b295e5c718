"""nginx in every part it plays: the origin, the plain reverse proxy, the cache. And the origin alone ("direct")."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import CLIENT_CORE, PYTHON, ROOT, Process, Running, Stage, free_port, get_status, is_listening, wait_until
from peers import require

from edgetun_core.pki import DevelopmentCA

ONE_KB = "x" * 1024


def _nginx(stage: Stage, name: str, http: str, core: int, pid_name: str) -> Process:
    """One process without a master: its CPU and memory are nginx's, whole."""
    config = stage.write(
        f"{name}.conf",
        f"""daemon off; master_process off; pid {stage.folder}/{pid_name}.pid; error_log {stage.folder}/{name}.err;
        worker_rlimit_nofile 20000;
        events {{ worker_connections 15000; }}
        http {{
            access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; client_max_body_size 0; tcp_nodelay on;
            client_body_temp_path {stage.folder}/{name}-body; proxy_temp_path {stage.folder}/{name}-proxy;
            fastcgi_temp_path {stage.folder}/f; uwsgi_temp_path {stage.folder}/u; scgi_temp_path {stage.folder}/s;
            {http}
        }}""",
    )
    return stage.start(
        name, [require("nginx"), "-p", str(stage.folder), "-c", config, "-e", f"{stage.folder}/{name}.err"], core=core
    )


@contextmanager
def nginx_origin(*, fresh_s: int | None = None, body_bytes: int = 1024, body: str = "") -> Iterator[Running]:
    """A strong origin on the client's core that answers every path with the same body, 1 KB by default; `body` is a text of another size."""
    port = free_port()
    caching = f'add_header Cache-Control "max-age={fresh_s}";' if fresh_s is not None else ""
    with Stage() as stage:
        answer = f"return 200 '{ONE_KB}';"
        if body_bytes != len(ONE_KB):
            (stage.folder / "body.txt").write_text("x" * body_bytes)
            answer = f"root {stage.folder}; try_files /body.txt =404;"
        if body:
            stage.write("page.txt", body)
            answer = f"root {stage.folder}; default_type text/plain; rewrite ^ /page.txt break;"
        process = _nginx(
            stage,
            "origin",
            f"server {{ listen 127.0.0.1:{port} backlog=4096; {caching} location / {{ {answer} }} }}",
            CLIENT_CORE,
            "origin",
        )
        wait_until("nginx origin", lambda: get_status(port) == 200, [process])
        yield Running(port, (process,))


@contextmanager
def bulk_origin() -> Iterator[Running]:
    """An origin on the client's core for large bodies: `GET /N` gives N bytes, `PUT` swallows."""
    port = free_port()
    with Stage() as stage:
        process = stage.start(
            "bulk-origin", [PYTHON, str(ROOT / "bench" / "bulk_origin.py"), str(port)], core=CLIENT_CORE
        )
        wait_until("bulk origin", lambda: get_status(port, path="/1") == 200, [process])
        yield Running(port, (process,))


@contextmanager
def direct(origin: Running) -> Iterator[Running]:
    """No tunnel at all."""
    yield origin


@contextmanager
def nginx_proxy(origin: Running) -> Iterator[Running]:
    """nginx as a plain reverse proxy: what a hop costs when nothing is tunnelled."""
    port = free_port()
    with Stage() as stage:
        process = _nginx(
            stage,
            "proxy",
            f"""upstream origin {{ server 127.0.0.1:{origin.port}; keepalive 1024; keepalive_requests 1000000000; }}
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location / {{
                    proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
                    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_request_buffering off;
                    proxy_buffering off;
                }}
            }}""",
            0,
            "proxy",
        )
        wait_until("nginx proxy", lambda: get_status(port) == 200, [process])
        yield Running(port, (process,))


@contextmanager
def nginx_cache(
    origin: Running,
    certificate: tuple[Path, Path] | None = None,
    *,
    fresh: str = "60s",
    h2: bool = False,
    gzip_level: int = 0,
) -> Iterator[Running]:
    """nginx with proxy_cache, and collapsing by proxy_cache_lock; over TLS 1.3 when it has a certificate, `h2` with HTTP/2."""
    port = free_port()
    gzip = (
        f"gzip on; gzip_comp_level {gzip_level}; gzip_types text/plain; gzip_proxied any; gzip_vary on;"
        if gzip_level
        else ""
    )
    with Stage() as stage:
        tls = ""
        if certificate is not None:
            cert, key = certificate
            tls = f"ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.3; ssl_session_tickets on;"
        process = _nginx(
            stage,
            "cache",
            f"""proxy_cache_path {stage.folder}/cache keys_zone=one:10m use_temp_path=off;
            server {{
                listen 127.0.0.1:{port} {"ssl" if tls else ""} {"http2" if h2 else ""} backlog=4096; {tls}
                {gzip}
                location / {{
                    proxy_pass http://127.0.0.1:{origin.port}; proxy_cache one; proxy_cache_valid 200 {fresh};
                    proxy_cache_lock on; proxy_cache_use_stale updating;
                }}
            }}""",
            0,
            "cache",
        )
        ready = (lambda: get_status(port) == 200) if not tls else (lambda: get_status(port) == 400)
        wait_until("nginx cache", ready, [process])
        yield Running(port, (process,), scheme="https" if tls else "http")


@contextmanager
def varnish(origin: Running, *, fresh: str = "3600s") -> Iterator[Running]:
    """varnish with its memory store; it collapses by itself. Plain HTTP only: it speaks no TLS."""
    port = free_port()
    with Stage() as stage:
        vcl = stage.write(
            "default.vcl",
            f"""vcl 4.1;
            backend default {{ .host = "127.0.0.1"; .port = "{origin.port}"; }}
            sub vcl_backend_response {{ set beresp.ttl = {fresh}; }}
            """,
        )
        process = stage.start(
            "varnish",
            [
                require("varnishd"), "-F", "-j", "none", "-n", str(stage.folder / "varnish"), "-a", f"127.0.0.1:{port}",
                "-f", vcl, "-s", "malloc,256m", "-p", "thread_pools=1", "-p", "thread_pool_min=50", "-p", "thread_pool_max=500",
            ],
        )  # fmt: skip
        wait_until("varnish", lambda: get_status(port) == 200, [process])
        yield Running(port, (process,))


@contextmanager
def nginx_tls(origin: Running, host: str, *, h2: bool = False) -> Iterator[Running]:
    """nginx with proxy_cache over TLS 1.3, with a certificate of its own for `host`."""
    with tempfile.TemporaryDirectory() as folder:
        files, _ = write_certificate(Path(folder), [host])
        with nginx_cache(origin, files, h2=h2) as running:
            yield Running(running.port, running.servers, host, "https")


@contextmanager
def h2o_files(host: str, body_bytes: int) -> Iterator[Running]:
    """h2o over TLS with a file of this size: it has no cache for what it proxies."""
    port = free_port()
    with Stage() as stage:
        (cert, key), _ = write_certificate(stage.folder, [host])
        _write_page(stage, body_bytes)
        config = stage.write(
            "h2o.conf",
            f"""num-threads: 1
user: {getpass.getuser()}
listen: {{host: 127.0.0.1, port: {port}, ssl: {{certificate-file: {cert}, key-file: {key}}}}}
hosts: {{default: {{paths: {{"/": {{file.dir: {stage.folder}/pages}}}}}}}}
""",
        )
        process = stage.start("h2o", [require("h2o"), "-c", config])
        wait_until("h2o", lambda: is_listening(port), [process])
        yield Running(port, (process,), host, "https")


@contextmanager
def caddy_files(host: str, body_bytes: int) -> Iterator[Running]:
    """Caddy over TLS with a file of this size, on one thread: without a module of others it has no cache either."""
    port = free_port()
    with Stage() as stage:
        (cert, key), _ = write_certificate(stage.folder, [host])
        _write_page(stage, body_bytes)
        config = stage.write(
            "Caddyfile",
            f"""{{
    auto_https off
    admin off
    log {{
        level ERROR
    }}
}}
https://{host}:{port} {{
    bind 127.0.0.1
    tls {cert} {key}
    root * {stage.folder}/pages
    file_server
}}
""",
        )
        home = {"GOMAXPROCS": "1", "HOME": str(stage.folder), "XDG_DATA_HOME": str(stage.folder)}
        process = stage.start(
            "caddy", [require("caddy"), "run", "--config", config, "--adapter", "caddyfile"], env=home
        )
        wait_until("caddy", lambda: is_listening(port), [process])
        yield Running(port, (process,), host, "https")


def _write_page(stage: Stage, body_bytes: int) -> None:
    pages = stage.folder / "pages"
    pages.mkdir()
    (pages / "index.html").write_text("x" * body_bytes)


def write_certificate(folder: Path, names: list[str]) -> tuple[tuple[Path, Path], str]:
    """A certificate and key as files for the server, and the authority's text for the client."""
    ca = DevelopmentCA(folder / "ca")
    cert, key = ca.issue(names)
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(cert)
    files[1].write_bytes(key)
    return files, ca.ca_pem.decode()

"""The admin listener of every process: `/metrics`, `/healthz`, `/readyz`, on a port of its own and in threads of its own.

Threads: requests are answered on the server's threads while the event loop runs on; `collect` and `ready` are called
there, so they only read (plain ints, small dicts) and never touch a transport. `prometheus_client` is imported by `start_admin`:
call that once the process is ready, so that it does not cost start-up time. Loopback or a cluster's inside only: what can be
read needs no authentication. What changes something (`Actions`) is a POST with the secret of `Actions.token`, and runs on the loop.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from edgetun_core.errors import AddressUnavailable, ConfigError, EdgetunError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

log = logging.getLogger(__name__)

MAX_CONCURRENT = 8
"""Requests answered at one time; one more is closed at once. A scraper or two and a kubelet need less."""
REQUEST_TIMEOUT_S = 10.0
LOOP_PATIENCE_S = 2.0
"""How long the event loop may take to react before `/healthz` calls it stuck."""
MAX_ACTION_BYTES = 1 << 20
_COLLECT_TRIES = 4
KEPT_WHILE_DRAINING = "draining=ready"
"""`/readyz?draining=ready` is true until what is in flight has ended. Kubernetes sends nobody new to a pod that is to go, whatever its
probe says; but when the probe fails, kube-proxy forgets the pod's UDP flows too, and QUIC sessions that drain end up at another pod."""

Collect = Callable[[], "Iterable[Metric]"]
Ready = Callable[[], tuple[bool, dict[str, Any]]]


class AdminServer:
    """A running admin listener."""

    def __init__(self, server: _Server, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.host = str(server.server_address[0])
        self.port = int(server.server_address[1])

    def close(self) -> None:
        """Stops listening; returns when the listener's thread has ended. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(REQUEST_TIMEOUT_S)


Action = Callable[[bytes], Coroutine[Any, Any, dict[str, Any]]]
"""What a POST does: takes its body, runs on the event loop, returns what is told as JSON. Raises EdgetunError for a wrong body."""


@dataclass(frozen=True, slots=True)
class Actions:
    """What may be done by POST, by path; `token` is the secret that must come as `Authorization: Bearer`."""

    token: str
    by_path: Mapping[str, Action]


def start_admin(host: str, port: int, collect: Collect, ready: Ready, actions: Actions | None = None) -> AdminServer:
    """Listens on `host:port` (0 takes a free port) and answers from `collect` and `ready`, both called on other threads.

    `ready` returns whether the process should get traffic, and a JSON-able dict that says why or why not. When called on a
    running event loop, `/healthz` also says whether that loop still reacts. Raises `AddressUnavailable` when it cannot listen.
    """
    try:
        loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    try:
        server = _Server((host, port), _application(collect, ready, loop, actions))
    except OSError as error:
        if isinstance(error, socket.gaierror):
            raise ConfigError(
                f'--metrics: "{host}" is not an address of this machine', remedy="write 127.0.0.1:9090"
            ) from error
        raise AddressUnavailable(
            f"the admin listener cannot use {host}:{port} ({error.strerror or error})",
            remedy="choose another address with --metrics",
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="admin", daemon=True)
    thread.start()
    return AdminServer(server, thread)


class _Collector:
    """Reads the process's numbers at the time of a scrape."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        for _ in range(_COLLECT_TRIES):
            try:
                return list(self._collect())
            except RuntimeError:
                # A dict grew while it was read here: the loop went on meanwhile. The next try sees it whole.
                continue
        return list(self._collect())


def build_registry(collect: Collect) -> CollectorRegistry:
    """A registry that holds what `collect` gives and nothing else."""
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(collect))
    return registry


def _application(
    collect: Collect, ready: Ready, loop: asyncio.AbstractEventLoop | None, actions: Actions | None
) -> WSGIApplication:
    from prometheus_client.exposition import make_wsgi_app

    from edgetun_core.process_metrics import register_process

    registry = build_registry(collect)
    register_process(registry, loop)
    metrics = make_wsgi_app(registry)

    def answer(start: StartResponse, status: str, body: dict[str, Any]) -> list[bytes]:
        data = (json.dumps(body, default=str) + "\n").encode()
        start(
            status,
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(data))),
                ("Cache-Control", "no-store"),
            ],
        )
        return [data]

    def application(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        action = actions.by_path.get(path) if actions is not None else None
        if actions is not None and action is not None and loop is not None:
            return answer(start, *_act(actions, action, environ, loop))
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return answer(start, "405 Method Not Allowed", {"error": "only GET is answered here"})
        match path:
            case "/metrics":
                result: Iterable[bytes] = metrics(environ, start)
                return result
            case "/healthz":
                if loop is None or _reacts(loop):
                    return answer(start, "200 OK", {"status": "ok"})
                return answer(start, "503 Service Unavailable", {"status": "stuck", "error": "the event loop is stuck"})
            case "/readyz":
                is_ready, details = ready()
                if KEPT_WHILE_DRAINING in environ.get("QUERY_STRING", "").split("&"):
                    is_ready = is_ready or details.get("draining") is True
                status = "200 OK" if is_ready else "503 Service Unavailable"
                return answer(start, status, {"ready": is_ready, **details})
        return answer(start, "404 Not Found", {"error": "see /metrics, /healthz and /readyz"})

    return application


def _act(
    actions: Actions, action: Action, environ: WSGIEnvironment, loop: asyncio.AbstractEventLoop
) -> tuple[str, dict[str, Any]]:
    """Runs an action for who knows the secret."""
    if environ.get("REQUEST_METHOD") != "POST":
        return "405 Method Not Allowed", {"error": "this wants a POST"}
    scheme, _, token = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), actions.token.encode()):
        return "401 Unauthorized", {"error": "this wants the admin token of this process as Authorization: Bearer"}
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > MAX_ACTION_BYTES:
        return "413 Content Too Large", {"error": f"the body may have {MAX_ACTION_BYTES} bytes"}
    body = environ["wsgi.input"].read(int(length))
    acting = action(body)
    try:
        future = asyncio.run_coroutine_threadsafe(acting, loop)
    except RuntimeError:
        acting.close()
        return "503 Service Unavailable", {"error": "the event loop is closed"}
    try:
        return "200 OK", future.result(REQUEST_TIMEOUT_S)
    except EdgetunError as error:
        return "400 Bad Request", {"error": str(error)}
    except TimeoutError:
        future.cancel()
        return "503 Service Unavailable", {"error": "it took too long, or the event loop is stuck"}
    except Exception:
        log.exception("an admin action failed")
        return "500 Internal Server Error", {"error": "it failed; the log says how"}


def _reacts(loop: asyncio.AbstractEventLoop) -> bool:
    reacted = threading.Event()
    try:
        loop.call_soon_threadsafe(reacted.set)
    except RuntimeError:
        return False  # closed
    return reacted.wait(LOOP_PATIENCE_S)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """wsgiref's server with a bound on its threads, a time-out, no reverse DNS and no log line per request."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], application: WSGIApplication) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(MAX_CONCURRENT)
        super().__init__(address, _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        # HTTPServer's own asks the resolver for the host's full name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("admin request failed", exc_info=True)  # noqa: LOG014 - called inside the handler


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name for it
        log.debug(format, *args)


__all__ = ["Actions", "AdminServer", "build_registry", "start_admin"]

"""Exit nodes scale on sessions and on requests per second: a real autoscaler asks a metrics adapter for what the operator names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode.node import ExitNode
from edgetun_exitnode.observe.metrics import collect_exit_node
from edgetun_operator.desired.scaling import REQUESTS_METRIC, SESSIONS_METRIC
from support.cluster import ControlPlane
from support.kube_client import KubeClient, Object
from support.operator import GROUP_VERSION, OperatorProcess, conditions, crds, pool
from support.waiting import wait_for

Apply = Callable[..., Object]
API = "custom.metrics.k8s.io"
VERSION = "v1beta2"


class Adapter:
    """The custom metrics API, as a metrics adapter serves it: `totals` is what all pods together have of a metric."""

    def __init__(self, client: KubeClient, folder: Path) -> None:
        self.totals: dict[str, int] = {}
        self.asked: list[str] = []
        adapter = self

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                where = urllib.parse.urlsplit(self.path)
                parts = [urllib.parse.unquote(part) for part in where.path.strip("/").split("/")]
                match parts:
                    case ["apis", "custom.metrics.k8s.io", _]:
                        resources = [
                            {"name": f"pods/{n}", "namespaced": True, "kind": "MetricValueList", "verbs": ["get"]}
                            for n in adapter.totals
                        ]
                        self._answer(
                            {
                                "kind": "APIResourceList",
                                "apiVersion": "v1",
                                "groupVersion": f"{API}/{VERSION}",
                                "resources": resources,
                            }
                        )
                    case [_, _, _, "namespaces", namespace, "pods", "*", metric] if metric in adapter.totals:
                        adapter.asked.append(metric)
                        selector = urllib.parse.parse_qs(where.query).get("labelSelector", [""])[0]
                        pods = client.list_of("v1", "Pod", namespace, labelSelector=selector)["items"]
                        self._answer(
                            {
                                "kind": "MetricValueList",
                                "apiVersion": f"{API}/{VERSION}",
                                "metadata": {},
                                "items": [adapter.value(pod, metric, len(pods)) for pod in pods],
                            }
                        )
                    case _:
                        self._answer({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}, 404)

            def _answer(self, body: Object, status: int = 200) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._server.daemon_threads = True
        context = DevelopmentCA(folder).identity(["localhost"]).ssl_context(("http/1.1",))
        assert isinstance(context, ssl.SSLContext)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def value(self, pod: Object, metric: str, count: int) -> Object:
        meta = pod["metadata"]
        return {
            "describedObject": {
                "kind": "Pod",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "apiVersion": "/v1",
            },
            "metric": {"name": metric},
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "value": str(self.totals[metric] // count),
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def adapter(cluster: ControlPlane, client: KubeClient, namespace: str, tmp_path: Path) -> Iterator[Adapter]:
    """Known to the API server by a Service that leads to this machine."""
    found = Adapter(client, tmp_path / "ca")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metrics-adapter", "namespace": namespace},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": found.port}]},
    }
    api_service = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{VERSION}.{API}"},
        "spec": {
            "group": API,
            "version": VERSION,
            "service": {"namespace": namespace, "name": "metrics-adapter", "port": found.port},
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }
    client.apply(service)
    client.apply(api_service)
    yield found
    client.delete(api_service)
    found.close()


def test_a_region_scales_on_what_the_adapter_tells_of_its_exit_nodes_and_the_metric_that_wants_most_wins(
    cluster: ControlPlane,
    controllers: None,
    client: KubeClient,
    namespace: str,
    unique: str,
    apply: Apply,
    adapter: Adapter,
) -> None:
    cluster.install_crds(crds())
    name = f"p{unique}"
    adapter.totals = {REQUESTS_METRIC: 200, SESSIONS_METRIC: 200}
    apply(pool(name, autoscaling={"minReplicas": 2, "maxReplicas": 12, "requestsPerSecond": 100, "sessions": 100}))

    def deployment() -> Object | None:
        return client.get("apps/v1", "Deployment", f"edgetun-exit-{name}-eu", namespace)

    def all_run() -> bool:
        """Says what a kubelet would: there is no node in this cluster."""
        pods = client.list_of("v1", "Pod", namespace, labelSelector=f"edgetun.dev/pool={name}")["items"]
        for pod in pods:
            if pod["status"].get("phase") != "Running":
                ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
                client.patch(
                    {"apiVersion": "v1", "kind": "Pod", **pod},
                    {"status": {"phase": "Running", "conditions": [ready]}},
                    subresource="status",
                )
        return len(pods) >= 2

    with OperatorProcess(cluster, namespace):
        wait_for(lambda: deployment() and all_run(), 40, "two exit nodes")
        wait_for(lambda: {REQUESTS_METRIC, SESSIONS_METRIC} <= set(adapter.asked), 60, "the autoscaler asks for both")
        adapter.totals[REQUESTS_METRIC] = 600  # thrice what was aimed for
        wait_for(lambda: all_run() and deployment()["spec"]["replicas"] == 6, 90, "six exit nodes")  # type: ignore[index]

        def told() -> bool:
            found = client.get(GROUP_VERSION, "ExitPool", name)
            assert found is not None
            assert conditions(found)["ScalingActive"]["status"] == "True", found["status"]
            return bool(found["status"]["desired"] >= 6)

        wait_for(told, 60, "the pool says so")
        adapter.totals[SESSIONS_METRIC] = 900
        wait_for(lambda: all_run() and deployment()["spec"]["replicas"] == 9, 90, "nine exit nodes")  # type: ignore[index]


def test_the_metrics_are_those_that_an_exit_node_serves() -> None:
    async def names() -> set[str]:
        node = ExitNode("n1")
        try:
            return {family.name for family in await asyncio.to_thread(lambda: list(collect_exit_node(node)))}
        finally:
            await node.close()

    assert {REQUESTS_METRIC, SESSIONS_METRIC} <= asyncio.run(names())

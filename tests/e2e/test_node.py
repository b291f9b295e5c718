"""The node of the harness runs pods, answers on NodePorts, measures CPU; edgetun's image starts as it must on a cluster."""

from __future__ import annotations

import tomllib
import urllib.request

from support.image import PROJECT
from support.kube_client import Object
from support.node import NodeCluster
from support.waiting import wait_for

RESTRICTED: Object = {
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(namespace: str, name: str, image: str, **container: object) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": image, "imagePullPolicy": "Never", **container}],
        },
    }


def test_a_pod_answers_through_a_node_port(node: NodeCluster, namespace: str) -> None:
    node.client.apply(pod(namespace, "web", "registry.test/web:1"))
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    port = node.client.apply(service)["spec"]["ports"][0]["nodePort"]

    def visit() -> str:
        with urllib.request.urlopen(f"http://{node.node_ip}:{port}/", timeout=2) as answer:
            return str(answer.read().decode())

    assert wait_for(visit, 60, "the NodePort answers").startswith("hello from web")
    with urllib.request.urlopen(
        f"http://{node.node_ip}:{port}/dns?q=web.{namespace}.svc.cluster.local", timeout=10
    ) as answer:
        assert answer.read().decode().startswith("[10.96.")


def test_the_image_runs_every_command_as_a_stranger_on_a_read_only_root(
    node: NodeCluster, namespace: str, image: str
) -> None:
    commands = tuple(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"])
    assert "edgetun-exitnode" in commands
    for command in commands:
        arguments = {"command": [command, "--help"], "securityContext": RESTRICTED}
        node.client.apply(pod(namespace, command, image, **arguments))

    def phase(name: str) -> str:
        found = node.client.get("v1", "Pod", name, namespace)
        assert found is not None
        phase = found["status"].get("phase")
        assert phase in {"Succeeded", "Failed"}, found["status"]
        return str(phase)

    phases = {name: wait_for(lambda name=name: phase(name), 90, f"{name} ends") for name in commands}  # type: ignore[misc]
    told = {name: node.kubectl("logs", "-n", namespace, name) for name in commands}
    assert phases == dict.fromkeys(commands, "Succeeded"), told
    assert all("usage" in text.lower() for text in told.values()), told


def test_what_a_pod_uses_is_measured(node: NodeCluster) -> None:
    """Or no HorizontalPodAutoscaler would ever act."""
    path = "/apis/metrics.k8s.io/v1beta1/nodes"
    found = wait_for(lambda: node.client.request("GET", path)["items"], 90, "metrics of the node")
    assert found[0]["usage"]["cpu"]

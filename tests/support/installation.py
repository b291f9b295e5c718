"""edgetun on a real node, as docs/kubernetes.md has it: the chart, a pool with three regions, tunnels, agents outside, visitors."""

from __future__ import annotations

import base64
import contextlib
import http.client
from pathlib import Path

from support.chart import CHART
from support.cluster import ClusterError
from support.commands import Command
from support.kube_client import Object
from support.node import NodeCluster
from support.operator import GROUP_VERSION, conditions, token, tunnel
from support.waiting import wait_for

SYSTEM = "edgetun-system"
CONTROL_PORT = 30744
REGIONS = {"eu-west": 30, "us-east": 31, "ap-south": 32}
"""Each region, and the first two digits of its node ports."""
DOMAIN = "tunnels.example.com"
DRAIN_S = 25
SMALL = {"resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}}


def node_ports(region: str) -> dict[str, int]:
    first = REGIONS[region] * 1000
    return {"http": first + 80, "https": first + 443, "tunnel": first + 743}


def exit_pool(node: NodeCluster, **replicas: int) -> Object:
    """The pool named default; `replicas` by region, with `_` for `-`, 1 where nothing is said."""
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "ExitPool",
        "metadata": {"name": "default"},
        "spec": {
            "domains": [f"*.{DOMAIN}"],
            "drain": f"{DRAIN_S}s",
            "service": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "addresses": [node.node_ip]},
            "podTemplate": SMALL,
            "regions": [
                {
                    "name": name,
                    "replicas": replicas.get(name.replace("-", "_"), 1),
                    "service": {"nodePorts": node_ports(name)},
                }
                for name in REGIONS
            ],
        },
    }


def helm_install(node: NodeCluster, image: str, chart: Path = CHART, *arguments: str) -> str:
    """`helm upgrade --install --wait`; what helm said."""
    repository, _, tag = image.rpartition(":")
    sets = {
        "image.repository": repository,
        "image.tag": tag,
        "image.pullPolicy": "Never",
        "control.service.type": "NodePort",
        "control.service.nodePort": str(CONTROL_PORT),
        "control.urls[0]": f"https://{node.node_ip}:{CONTROL_PORT}",
        "operator.resources.requests.cpu": "50m",
        "control.resources.requests.cpu": "50m",
    }
    return node.helm(
        "upgrade",
        "--install",
        "edgetun",
        str(chart),
        f"--namespace={SYSTEM}",
        "--create-namespace",
        "--wait",
        "--timeout=4m",
        *arguments,
        *(
            f"--set-string={name}={value}" if name == "image.tag" else f"--set={name}={value}"
            for name, value in sets.items()
        ),
        timeout_s=260,
    )


def told(node: NodeCluster) -> str:
    """What the system's pods are, and the ends of their logs."""
    parts = [
        node.kubectl("get", "pods", "-A", "-o", "wide"),
        node.kubectl("get", "exitpools,agents,tunnels", "-A", "-o", "wide"),
    ]
    parts.append(node.kubectl("get", "events", "-n", SYSTEM, "--sort-by=.lastTimestamp")[-2000:])
    for app in ("edgetun-operator", "edgetun-control", "edgetun-exitnode"):
        with contextlib.suppress(ClusterError):
            parts.append(
                node.kubectl("logs", "-n", SYSTEM, f"-lapp.kubernetes.io/name={app}", "--tail=15", "--prefix")[-4000:]
            )
    return "\n".join(parts)


def ready(node: NodeCluster, kind: str, name: str, namespace: str | None, deadline_s: float) -> Object:
    def look() -> Object:
        found = node.client.get(GROUP_VERSION, kind, name, namespace)
        condition = conditions(found).get("Ready", {})
        assert condition.get("status") == "True", (found or {}).get("status")
        assert found is not None
        return found

    return wait_for(look, deadline_s, f"{kind} {name} is ready")


def scaled(node: NodeCluster, replicas: int, *components: str) -> None:
    """Scales operator or control, and waits until that is so."""
    for component in components:
        node.kubectl("scale", f"--namespace={SYSTEM}", f"deployment/edgetun-{component}", f"--replicas={replicas}")
    for component in components:
        if replicas:
            node.kubectl(
                *("rollout", "status", f"deployment/edgetun-{component}", f"--namespace={SYSTEM}", "--timeout=120s"),
                timeout_s=130,
            )
        else:
            label = f"-lapp.kubernetes.io/component={component}"
            wait_for(
                lambda label=label: not node.kubectl("get", "pods", "-n", SYSTEM, label, "-o", "name").strip(),  # type: ignore[misc]
                60,
                f"{component} is gone",
            )


def rolled(node: NodeCluster, image: str, pool: str = "default") -> bool:
    """Whether every exit node of a pool runs an image, serves, and no other is left."""
    pods = node.client.list_of("v1", "Pod", SYSTEM, labelSelector=f"edgetun.dev/pool={pool}")["items"]
    images = {pod["spec"]["containers"][0]["image"] for pod in pods}
    ready_conditions = [
        c["status"] for pod in pods for c in pod["status"].get("conditions", ()) if c["type"] == "Ready"
    ]
    assert images == {image}, [(pod["metadata"]["name"], pod["spec"]["containers"][0]["image"]) for pod in pods]
    return len(pods) >= len(REGIONS) and set(ready_conditions) == {"True"}


def visit(node: NodeCluster, region: str, host: str, path: str = "/") -> tuple[int, str]:
    """A visitor of a region, through the NodePort of its Service."""
    connection = http.client.HTTPConnection(node.node_ip, node_ports(region)["http"], timeout=10)
    try:
        connection.request("GET", path, headers={"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Served:
    """A tunnel with a token, and agents on this machine."""

    def __init__(self, node: NodeCluster, namespace: str, folder: Path, origin_url: str, pool: str = "default") -> None:
        self.node, self.namespace, self.folder, self.origin_url = node, namespace, folder, origin_url
        self.host = f"{namespace}.{DOMAIN}"
        wanted = tunnel(namespace, "shop", pool, self.host)
        wanted["spec"]["origin"]["url"] = origin_url
        node.client.apply(wanted)
        node.client.apply(token(namespace, "laptops"))
        secret = wait_for(lambda: node.client.get("v1", "Secret", "laptops-token", namespace), 30, "the token's Secret")
        self.token = base64.b64decode(secret["data"]["token"]).decode()

    def agent(self, *arguments: str) -> Command:
        return Command(
            "edgetun-agent",
            f"--state={self.folder}",
            *arguments,
            environ={"EDGETUN_CLUSTER_TOKEN": self.token},
        )

    def agents(self) -> list[Object]:
        found: list[Object] = self.node.client.list_of(GROUP_VERSION, "Agent", self.namespace)["items"]
        return [one for one in found if (one.get("status") or {}).get("sessions")]

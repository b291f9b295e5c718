"""What docs/kubernetes.md promises, on a real node: install, a pool, a tunnel, an agent outside, a visitor; and uninstall."""

from __future__ import annotations

import base64
import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.chart import CHART
from support.cluster import ClusterError
from support.commands import Command, Origin, an_origin
from support.kube_client import Object
from support.node import NodeCluster
from support.operator import GROUP_VERSION, conditions, token, tunnel
from support.waiting import wait_for

SYSTEM = "edgetun-system"
CONTROL_PORT = 30744
REGIONS = {"eu-west": 30, "us-east": 31, "ap-south": 32}
"""Each region, and the first two digits of its node ports."""
DOMAIN = "tunnels.example.com"

pytestmark = pytest.mark.timeout(300)


def node_ports(region: str) -> dict[str, int]:
    first = REGIONS[region] * 1000
    return {"http": first + 80, "https": first + 443, "tunnel": first + 743}


def exit_pool(node: NodeCluster) -> Object:
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "ExitPool",
        "metadata": {"name": "default"},
        "spec": {
            "domains": [f"*.{DOMAIN}"],
            "drain": "5s",
            "service": {"type": "NodePort", "externalTrafficPolicy": "Cluster", "addresses": [node.node_ip]},
            "podTemplate": {"resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}},
            "regions": [{"name": name, "replicas": 1, "service": {"nodePorts": node_ports(name)}} for name in REGIONS],
        },
    }


def helm_install(node: NodeCluster, image: str) -> None:
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
    node.helm(
        "upgrade",
        "--install",
        "edgetun",
        str(CHART),
        f"--namespace={SYSTEM}",
        "--create-namespace",
        "--wait",
        "--timeout=3m",
        *(
            f"--set-string={name}={value}" if name == "image.tag" else f"--set={name}={value}"
            for name, value in sets.items()
        ),
        timeout_s=200,
    )


@pytest.fixture(scope="module")
def installed(node: NodeCluster, image: str) -> Iterator[NodeCluster]:
    """The chart is installed, and a pool with three regions is ready."""
    try:
        helm_install(node, image)
        node.client.apply(exit_pool(node))
        ready(node, "ExitPool", "default", None, 120)
    except (ClusterError, AssertionError, TimeoutError) as error:
        error.add_note(told(node))
        raise
    yield node
    with contextlib.suppress(ClusterError):
        node.helm("uninstall", "edgetun", f"--namespace={SYSTEM}", "--wait", "--timeout=2m")


def told(node: NodeCluster) -> str:
    """What the system's pods are, and the ends of their logs."""
    parts = [node.kubectl("get", "pods", "-A", "-o", "wide"), node.kubectl("describe", "pods", "-n", SYSTEM)[-3000:]]
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

    def __init__(self, node: NodeCluster, namespace: str, folder: Path, origin: Origin) -> None:
        self.node, self.namespace, self.folder, self.origin = node, namespace, folder, origin
        self.host = f"{namespace}.{DOMAIN}"
        wanted = tunnel(namespace, "shop", "default", self.host)
        wanted["spec"]["origin"]["url"] = origin.url
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


@pytest.fixture
def served(installed: NodeCluster, namespace: str, tmp_path: Path) -> Iterator[Served]:
    with an_origin("laptop") as origin:
        yield Served(installed, namespace, tmp_path, origin)


@pytest.mark.parametrize("transport", ["quic", "tls"])
def test_a_visitor_reaches_an_agent_outside_the_cluster(served: Served, transport: str) -> None:
    with served.agent(f"--transport={transport}") as agent:
        try:
            ready(served.node, "Tunnel", "shop", served.namespace, 60)
            shown = wait_for(served.agents, 30, "an Agent with sessions")[0]["status"]
            assert shown["pool"] == "default"
            assert shown["transport"] == transport
            answers = {r: visit(served.node, r, served.host, f"/{transport}") for r in {shown["region"]}}
            assert answers == dict.fromkeys(answers, (200, f"laptop /{transport}"))
        except (AssertionError, TimeoutError) as error:
            error.add_note(f"{agent.said}\n{told(served.node)}")
            raise


def test_a_revoked_token_closes_its_sessions(served: Served) -> None:
    with served.agent():
        region = wait_for(served.agents, 60, "an Agent with sessions")[0]["status"]["region"]
        wait_for(lambda: visit(served.node, region, served.host)[0] == 200, 30, "the tunnel serves")
        served.node.client.delete(token(served.namespace, "laptops"))
        wait_for(lambda: visit(served.node, region, served.host)[0] != 200, 10, "the token's sessions are closed")


def test_visitors_get_answers_while_control_and_operator_are_away(served: Served) -> None:
    scale = ("scale", f"--namespace={SYSTEM}", "deployment/edgetun-control", "deployment/edgetun-operator")
    with served.agent():
        region = wait_for(served.agents, 60, "an Agent with sessions")[0]["status"]["region"]
        wait_for(lambda: visit(served.node, region, served.host)[0] == 200, 30, "the tunnel serves")
        try:
            served.node.kubectl(*scale, "--replicas=0")
            gone = "app.kubernetes.io/component in (control, operator)"
            wait_for(
                lambda: not served.node.kubectl("get", "pods", "-n", SYSTEM, f"-l{gone}", "-o", "name").strip(),
                60,
                "control and operator are gone",
            )
            assert [visit(served.node, region, served.host)[0] for _ in range(20)] == [200] * 20
        finally:
            served.node.kubectl(*scale, "--replicas=2")
            for name in ("control", "operator"):
                served.node.kubectl(
                    "rollout",
                    "status",
                    f"deployment/edgetun-{name}",
                    f"--namespace={SYSTEM}",
                    "--timeout=90s",
                    timeout_s=100,
                )


def test_uninstall_leaves_what_the_documentation_says(installed: NodeCluster, image: str, namespace: str) -> None:
    """The last test of this file: it takes the chart away."""
    name = f"kept.{DOMAIN}"
    installed.client.apply(tunnel(namespace, "kept", "default", name))
    wait_for(lambda: installed.client.get(GROUP_VERSION, "HostnameReservation", name), 30, "the reservation")
    installed.client.delete(exit_pool(installed))
    installed.helm("uninstall", "edgetun", f"--namespace={SYSTEM}", "--wait", "--timeout=2m")

    def left() -> set[str]:
        listed = "deployments,services,serviceaccounts,configmaps,secrets,leases,hpa,pdb,networkpolicies,roles,rolebindings,pods"
        names = installed.kubectl("get", listed, f"--namespace={SYSTEM}", "-o", "name").split()
        return set(names) - {"serviceaccount/default", "configmap/kube-root-ca.crt"}

    expected = {"secret/edgetun-ca", "secret/edgetun-signing-keys", "secret/edgetun-control-tls"}
    expected.add("lease.coordination.k8s.io/edgetun-operator")

    def as_documented() -> bool:
        assert left() == expected
        return True

    wait_for(as_documented, 60, "nothing else is left")
    assert installed.client.get(GROUP_VERSION, "HostnameReservation", name) is not None
    cluster_wide = installed.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    assert "edgetun" not in cluster_wide

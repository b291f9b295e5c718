"""What docs/kubernetes.md promises, on a real node: an agent outside, a visitor, a token that ends; and uninstall."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from support.commands import Command
from support.image import PROJECT
from support.installation import DOMAIN, SYSTEM, Served, exit_pool, ready, told, visit
from support.live import a_live_origin
from support.node import NodeCluster
from support.operator import GROUP_VERSION, token, tunnel
from support.waiting import wait_for

pytestmark = pytest.mark.timeout(300)


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


def test_every_command_of_the_page_that_only_looks_works_as_it_stands(installed: NodeCluster, tmp_path: Path) -> None:
    """With the page's own manifests: a pool that is there already, the tunnel and the token of team-a."""
    page = (PROJECT / "docs" / "kubernetes.md").read_text()
    first = page.partition("## First tunnel")[2].partition("\n## ")[0]
    manifests = next(
        block for block in re.findall(r"```yaml\n(.*?)```", first, re.DOTALL) if "kind: AgentToken" in block
    )
    commands = [
        line.replace("\\|", "|")
        for line in re.findall(r"(?m)^kubectl .+$", page) + re.findall(r"`(kubectl [^`]+)`", page)
        if re.match(r"kubectl (-n \S+ )?(get|describe|logs|wait) ", line)
        and "certificate" not in line
        and "delete" not in line
    ]
    assert len(commands) > 8, commands
    installed.kubectl("create", "namespace", "team-a")
    try:
        installed.kubectl("apply", "-f", "-", stdin=manifests)
        wait_for(lambda: installed.client.get("v1", "Secret", "laptops-token", "team-a"), 30, "the token")
        with a_live_origin() as url:
            text = run_in_shell(
                installed, "kubectl -n team-a get secret laptops-token -o jsonpath='{.data.token}' | base64 -d"
            )
            assert "base64 -d" in page
            agent = Command(
                "edgetun-agent",
                f"--state={tmp_path}",
                "--tunnel=team-a/shop",
                f"--origin={url}",
                environ={"EDGETUN_CLUSTER_TOKEN": text},
            )
            with agent:
                agent.line("ready in", 60)
                for command in commands:
                    run_in_shell(installed, command)
                assert visit(installed, "eu-west", "shop.tunnels.example.com")[0] == 200
    finally:
        installed.kubectl("delete", "namespace", "team-a", "--wait=false")


def run_in_shell(node: NodeCluster, command: str) -> str:
    """As somebody types it, with `kubectl` for this cluster."""
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=node.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout


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

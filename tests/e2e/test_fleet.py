"""What may happen to a fleet while visitors come: load, upgrades, killed and emptied exit nodes, no control, no operator.

`Visitors` ask all the time; nothing that they are answered may be cut or be a 5xx.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from support.chart import CHART
from support.commands import Command, run
from support.installation import (
    DOMAIN,
    DRAIN_S,
    REGIONS,
    SYSTEM,
    Served,
    exit_pool,
    helm_install,
    node_ports,
    ready,
    rolled,
    scaled,
    told,
    visit,
)
from support.kube_client import Object
from support.live import Visitors, a_live_origin
from support.manifests import as_it_was_before, read_crds
from support.node import NodeCluster
from support.operator import GROUP_VERSION, conditions, tunnel
from support.waiting import wait_for

pytestmark = pytest.mark.timeout(420)

DOWNLOAD_BYTES = 128 << 20
"""Of each region at once, from the old pods while they end: paced, so that it is the time and not the machine that is tested."""
SCALED_PORTS = {"http": 30180, "https": 30181, "tunnel": 30182}


@contextmanager
def an_agent(served: Served, *arguments: str) -> Iterator[Command]:
    """An agent that serves; what the fleet said stands beside whatever fails while it runs."""
    with served.agent(*arguments) as agent:
        try:
            ready(served.node, "Tunnel", "shop", served.namespace, 90)
            yield agent
        except (AssertionError, TimeoutError) as error:
            said = "\n".join(line for line in agent.said.splitlines() if " GET /" not in line)
            error.add_note(f"the agent said:\n{said[-3000:]}\n{told(served.node)}")
            raise


def address(node: NodeCluster, region: str) -> tuple[str, int]:
    return node.node_ip, node_ports(region)["http"]


def everywhere(node: NodeCluster, *but: str) -> list[tuple[str, int]]:
    return [address(node, region) for region in REGIONS if region not in but]


def serves_everywhere(served: Served, *but: str) -> None:
    for region in REGIONS:
        if region not in but:
            wait_for(lambda region=region: visit(served.node, region, served.host)[0] == 200, 30, f"{region} serves")  # type: ignore[misc]


def regions_of(served: Served) -> set[str]:
    """Where the tunnel's agents hold sessions."""
    names = {name for agent in served.agents() for name in agent["status"]["nodes"]}
    return {region for region in REGIONS if any(name.startswith(f"edgetun-exit-default-{region}-") for name in names)}


def pods(node: NodeCluster, pool: str, region: str = "") -> list[Object]:
    label = f"edgetun.dev/pool={pool}" + (f",edgetun.dev/region={region}" if region else "")
    found: list[Object] = node.client.list_of("v1", "Pod", SYSTEM, labelSelector=label)["items"]
    return found


def test_an_exit_node_that_is_killed_costs_visitors_elsewhere_nothing(served: Served) -> None:
    with an_agent(served):
        serves_everywhere(served)
        home = wait_for(served.agents, 30)[0]["status"]["region"]
        (before,) = pods(served.node, "default", home)
        with Visitors(served.host, everywhere(served.node, home)) as visitors:
            time.sleep(1)
            name = before["metadata"]["name"]
            served.node.kubectl("delete", "pod", name, f"--namespace={SYSTEM}", "--force", "--grace-period=0")
            wait_for(lambda: visit(served.node, home, served.host)[0] == 200, 90, "another one serves in its place")
            visitors.stop()
        assert name not in {pod["metadata"]["name"] for pod in pods(served.node, "default", home)}


def test_an_emptied_region_lets_its_agents_go_and_is_filled_again(served: Served) -> None:
    with an_agent(served):
        serves_everywhere(served)
        home = wait_for(served.agents, 30)[0]["status"]["region"]
        with Visitors(served.host, everywhere(served.node, home)) as visitors:
            served.node.client.apply(exit_pool(served.node, **{home.replace("-", "_"): 0}))
            wait_for(lambda: not pods(served.node, "default", home), 90, "the region is empty")
            wait_for(lambda: (there := regions_of(served)) and home not in there, 60, "its agents are elsewhere")
            wait_for(lambda: served.agents()[0]["status"]["placed"] != f"default/{home}", 30, "it is placed elsewhere")
            ready(served.node, "ExitPool", "default", None, 60)
            served.node.client.apply(exit_pool(served.node))
            wait_for(lambda: visit(served.node, home, served.host)[0] == 200, 90, "the region serves again")
            visitors.stop()
        ready(served.node, "ExitPool", "default", None, 60)


def test_without_control_and_operator_everything_serves_and_nothing_is_lost(served: Served, tmp_path: Path) -> None:
    with an_agent(served):
        serves_everywhere(served)
        with Visitors(served.host, everywhere(served.node)) as visitors:
            try:
                scaled(served.node, 0, "control", "operator")
                while_away = tunnel(served.namespace, "later", "default", f"later-{served.host}")
                while_away["spec"]["origin"]["url"] = served.origin_url
                served.node.client.apply(while_away)
                time.sleep(3)
            finally:
                scaled(served.node, 2, "control", "operator")
            ready(served.node, "Tunnel", "later", served.namespace, 90)
            region = next(iter(wait_for(lambda: regions_of(served), 30)))
            wait_for(
                lambda: visit(served.node, region, f"later-{served.host}")[0] == 200, 30, "what was written meanwhile"
            )
            visitors.stop()


@pytest.fixture
def scaled_pool(installed: NodeCluster) -> Iterator[str]:
    """A pool of one region that scales on CPU, soon up and soon down."""
    pool = {
        "apiVersion": GROUP_VERSION,
        "kind": "ExitPool",
        "metadata": {"name": "scaled"},
        "spec": {
            "domains": [f"*.{DOMAIN}"],
            "drain": "5s",
            "service": {
                "type": "NodePort",
                "externalTrafficPolicy": "Cluster",
                "addresses": [installed.node_ip],
                "nodePorts": SCALED_PORTS,
            },
            "podTemplate": {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
            "autoscaling": {
                "minReplicas": 1,
                "maxReplicas": 3,
                "cpu": 30,
                "behavior": {
                    "scaleUp": {"pods": 2, "period": "5s"},
                    "scaleDown": {"stabilization": "5s", "pods": 2, "period": "10s"},
                },
            },
            "regions": [{"name": "here"}],
        },
    }
    installed.client.apply(pool)
    yield "scaled"
    installed.client.delete(pool)
    wait_for(lambda: not pods(installed, "scaled"), 60, "its exit nodes are gone")


def load(host: str, where: tuple[str, int]) -> Object:
    """What `edgetun load` says after ten seconds."""
    command = run(
        "edgetun",
        "load",
        f"http://{host}/load",
        f"--connect={where[0]}:{where[1]}",
        "--i-own-this-host",
        "--duration=10s",
        "--concurrency=16",
        "--json",
    )
    found: Object = json.loads(command.out or command.err)
    return found


def test_an_exit_deployment_scales_on_cpu_under_load_and_back_without_cutting_a_visitor(
    installed: NodeCluster, scaled_pool: str, namespace: str, tmp_path: Path
) -> None:
    node = installed
    here = (node.node_ip, SCALED_PORTS["http"])

    def serving() -> int:
        found = node.client.get("apps/v1", "Deployment", "edgetun-exit-scaled-here", SYSTEM)
        return int((found or {}).get("status", {}).get("availableReplicas") or 0)

    with a_live_origin() as origin_url:
        served = Served(node, namespace, tmp_path, origin_url, scaled_pool)
        with an_agent(served):
            wait_for(
                lambda: (
                    conditions(node.client.get(GROUP_VERSION, "ExitPool", "scaled"))["ScalingActive"]["status"]
                    == "True"
                ),
                90,
                "the autoscaler has numbers",
            )
            wait_for(lambda: serving() == 1, 60, "one exit node serves")
            with Visitors(served.host, [here], each_s=0.3) as visitors:
                loads: list[Object] = []
                while serving() < 2 and len(loads) < 10:
                    loads.append(load(served.host, here))
                assert serving() >= 2, node.kubectl("describe", "hpa", f"--namespace={SYSTEM}")
                loads.append(load(served.host, here))  # and with all of them
                wait_for(lambda: serving() == 1 and len(pods(node, "scaled")) == 1, 150, "it has scaled down again")
                visitors.stop()
    for found in loads:
        assert found["requests"]["failed"] == 0, loads
        assert set(found["statuses"]) == {"200"}, loads
    pool = ready(node, "ExitPool", "scaled", None, 30)
    assert pool["status"]["desired"] == 1


def image_of(pod: Object) -> str:
    return str(pod["spec"]["containers"][0]["image"])


def templates(node: NodeCluster) -> set[str]:
    """The images that the Deployments of the pool's regions ask for."""
    found = node.client.list_of("apps/v1", "Deployment", SYSTEM, labelSelector="edgetun.dev/pool=default")["items"]
    return {image_of(one["spec"]["template"]) for one in found}


def previous_chart(folder: Path) -> Path:
    """The chart as a version before this one would have it."""
    chart = folder / "edgetun"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "0.0.9", "appVersion": "0.0.9"}))
    for crd in read_crds():
        path = chart / "crds" / f"{crd['spec']['names']['plural']}.yaml"
        assert path.exists()
        path.write_text(yaml.safe_dump(as_it_was_before(crd)))
    return chart


def upgrade_crds(node: NodeCluster, chart: Path) -> None:
    """As docs/kubernetes.md says it."""
    shown = node.helm("show", "crds", str(chart))
    node.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=shown)


def test_an_upgrade_from_the_previous_chart_rolls_everything_under_live_streams_and_cuts_none(
    served: Served, image: str, tmp_path: Path
) -> None:
    node, before = served.node, f"{image}-previous"
    node.tag_image(image, before)
    chart = previous_chart(tmp_path)
    with an_agent(served):
        serves_everywhere(served)
        try:
            with Visitors(served.host, everywhere(node)) as visitors:
                helm_install(node, before, chart)  # a rollback: the operator and the definitions of the version before
                upgrade_crds(node, chart)
                wait_for(lambda: rolled(node, before), 150, "every exit node is of the version before")
                visitors.stop()
            assert "edgetun-0.0.9" in node.helm("list", f"--namespace={SYSTEM}")
            serves_everywhere(served)

            with Visitors(served.host, everywhere(node)) as visitors, ThreadPoolExecutor(1) as beside:
                upgrade_crds(node, CHART)
                upgrading = beside.submit(helm_install, node, image, CHART, "--reset-then-reuse-values")
                # A new pod takes some seconds to be ready: what begins now begins at the old ones, which are told to go.
                wait_for(lambda: templates(node) == {image}, 120, "the new operator has changed every Deployment")
                old = [pod["metadata"]["name"] for pod in pods(node, "default") if image_of(pod) == before]
                for there in everywhere(node):
                    visitors.follow_events(there, DRAIN_S - 3)
                    visitors.converse(there, DRAIN_S - 3)
                    visitors.download(there, DOWNLOAD_BYTES, DRAIN_S - 5)
                    visitors.upload(there, 20)
                assert old
                upgrading.result()
                wait_for(lambda: rolled(node, image), 150, "every exit node is of this version")
                visitors.stop()
        finally:
            upgrade_crds(node, CHART)
            helm_install(node, image)
        serves_everywhere(served)
        ready(node, "ExitPool", "default", None, 60)
        ready(node, "Tunnel", "shop", served.namespace, 60)

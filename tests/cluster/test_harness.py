"""The harness keeps its promises, with a small CRD of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.cluster import ClusterError, ControlPlane, free_ports, runs
from support.kube_binaries import KUBE, Binaries
from support.kube_client import ApiError, KubeClient, Object
from support.requirements import missing
from support.waiting import NotInTime, eventually, wait_for

GROUP = "harness.edgetun.dev"


def widget_crd() -> Object:
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"size": {"type": "integer", "default": 3}},
                "x-kubernetes-validations": [{"rule": "self.size < 10", "message": "size must be below 10"}],
            },
            "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
        },
    }
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget"},
            "versions": [version | {"subresources": {"status": {}}}],
        },
    }


@pytest.fixture(scope="module", autouse=True)
def widgets(cluster: ControlPlane) -> Iterator[None]:
    cluster.install_crds([widget_crd()])
    yield
    cluster.client.delete(widget_crd())


def widget(namespace: str, name: str = "one", **spec: object) -> Object:
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Widget",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def test_kubectl_and_the_client_see_the_same_cluster(
    kubectl: Callable[..., str], client: KubeClient, namespace: str, apply: Callable[..., Object]
) -> None:
    assert apply(widget(namespace))["spec"] == {"size": 3}
    assert kubectl("get", "widgets", "-n", namespace, "-o", "name") == f"widget.{GROUP}/one\n"
    with pytest.raises(ClusterError, match="size must be below 10"):
        kubectl("patch", "widget", "one", "-n", namespace, "--type=merge", "-p", '{"spec":{"size":10}}')
    with pytest.raises(ApiError, match="size must be below 10") as refused:
        client.apply(widget(namespace, "two", size=10), dry_run=True)
    assert refused.value.status == 422
    with pytest.raises(ApiError, match="field not declared in schema"):
        client.apply(widget(namespace, "three", colour="red"))


def test_a_restarted_api_server_has_lost_nothing_and_closed_every_connection(
    cluster: ControlPlane, namespace: str
) -> None:
    cluster.client.apply(widget(namespace, size=4))
    before = cluster.pid("kube-apiserver")
    with cluster.without_apiserver(), pytest.raises(ConnectionRefusedError):
        cluster.client.get("v1", "Namespace", namespace)
    cluster.restart_apiserver()
    after = cluster.pid("kube-apiserver")
    assert after is not None
    assert after != before
    found = cluster.client.get(f"{GROUP}/v1", "Widget", "one", namespace)
    assert found is not None
    assert found["spec"]["size"] == 4


def test_expired_watches_answer_410(cluster: ControlPlane, client: KubeClient, namespace: str) -> None:
    collection = client.path(f"{GROUP}/v1", "Widget", namespace)
    client.apply(widget(namespace))
    held = client.list_of(f"{GROUP}/v1", "Widget", namespace)["metadata"]["resourceVersion"]
    client.patch(widget(namespace), {"spec": {"size": 5}})
    assert [e["type"] for e in client.watch(collection, held)] == ["MODIFIED"]

    cluster.expire_watches()

    events = client.watch(collection, held)
    assert [(e["type"], e["object"]["code"]) for e in events] == [("ERROR", 410)]
    now = client.list_of(f"{GROUP}/v1", "Widget", namespace)["metadata"]["resourceVersion"]
    assert client.watch(collection, now) == []


CHART = {
    "Chart.yaml": "{apiVersion: v2, name: reader, version: 0.0.1}",
    "values.yaml": "{verbs: [get]}",
    "templates/role.yaml": """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "{{ .Release.Namespace }}-reader"}
rules: [{apiGroups: [harness.edgetun.dev], resources: [widgets], verbs: {{ .Values.verbs | toJson }}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: not-applied}
""",
}


def test_a_service_account_has_the_rights_of_a_charts_role_and_no_others(
    cluster: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    if "helm" not in cluster.binaries.programs:
        missing("helm, beside the programs in KUBEBUILDER_ASSETS or in the cache")
    (tmp_path / "templates").mkdir()
    for name, text in CHART.items():
        (tmp_path / name).write_text(text)
    text = cluster.helm("template", "reader", str(tmp_path), "--namespace", namespace, "--set=verbs={get,list}")
    rendered = list(yaml.safe_load_all(text))
    assert [obj["kind"] for obj in rendered] == ["ClusterRole", "Deployment"]

    cluster.client.apply(widget(namespace))
    reader = cluster.service_account_kubeconfig(namespace, "reader", rendered)
    assert "one" in cluster.kubectl("get", "widgets", "-A", kubeconfig=reader)
    with pytest.raises(ClusterError, match="forbidden"):
        cluster.kubectl("delete", "widget", "one", "-n", namespace, kubeconfig=reader)
    with pytest.raises(ApiError, match="cannot list resource") as refused:
        KubeClient.from_kubeconfig(reader).list_of("v1", "Secret", namespace)
    assert refused.value.reason == "Forbidden"


def test_a_deleted_namespace_goes(controllers: None, cluster: ControlPlane, unique: str) -> None:
    obj = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"goes-{unique}"}}
    cluster.client.create(obj)
    cluster.client.apply(widget(f"goes-{unique}"))
    cluster.client.delete(obj)
    wait_for(lambda: cluster.client.get("v1", "Namespace", f"goes-{unique}") is None, 60, "the namespace is gone")


def test_two_control_planes_stand_side_by_side_and_one_ends_without_the_other(
    cluster: ControlPlane, control_plane_binaries: Binaries
) -> None:
    other = ControlPlane(control_plane_binaries)
    try:
        names = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
        pids = [other.pid(name) for name in names if name in control_plane_binaries.programs]
        assert None not in pids
        assert other.url != cluster.url
        assert other.client.list_of("apiextensions.k8s.io/v1", "CustomResourceDefinition")["items"] == []
    finally:
        other.close()
    assert not other.state.exists()
    assert [pid for pid in pids if pid is not None and runs(pid)] == []
    assert cluster.client.get("v1", "Namespace", "default") is not None


STARTS_ONE = """
import sys, time
from support.cluster import ControlPlane
from support.kube_binaries import find_or_build

plane = ControlPlane(find_or_build(print))
print(plane.state, plane.pid("etcd"), plane.pid("kube-apiserver"), flush=True)
time.sleep(600)
"""


def test_a_killed_test_run_leaves_nothing_behind(control_plane_binaries: Binaries) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", STARTS_ONE],
        env=os.environ | {"PYTHONPATH": str(KUBE.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert run.stdout is not None
        state, *numbers = run.stdout.readline().split()
        pids = [int(number) for number in numbers]
        assert Path(state, "admin.conf").exists()
        assert [runs(pid) for pid in pids] == [True, True]
    finally:
        run.kill()
        run.communicate()
    wait_for(lambda: not Path(state).exists(), 30, "the folder is gone")
    assert [runs(pid) for pid in pids] == [False, False]


def test_free_ports_are_below_the_ephemeral_range_and_differ() -> None:
    ports = free_ports(20)
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 20
    assert max(ports) < low


async def test_waiting_has_a_deadline_and_says_what_it_saw() -> None:
    with pytest.raises(NotInTime, match=r"the moon; last seen: ValueError: behind clouds"):
        wait_for(lambda: (_ for _ in ()).throw(ValueError("behind clouds")), 0.1, "the moon")
    answers = iter([0, 0, 7])

    async def ask() -> int:
        return next(answers)

    assert await eventually(ask, 5) == 7

"""The chart renders what a real API server accepts, and its values refuse what they do not know."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import yaml

import edgetun_core
from support.chart import CHART, VALUE_FILES, flags, need_helm, render
from support.cluster import ClusterError, ControlPlane
from support.kube_client import Object
from support.manifests import PROJECT

SETS = [pytest.param(files, id=" ".join(files) or "defaults") for files in VALUE_FILES]
MONITORS = {"PodMonitor": "podmonitors", "ServiceMonitor": "servicemonitors"}


@pytest.fixture(scope="module", autouse=True)
def _helm(cluster: ControlPlane) -> None:
    need_helm(cluster)


@pytest.fixture(scope="module")
def monitors(cluster: ControlPlane) -> Iterator[None]:
    """The Prometheus operator's kinds, without their schemas."""
    definitions = [
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.monitoring.coreos.com"},
            "spec": {
                "group": "monitoring.coreos.com",
                "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
                "scope": "Namespaced",
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                ],
            },
        }
        for kind, plural in MONITORS.items()
    ]
    cluster.install_crds(definitions)
    yield
    for definition in definitions:
        cluster.client.delete(definition)


@pytest.mark.parametrize("files", SETS)
def test_helm_finds_nothing_wrong_with_the_chart(cluster: ControlPlane, files: tuple[str, ...]) -> None:
    assert "0 chart(s) failed" in cluster.helm("lint", "--strict", str(CHART), *flags(files))


@pytest.mark.parametrize("files", SETS)
def test_the_api_server_accepts_every_object(
    cluster: ControlPlane, crds: list[Object], monitors: None, namespace: str, files: tuple[str, ...]
) -> None:
    objects = render(cluster, namespace, files)
    answered = cluster.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "--filename=-", stdin=yaml.safe_dump_all(objects)
    )
    assert len(answered.splitlines()) == len(objects)
    assert all(line.endswith("(server dry run)") for line in answered.splitlines())


def test_pods_are_accepted_where_only_restricted_ones_are(cluster: ControlPlane, namespace: str) -> None:
    for deployment in (o for o in render(cluster, namespace) if o["kind"] == "Deployment"):
        template = deployment["spec"]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
        pod["metadata"] = {"name": deployment["metadata"]["name"], "namespace": namespace}
        pod["spec"]["serviceAccountName"] = "default"
        label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
        cluster.client.patch({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, label)
        cluster.client.apply(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": pod["metadata"] | {"name": "default"}}
        )
        cluster.client.create(pod, dry_run=True)


WRONG = {
    "a value that is not known": ("operater.replicas=3", "operater"),
    "a value that is not known, deeper": ("operator.replicsa=3", "replicsa"),
    "a number that is none": ("operator.replicas=many", "replicas"),
    "a reclaim policy that is none": ("operator.reclaimPolicy=Keep", "reclaimPolicy"),
    "a control url without TLS": ("control.urls={http://control.example.com:7443}", "urls"),
    "a control url with a path": ("control.urls={https://control.example.com/x}", "urls"),
    "a type of Service that is none": ("control.service.type=HostPort", "type"),
    "a log level that is none": ("log.level=loud", "level"),
    "a pool without domains": ("exitPool.create=true", "domains"),
    "a pool with a name that is too long": (f"exitPool.name={'x' * 31}", "name"),
    "a digest that is none": ("image.digest=latest", "digest"),
    "a tag with a colon": ("image.tag=edgetun:1", "tag"),
}


@pytest.mark.parametrize(("value", "named"), WRONG.values(), ids=list(WRONG))
def test_wrong_values_are_refused_by_name(cluster: ControlPlane, value: str, named: str) -> None:
    with pytest.raises(ClusterError, match=rf"(?s)schema.*{named}"):
        render(cluster, "edgetun-system", sets=[value])


def test_every_value_is_in_the_schema_and_has_a_default() -> None:
    """But for those that only matter when somebody sets them."""
    without_default = {"global", "operator.terminationGracePeriodSeconds"}
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def known(schema: Object, prefix: str = "") -> Iterator[str]:
        for name, below in schema.get("properties", {}).items():
            yield f"{prefix}{name}"
            if prefix.count(".") < 2 and name not in {"resources", "spec"}:
                yield from known(below, f"{prefix}{name}.")

    def given(values: Object, prefix: str = "") -> Iterator[str]:
        for name, below in values.items():
            yield f"{prefix}{name}"
            if isinstance(below, dict) and prefix.count(".") < 2 and name not in {"resources", "spec", "labels"}:
                yield from given(below, f"{prefix}{name}.")

    assert set(known(schema)) - without_default == set(given(values))


def test_the_chart_carries_the_crds_as_they_are() -> None:
    shipped = {path.name: path.read_text() for path in (CHART / "crds").iterdir()}
    assert shipped == {path.name: path.read_text() for path in (PROJECT / "crds").glob("*.yaml")}


def test_helm_shows_the_crds_so_that_they_can_be_upgraded(cluster: ControlPlane, crds: list[Object]) -> None:
    shown = cluster.helm("show", "crds", str(CHART))
    answered = cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=shown)
    assert len(re.findall("serverside-applied", answered)) == len(crds)


def test_the_chart_has_the_version_of_the_code() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == edgetun_core.__version__


def test_settings_that_the_chart_gives_are_settings_that_the_processes_have(
    cluster: ControlPlane,
) -> None:
    from edgetun_control.settings import ControlServiceSettings
    from edgetun_core.settings import load_settings
    from edgetun_operator.settings import OperatorSettings

    processes = {"edgetun-operator": OperatorSettings, "edgetun-control": ControlServiceSettings}
    for files in VALUE_FILES:
        deployments = [o for o in render(cluster, "edgetun-system", files) if o["kind"] == "Deployment"]
        containers = [d["spec"]["template"]["spec"]["containers"][0] for d in deployments]
        assert {c["command"][0] for c in containers} == set(processes)
        for container in containers:
            load_settings(processes[container["command"][0]], container["args"], {}, prog=container["command"][0])


def test_an_exit_node_has_the_image_of_the_others_unless_it_is_given_one(cluster: ControlPlane) -> None:
    def exit_image(*sets: str) -> str:
        objects = render(cluster, "edgetun-system", sets=["image.repository=registry.test/edgetun", *sets])
        operator = next(o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == "edgetun-operator")
        arguments = operator["spec"]["template"]["spec"]["containers"][0]["args"]
        return str(next(a for a in arguments if a.startswith("--exit-image="))).partition("=")[2]

    assert exit_image("image.tag=v7") == "registry.test/edgetun:v7"
    assert exit_image() == f"registry.test/edgetun:{edgetun_core.__version__}"
    assert exit_image("exitNodes.image=other:1") == "other:1"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    text = (CHART / "files" / "dashboard.json").read_text()
    asked = set(re.findall(r"\b(edgetun_[a-z_]+?)(?:_total)?(?=[{\[)])", text)) - {
        "edgetun_dev_pool",
        "edgetun_dev_region",
    }
    sources = "".join(
        path.read_text() for folder in ("exitnode", "operator", "agent") for path in (PROJECT / folder).rglob("*.py")
    )
    assert len(asked) > 10
    assert {name for name in asked if f'"{name}"' not in sources} == set()
    json.loads(text)


def test_the_notes_tell_what_to_do_next(cluster: ControlPlane, crds: list[Object], unique: str) -> None:
    def notes(*sets: str) -> str:
        return cluster.helm(
            "install", "edgetun", str(CHART), "--dry-run=client", f"--namespace=ns-{unique}", *flags(sets=sets)
        )

    assert "kind: ExitPool" in notes()
    assert "Agents outside of the cluster cannot reach control yet" in notes()
    told = notes(
        "exitPool.create=true", "exitPool.spec.domains={*.t.example.com}", "control.urls={https://c.example.com:7443}"
    )
    assert 'The pool "default" serves *.t.example.com' in told
    assert "cannot reach control" not in told

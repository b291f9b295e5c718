"""kubeconform, with the schemas of a real API server, finds nothing wrong with what edgetun ships and makes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable

import pytest
import yaml

from support.chart import VALUE_FILES, need_helm, render
from support.cluster import ControlPlane
from support.kube_client import Object
from support.kube_schemas import LOCATION, write_schemas
from support.manifests import EXAMPLES, PROJECT, read_crds
from support.requirements import missing
from support.waiting import wait_for

Check = Callable[[Iterable[Object]], list[str]]
OF_OTHERS = {"PodMonitor", "ServiceMonitor", "Certificate"}
"""Kinds of other projects, whose schemas no API server of these tests has."""


@pytest.fixture(scope="module")
def complaints(cluster: ControlPlane, crds: list[Object], tmp_path_factory: pytest.TempPathFactory) -> Check:
    """What kubeconform says against objects, a line each."""
    if "kubeconform" not in cluster.binaries.programs:
        missing(
            "there is no kubeconform beside the control plane's programs; unset KUBEBUILDER_ASSETS to have one built"
        )
    folder = tmp_path_factory.mktemp("schemas")
    kinds = {("apps/v1", "Deployment"), ("v1", "Service")}
    kinds |= {("edgetun.dev/v1alpha1", definition["spec"]["names"]["kind"]) for definition in crds}
    # The API server publishes the schema of a definition a while after it has established it.
    wait_for(lambda: kinds <= write_schemas(cluster.client, folder), 60, "the schemas of all kinds")

    def check(objects: Iterable[Object]) -> list[str]:
        ours = [obj for obj in objects if obj["kind"] not in OF_OTHERS]
        assert ours
        ran = subprocess.run(
            [
                str(cluster.bin / "kubeconform"),
                "-strict",
                "-output=json",
                "-summary",
                f"-schema-location={folder}/{LOCATION}",
            ],
            input=yaml.safe_dump_all(ours),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        said = json.loads(ran.stdout)
        summary = said["summary"]
        found = [f"{one['kind']} {one['name']}: {one['msg']}" for one in said.get("resources") or ()]
        assert summary["skipped"] == 0
        assert bool(found) == bool(ran.returncode), ran.stderr
        if not found:
            assert summary["valid"] == len(ours)
        return found

    return check


@pytest.mark.parametrize("files", VALUE_FILES, ids=lambda files: " ".join(files) or "defaults")
def test_the_chart(cluster: ControlPlane, complaints: Check, files: tuple[str, ...]) -> None:
    need_helm(cluster)
    assert complaints(render(cluster, "edgetun-system", files)) == []


def test_the_custom_resource_definitions(complaints: Check) -> None:
    assert complaints(read_crds()) == []


def test_the_examples(complaints: Check) -> None:
    objects = [obj for path in EXAMPLES for obj in yaml.safe_load_all(path.read_text()) if obj]
    assert complaints(objects) == []


def test_everything_that_the_operator_makes(complaints: Check) -> None:
    golden = sorted((PROJECT / "tests" / "golden" / "operator").glob("*.out.yaml"))
    assert len(golden) > 3
    for path in golden:
        assert complaints(obj for obj in yaml.safe_load_all(path.read_text()) if obj) == [], path.name


def test_what_is_wrong_is_found(cluster: ControlPlane, complaints: Check) -> None:
    need_helm(cluster)
    deployment = next(o for o in render(cluster, "edgetun-system") if o["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Never"
    (said,) = complaints([deployment])
    assert "imagePullPolcy" in said
    tunnel = {
        "apiVersion": "edgetun.dev/v1alpha1",
        "kind": "Tunnel",
        "metadata": {"name": "shop"},
        "spec": {"hostnames": 5},
    }
    (said,) = complaints([tunnel])
    assert "hostnames" in said

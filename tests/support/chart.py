"""The chart: where it is, what it renders, and what its roles allow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from support.cluster import ControlPlane
from support.kube_client import Object
from support.manifests import PROJECT
from support.requirements import missing

CHART = PROJECT / "charts" / "edgetun"
VALUE_FILES: tuple[tuple[str, ...], ...] = ((), ("full-values.yaml",), ("kind-values.yaml",))
"""Sets of files of the chart's `ci` folder; the first is the chart as it is."""


def need_helm(cluster: ControlPlane) -> None:
    """Ends the test when there is no helm: programs that people bring (KUBEBUILDER_ASSETS) may be without."""
    if "helm" not in cluster.binaries.programs:
        missing("there is no helm beside the control plane's programs; unset KUBEBUILDER_ASSETS to have one built")


def flags(files: Iterable[str] = (), sets: Iterable[str] = ()) -> list[str]:
    """helm's flags for values."""
    return [f"--values={CHART / 'ci' / name}" for name in files] + [f"--set={one}" for one in sets]


def render(
    cluster: ControlPlane, namespace: str, files: Iterable[str] = (), sets: Iterable[str] = (), *, chart: Path = CHART
) -> list[Object]:
    """`helm template`: the objects, in the order in which Helm applies them."""
    text = cluster.helm("template", "edgetun", str(chart), f"--namespace={namespace}", *flags(files, sets))
    return [obj for obj in yaml.safe_load_all(text) if obj]


def rights(objects: Iterable[Object], account: str) -> dict[str, set[tuple[str, str, str, str]]]:
    """What a ServiceAccount may do by the bindings among the objects: (group, resource, name or "", verb), by "cluster" and "namespace"."""
    objects = list(objects)
    roles = {(o["kind"], o["metadata"]["name"]): o for o in objects if o["kind"] in {"Role", "ClusterRole"}}
    found: dict[str, set[tuple[str, str, str, str]]] = {"cluster": set(), "namespace": set()}
    for binding in objects:
        if not binding["kind"].endswith("Binding") or all(s["name"] != account for s in binding["subjects"]):
            continue
        role = roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
        scope = "cluster" if binding["kind"] == "ClusterRoleBinding" else "namespace"
        for rule in role["rules"]:
            found[scope] |= {
                (group, resource, name, verb)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for name in rule.get("resourceNames", [""])
                for verb in rule["verbs"]
            }
    return found

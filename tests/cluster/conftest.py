"""One real control plane for all tests of this folder, and what they do with it.

`cluster` (ControlPlane) has the rest: `cluster.client`, `cluster.restart_apiserver()`, `cluster.expire_watches()`,
`cluster.service_account_kubeconfig(...)`. Tests share the control plane: use the `namespace` fixture, and names of one's own for what
is cluster-scoped (`apply` deletes those again).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from support.cluster import ControlPlane
from support.kube_client import KubeClient, Object
from support.manifests import read_crds
from support.requirements import missing


@pytest.fixture(scope="session")
def crds(cluster: ControlPlane) -> list[Object]:
    """edgetun's CustomResourceDefinitions, as `crds/*.yaml` has them, installed."""
    definitions = read_crds()
    cluster.install_crds(definitions)
    return definitions


@pytest.fixture
def controllers(cluster: ControlPlane) -> None:
    """For tests that wait for what a controller does: deleted namespaces, owned objects collected, Deployments' status."""
    if not cluster.has_controllers:
        missing("KUBEBUILDER_ASSETS has no kube-controller-manager and kube-scheduler; unset it to have them built")


@pytest.fixture
def client(cluster: ControlPlane) -> KubeClient:
    return cluster.client


@pytest.fixture
def kubeconfig(cluster: ControlPlane) -> Path:
    """Cluster-admin's."""
    return cluster.kubeconfig


@pytest.fixture
def kubectl(cluster: ControlPlane) -> Callable[..., str]:
    """kubectl("get", "tunnels", stdin=None, kubeconfig=None) -> what it printed; raises ClusterError."""
    return cluster.kubectl


@pytest.fixture
def unique() -> str:
    """A part of a name that no other test uses."""
    return secrets.token_hex(4)


@pytest.fixture
def namespace(cluster: ControlPlane, unique: str) -> Iterator[str]:
    """A fresh namespace; it is deleted afterwards, which is not waited for."""
    obj = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"test-{unique}"}}
    cluster.client.create(obj)
    yield f"test-{unique}"
    cluster.client.delete(obj)


@pytest.fixture
def apply(cluster: ControlPlane) -> Iterator[Callable[..., Object]]:
    """apply(object or YAML text) -> the object as stored (of several the last); deletes afterwards what it applied."""
    applied: list[Object] = []

    def apply_one(manifest: Object | str) -> Object:
        objects = [o for o in yaml.safe_load_all(manifest) if o] if isinstance(manifest, str) else [manifest]
        applied.extend(cluster.client.apply(obj) for obj in objects)
        return applied[-1]

    yield apply_one
    for obj in reversed(applied):
        cluster.client.delete(obj)

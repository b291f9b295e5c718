"""One real cluster with one real node for all tests of this folder, and edgetun's image on it. Wants root; one at a time on a machine.

`node` (NodeCluster) is a ControlPlane: `node.client`, `node.kubectl(...)`, `node.helm(...)`, `node.node_ip` (where NodePorts
answer), `node.host_ip` (this machine as pods see it), `node.load_image(tar)`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.cluster import ClusterError, NodeTaken
from support.image import PROJECT, build_image
from support.installation import SYSTEM, Served, exit_pool, helm_install, ready, told
from support.kube_binaries import Binaries
from support.live import a_live_origin
from support.node import NodeCluster, what_is_missing_for_a_node
from support.requirements import missing

NODE_WAIT_S = 600  # for another run's node to go


@pytest.fixture(scope="session")
def can_run_a_node() -> None:
    if reason := what_is_missing_for_a_node():
        missing(reason)


@pytest.fixture(scope="session")
def node(can_run_a_node: None, node_binaries: Binaries) -> Iterator[NodeCluster]:
    """A control plane and a ready node."""
    try:
        cluster = NodeCluster(node_binaries, node_wait_s=float(os.environ.get("EDGETUN_NODE_WAIT_S", NODE_WAIT_S)))
    except NodeTaken as reason:
        missing(f"{reason}; waited for it in vain (EDGETUN_NODE_WAIT_S)")
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def image_archive(can_run_a_node: None) -> tuple[str, Path]:
    """(name, docker-archive) of edgetun as it stands in this clone, by its Dockerfile."""
    return build_image(PROJECT / "Dockerfile")


@pytest.fixture(scope="session")
def image(node: NodeCluster, image_archive: tuple[str, Path]) -> str:
    """The name of edgetun's image, which the node has: `registry.test/edgetun:HASH`."""
    name, archive = image_archive
    node.load_image(archive)
    return name


@pytest.fixture(scope="session")
def installed(node: NodeCluster, image: str) -> Iterator[NodeCluster]:
    """The chart is installed, and a pool with three regions is ready. The last test takes it away again."""
    try:
        helm_install(node, image)
        node.client.apply(exit_pool(node))
        ready(node, "ExitPool", "default", None, 180)
    except (ClusterError, AssertionError, TimeoutError) as error:
        error.add_note(told(node))
        raise
    yield node
    with contextlib.suppress(ClusterError):
        node.helm("uninstall", "edgetun", f"--namespace={SYSTEM}", "--timeout=1m")


@pytest.fixture
def served(installed: NodeCluster, namespace: str, tmp_path: Path) -> Iterator[Served]:
    """A tunnel of one's own namespace, with an origin on this machine."""
    installed.client.apply(exit_pool(installed))  # whatever the test before made of it
    ready(installed, "ExitPool", "default", None, 120)
    with a_live_origin() as origin_url:
        yield Served(installed, namespace, tmp_path, origin_url)


@pytest.fixture
def namespace(node: NodeCluster) -> Iterator[str]:
    """A fresh namespace; it is deleted afterwards, which is not waited for."""
    name = f"test-{secrets.token_hex(4)}"
    obj = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    node.client.create(obj)
    yield name
    node.client.delete(obj)


@pytest.fixture
def kubectl(node: NodeCluster) -> Callable[..., str]:
    return node.kubectl

"""What holds for all tests: the order of the layers, their marks and time limits, and Kubernetes made before the first test of it.

The quick layers run first, and nothing of them waits for a cluster. Programs of Kubernetes that must be built are built before
the time limit of the test that needs them begins to run.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from support.cluster import ControlPlane
from support.kube_binaries import Binaries, NotHere, find_or_build
from support.node import what_is_missing_for_a_node

HERE = Path(__file__).parent

# No test depends on speed: a busy machine may take its time for one example. People's runs look for new examples; CI's are the
# same each time, so that a change is judged by what it changes.
hypothesis.settings.register_profile(
    "edgetun",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("edgetun")

LAYERS = ("unit", "golden", "conformance", "component", "browser", "fault", "cluster", "e2e")
TIME_LIMIT_S = {"cluster": 180, "e2e": 900}  # the first test of a layer starts the cluster, too

BINARIES = pytest.StashKey[dict[str, "Binaries | NotHere"]]()
NEEDS = {"control_plane_binaries": "control plane", "node_binaries": "node"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs a real Kubernetes control plane (tests/kube)")
    config.addinivalue_line("markers", "e2e: needs a real Kubernetes node, and so root (tests/kube)")
    config.stash[BINARIES] = {}


def _layer(item: pytest.Item) -> str:
    return item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {layer: place for place, layer in enumerate(LAYERS)}
    items.sort(key=lambda item: order.get(_layer(item), order["fault"]))
    for item in items:
        if (layer := _layer(item)) in TIME_LIMIT_S:
            item.add_marker(layer)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIME_LIMIT_S[layer]))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Outside pytest-timeout's own wrapper: a build takes minutes, and says so."""
    for fixture, what in NEEDS.items():
        if fixture in getattr(item, "fixturenames", ()) and what not in item.config.stash[BINARIES]:
            _look_for(what, item.session)
    return (yield)


def _look_for(what: str, session: pytest.Session) -> None:
    found = session.config.stash[BINARIES]
    reason = what_is_missing_for_a_node()
    wants_node = any("node_binaries" in getattr(item, "fixturenames", ()) for item in session.items)
    if what == "node" and reason:
        found[what] = NotHere(reason)
        return
    try:
        # what will be needed later is built at the same time: the parts share what they download
        node = what == "node" or (wants_node and not reason and "KUBEBUILDER_ASSETS" not in os.environ)
        found[what] = find_or_build(lambda line: _tell(session.config, line), node=node)
    except NotHere as why:
        found[what] = why


def _tell(config: pytest.Config, line: str) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        terminal.ensure_newline()
        terminal.write_line(line, yellow=True)


@pytest.fixture(scope="session")
def control_plane_binaries(pytestconfig: pytest.Config) -> Binaries:
    """The programs of a control plane, found or built; a test without them is skipped, or fails under EDGETUN_REQUIRE_ALL."""
    return _found(pytestconfig, "control plane")


@pytest.fixture(scope="session")
def cluster(control_plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """etcd, kube-apiserver, controller-manager and scheduler; no nodes, so no pod ever runs."""
    plane = ControlPlane(control_plane_binaries)
    yield plane
    plane.close()


@pytest.fixture(scope="session")
def node_binaries(pytestconfig: pytest.Config) -> Binaries:
    """The same with a node's programs and images."""
    return _found(pytestconfig, "node")


def _found(config: pytest.Config, what: str) -> Binaries:
    from support.requirements import missing

    found = config.stash[BINARIES][what]
    if isinstance(found, NotHere):
        missing(str(found))
    return found

"""Where the harness finds the programs of Kubernetes, with scripts in their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support import kube_binaries
from support.kube_binaries import CONTROLLERS, DEBIAN, EXTRAS, IMAGES, NEEDED, NODE, NotHere, find_or_build, version

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="the harness runs on Linux only")

Fill = Callable[..., Path]


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fill:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)

    def fill(folder: Path, names: tuple[str, ...], says: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_text(f"#!/bin/sh\necho Kubernetes {says}\n")
            (folder / name).chmod(0o755)
        return folder

    return fill


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each build that was begun was for a node; none succeeds."""
    begun: list[bool] = []

    def build(tell: object, node: bool) -> None:
        begun.append(node)
        raise NotHere("no network")

    monkeypatch.setattr(kube_binaries, "_build", build)
    return begun


def never(line: str) -> None:
    pytest.fail(f"said something: {line}")


def cache() -> Path:
    return kube_binaries.cache_folder() / "bin"


def test_a_cache_of_the_right_version_is_used_as_it_is(fill: Fill, builds: list[bool]) -> None:
    fill(cache(), NEEDED + CONTROLLERS + EXTRAS, version())
    found = find_or_build(never)
    assert found.has_controllers
    assert found.programs["helm"] == cache() / "helm"
    assert builds == []


@pytest.mark.parametrize("node", [False, True])
def test_a_cache_of_another_version_or_without_a_part_is_built(fill: Fill, builds: list[bool], node: bool) -> None:
    fill(cache(), NEEDED + CONTROLLERS + EXTRAS, version() if node else "v1.2.3")
    with pytest.raises(NotHere):
        find_or_build(never, node=node)
    assert builds == [node]


def test_a_node_has_its_packages_and_images(fill: Fill, builds: list[bool]) -> None:
    fill(cache(), NEEDED + CONTROLLERS + EXTRAS + NODE, version())
    root = kube_binaries.cache_folder()
    for name in (*(f"debroot/{name}" for name in DEBIAN), *(f"images/{name}" for name in IMAGES)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = find_or_build(never, node=True)
    assert found.debroot == root / "debroot"
    assert {image.name for image in found.images} == set(IMAGES)


def test_assets_without_controllers_borrow_those_of_the_same_minor_version(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = fill(tmp_path / "assets", NEEDED, "v1.34.0")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert not find_or_build(never).has_controllers
    fill(cache(), CONTROLLERS + EXTRAS, "v1.33.9")
    assert not find_or_build(never).has_controllers
    fill(cache(), CONTROLLERS, "v1.34.4")
    found = find_or_build(never)
    assert found.has_controllers
    assert found.programs["kube-apiserver"] == assets / "kube-apiserver"
    assert found.programs["kube-scheduler"] == cache() / "kube-scheduler"
    assert found.programs["helm"] == cache() / "helm"


def test_assets_that_lack_a_program_say_which(fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(fill(tmp_path / "assets", ("etcd",), "v1.34.0")))
    with pytest.raises(NotHere, match="has no kube-apiserver, kubectl;"):
        find_or_build(never)


def test_a_machine_without_a_compiler_is_told_what_to_install(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NotHere, match=r"no go to make one with; install Go 1\.24"):
        find_or_build(never)

"""Finds the programs of a Kubernetes control plane and of a node, or builds them, once per machine.

Looked at in this order: the folder in KUBEBUILDER_ASSETS (control plane only), the cache
(`${XDG_CACHE_HOME:-~/.cache}/edgetun-kube`). Built by `tests/kube/build.sh`, under a lock, into the cache.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KUBE = Path(__file__).resolve().parent.parent / "kube"

NEEDED = ("etcd", "kube-apiserver", "kubectl")
CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
EXTRAS = ("helm", "kubeconform")
NODE = ("kubelet", "kube-proxy", "coredns", "metrics-server")
DEBIAN = ("usr/bin/containerd", "usr/bin/ctr", "usr/sbin/runc", "usr/lib/cni/bridge")
IMAGES = ("pause.tar", "web.tar", "busybox.tar")

BUILD_DEADLINE_S = 45 * 60

Tell = Callable[[str], None]


class NotHere(Exception):
    """The programs are not on this machine and could not be built; says what to do."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """Where each program is. `debroot` and `images` are there when a node was asked for."""

    programs: dict[str, Path]
    debroot: Path | None = None
    images: tuple[Path, ...] = ()

    @property
    def has_controllers(self) -> bool:
        """Whether namespaces are deleted, owned objects collected, pods scheduled."""
        return all(name in self.programs for name in CONTROLLERS)


def version() -> str:
    return (KUBE / "VERSION").read_text().strip()


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetun-kube"


def find_or_build(tell: Tell, *, node: bool = False) -> Binaries:
    """The programs. Says with `tell` when this takes long, and why. Raises NotHere."""
    if sys.platform != "linux":
        raise NotHere("the tests on a real Kubernetes API server run on Linux only (tests/kube uses /proc)")
    if not node and (assets := os.environ.get("KUBEBUILDER_ASSETS")):
        return _in_assets(Path(assets))
    found = _in_cache(node)
    return found or _build(tell, node)


def _programs(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    return {name: folder / name for name in names if os.access(folder / name, os.X_OK)}


def _in_assets(folder: Path) -> Binaries:
    programs = _programs(folder, NEEDED + CONTROLLERS + EXTRAS)
    if lost := [name for name in NEEDED if name not in programs]:
        raise NotHere(
            f"KUBEBUILDER_ASSETS={folder} has no {', '.join(lost)}; name a folder that has etcd, kube-apiserver and "
            "kubectl (and kube-controller-manager and kube-scheduler), or unset it"
        )
    cached = _programs(cache_folder() / "bin", CONTROLLERS + EXTRAS)
    if not Binaries(programs).has_controllers and _minor(programs["kube-apiserver"]) == _minor(
        cached.get("kube-controller-manager")
    ):
        programs = cached | programs  # envtest's archives have no controllers
    return Binaries({name: cached[name] for name in EXTRAS if name in cached} | programs)


def _in_cache(node: bool) -> Binaries | None:
    cache = cache_folder()
    names = NEEDED + CONTROLLERS + EXTRAS + (NODE if node else ())
    programs = _programs(cache / "bin", names)
    if len(programs) < len(names) or _version(programs["kube-apiserver"]) != version():
        return None
    if not node:
        return Binaries(programs)
    images = tuple(cache / "images" / name for name in IMAGES)
    whole = all((cache / "debroot" / name).exists() for name in DEBIAN) and all(image.exists() for image in images)
    return Binaries(programs, cache / "debroot", images) if whole else None


def _version(program: Path | None) -> str:
    if program is None:
        return ""
    asked = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, timeout=30)
    return asked.stdout.strip().removeprefix("Kubernetes ")


def _minor(program: Path | None) -> str:
    return ".".join(_version(program).split(".")[:2]) or "none"


def _build(tell: Tell, node: bool) -> Binaries:
    for tool in ("go", "bash", "curl", "openssl"):
        if shutil.which(tool) is None:
            raise NotHere(
                f"a real Kubernetes API server for the tests: there is none in {cache_folder()} and no {tool} to make "
                "one with; install Go 1.24 or newer, curl and openssl, or set KUBEBUILDER_ASSETS (see tests/kube/README.md)"
            )
    with _one_at_a_time(tell):
        if found := _in_cache(node):  # somebody else built it while this run waited
            return found
        tell(
            f"building Kubernetes {version()} and etcd from their Go modules into {cache_folder()}: once per machine, "
            f"about {14 if node else 10} minutes on two cores (set KUBEBUILDER_ASSETS to use programs that you have)"
        )
        _run_build(tell, node)
    if found := _in_cache(node):
        return found
    raise NotHere(f"tests/kube/build.sh ended well, yet {cache_folder()} is not complete; remove it and run again")


@contextmanager
def _one_at_a_time(tell: Tell) -> Iterator[None]:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another run builds Kubernetes into {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run_build(tell: Tell, node: bool) -> None:
    environment = os.environ | {"NODE": "1" if node else "0"}
    command = ["bash", str(KUBE / "build.sh"), str(cache_folder())]
    last: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as build:
        assert build.stdout is not None
        deadline = threading.Timer(BUILD_DEADLINE_S, build.kill)
        deadline.start()
        try:
            for line in build.stdout:
                last = [*last[-19:], line.rstrip()]
                if line.startswith("["):
                    tell("  " + line.rstrip())
        finally:
            deadline.cancel()
    if build.returncode:
        raise NotHere(
            f"tests/kube/build.sh {cache_folder()} failed with status {build.returncode}; Kubernetes comes from the Go "
            "module proxy and needs the network once. Its last lines:\n" + "\n".join(last)
        )

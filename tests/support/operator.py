"""The operator as a process against a real API server, and what tests ask of what it made."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from support.cluster import ControlPlane, free_ports
from support.kube_client import KubeClient, Object
from support.waiting import wait_for

GROUP_VERSION = "edgetun.dev/v1alpha1"
CRDS = Path(__file__).parents[2] / "crds"
CHART = Path(__file__).parents[2] / "charts" / "edgetun"


def crds() -> list[Object]:
    """The CustomResourceDefinitions as they ship."""
    return [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]


def operator_kubeconfig(cluster: ControlPlane, namespace: str) -> Path:
    """The identity and exactly the rights that the chart gives the operator; cluster-admin's where there is no helm."""
    if "helm" not in cluster.binaries.programs:
        return cluster.kubeconfig
    path = cluster.state / f"{namespace}-edgetun-operator.conf"
    if not path.exists():
        rendered = cluster.helm("template", "edgetun", str(CHART), "--namespace", namespace)
        objects = [obj for obj in yaml.safe_load_all(rendered) if obj]
        mine = [obj for obj in objects if "operator" in obj["metadata"]["name"]]
        path = cluster.service_account_kubeconfig(namespace, "edgetun-operator", mine)
    return path


class OperatorProcess:
    """`edgetun-operator` under the chart's roles, running until the end of the `with`.

    Its log is shown when something that is waited for does not come.
    """

    def __init__(self, cluster: ControlPlane, namespace: str, *arguments: str, kubeconfig: Path | None = None) -> None:
        self._port = free_ports(1)[0]
        self._log = tempfile.NamedTemporaryFile(prefix="edgetun-operator-", suffix=".log")  # noqa: SIM115 - closed at the end of the with
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "edgetun_operator.main",
                "--exit-image=edgetun:test",
                f"--namespace={namespace}",
                f"--kubeconfig={kubeconfig or operator_kubeconfig(cluster, namespace)}",
                f"--metrics=127.0.0.1:{self._port}",
                "--control-url=https://control.example.com:7443",
                *arguments,
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith(("EDGETUN_", "KUBE"))},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is not None:
            error.add_note(f"the operator said:\n{self.log()[-6000:]}")
        self._log.close()

    def stop(self) -> int:
        """Asks it to end; its exit status. Twice is once."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        return int(self.process.returncode)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def metric(self, name: str) -> float:
        """One of its numbers; raises while it has no admin listener yet."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5).read().decode()
        for line in text.splitlines():
            if line.startswith((f"{name} ", f"{name}{{")):
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)

    def leads(self) -> bool:
        return self.metric("edgetun_operator_leader") == 1.0

    def settled(self, deadline_s: float = 20) -> float:
        """Waits until it leads and has nothing to do for a while; how many reconciles it has done."""
        state = {"done": -1.0, "times": 0}

        def quiet() -> bool:
            if not self.leads() or self.metric("edgetun_operator_queue"):
                return False
            done = self.metric("edgetun_operator_reconciles_total")
            state["times"] = state["times"] + 1 if done == state["done"] and done > 0 else 0
            state["done"] = done
            return state["times"] >= 20  # a second without work

        wait_for(quiet, deadline_s, "the operator has settled")
        return state["done"]


def conditions(obj: Object | None) -> dict[str, Object]:
    """By type."""
    return {c["type"]: c for c in ((obj or {}).get("status") or {}).get("conditions", [])}


def wait_for_condition(
    client: KubeClient, kind: str, name: str, namespace: str | None, type_: str, reason: str, deadline_s: float = 20
) -> Object:
    """The object, as soon as its condition has this reason and looks at the current generation."""

    def look() -> Any:
        obj = client.get(GROUP_VERSION, kind, name, namespace)
        condition = conditions(obj).get(type_, {})
        if condition.get("reason") == reason and condition["observedGeneration"] == obj["metadata"]["generation"]:  # type: ignore[index]
            return obj
        raise AssertionError((obj or {}).get("status"))

    found: Object = wait_for(look, deadline_s, f"{kind} {name} has {type_} with reason {reason}")
    return found


def pool(name: str, **spec: Any) -> Object:
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "ExitPool",
        "metadata": {"name": name},
        "spec": {
            "regions": [{"name": "eu"}],
            "domains": [f"*.{name}.example.com"],
            "service": {"type": "NodePort", "addresses": ["192.0.2.1"]},
            **spec,
        },
    }


def tunnel(namespace: str, name: str, pool_name: str, *hostnames: str) -> Object:
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "Tunnel",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "hostnames": list(hostnames) or [f"{name}.{pool_name}.example.com"],
            "pool": {"name": pool_name},
            "origin": {"url": "http://localhost:3000"},
        },
    }


def token(namespace: str, name: str, **spec: Any) -> Object:
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "AgentToken",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }

"""A fleet on a real API server for `fleet.py`: the operator, control and an exit node as processes, and what they cost.

The API server is started by the tests' own harness. It writes an audit log, so that every request of edgetun's is counted, whichever
library sent it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from harness import CLIENT_CORE, ROOT, BenchError, Process, Stage, cpu_s_of, wait_until

sys.path.insert(0, str(ROOT / "tests"))

from support.cluster import ClusterError, ControlPlane, free_ports
from support.kube_binaries import NotHere, find_or_build

BIN: Final = Path(sys.executable).parent
NAMESPACE: Final = "edgetun-system"
POOL: Final = "bench"
REGION: Final = "here"
DOMAIN: Final = "bench.example.com"
NAMESPACES: Final = 100
"""Teams among which tunnels are spread."""
CONCURRENT: Final = 16
POLICY: Final = f"""apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:{NAMESPACE}"]
- level: None
"""


class Cost(NamedTuple):
    """CPU seconds so far, by process."""

    operator: float
    control: float
    exit_node: float
    api_server: float

    def since(self, before: Cost) -> Cost:
        return Cost(*(now - then for now, then in zip(self, before, strict=True)))


def tunnel(number: int, name: str = "") -> dict[str, Any]:
    """The tunnel of a number; `name` for one that is not among the numbered."""
    name = name or f"t{number:05d}"
    return {
        "metadata": {"name": name, "namespace": team(number)},
        "spec": {
            "hostnames": [f"{name}.{DOMAIN}"],
            "pool": {"name": POOL},
            "origin": {"url": "http://localhost:3000"},
            "cache": {"staleIfError": "30s"},
            # No agent serves them, and a visitor shall hear so at once.
            "reconnectGrace": "0s",
        },
    }


def team(number: int) -> str:
    return f"team-{number % NAMESPACES:02d}"


class FleetStage(Stage):
    """Everything that runs. `up` once, then the figures."""

    QUIET_S: Final = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.agent_port, self.exit_port, self.tunnel_port, self.http_port, *self._metrics = free_ports(7)
        self._exit_nodes = 0
        self._loop = asyncio.new_event_loop()
        self.callback(self._loop.close)

    def up(self) -> None:
        """Starts the API server, the three processes and the pool."""
        self.audit_log = self.folder / "audit.log"
        self.write("policy.yaml", POLICY)
        os.environ["APISERVER_ARGS"] = (
            f"--audit-policy-file={self.folder / 'policy.yaml'} --audit-log-path={self.audit_log} --audit-log-mode=batch"
        )
        try:
            self.cluster = ControlPlane(find_or_build(lambda text: print(text, file=sys.stderr)))
        except (NotHere, ClusterError) as error:
            raise BenchError(str(error)) from error
        self.callback(self.cluster.close)
        # Not before: what the API server inherits should be the whole machine.
        os.sched_setaffinity(0, {CLIENT_CORE})
        self.cluster.install_crds(yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml")))
        self.admin = self.run(self._connect())
        self.callback(lambda: self.run(self.admin.close()))
        self._accounts = self._account_files()
        self.start_operator()
        self.start_control()
        self.cluster.client.apply(
            {
                "apiVersion": "edgetun.dev/v1alpha1",
                "kind": "ExitPool",
                "metadata": {"name": POOL},
                "spec": {
                    "regions": [{"name": REGION}],
                    "domains": [f"*.{DOMAIN}"],
                    "service": {"type": "NodePort", "addresses": ["127.0.0.1"]},
                },
            }
        )
        for number in range(NAMESPACES):
            self.cluster.client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team(number)}})
        self.exit_node = self._start_exit_node()

    def start_operator(self) -> None:
        self.operator = self.start(
            "edgetun-operator",
            [
                str(BIN / "edgetun-operator"), "--exit-image=edgetun:bench", f"--namespace={NAMESPACE}",
                f"--kubeconfig={self._accounts['operator']}", f"--metrics=127.0.0.1:{self._metrics[0]}",
                f"--control-url=https://127.0.0.1:{self.agent_port}", "--control-name=127.0.0.1",
            ],
            env=_CLEAN,
        )  # fmt: skip

    def start_control(self) -> None:
        self.control = self.start(
            "edgetun-control",
            [
                str(BIN / "edgetun-control"), f"--kubeconfig={self._accounts['control']}", f"--namespace={NAMESPACE}",
                "--listen=127.0.0.1", f"--port={self.agent_port}", f"--exit-port={self.exit_port}",
                f"--metrics=127.0.0.1:{self._metrics[1]}",
            ],
            env=_CLEAN,
        )  # fmt: skip

    def _account_files(self) -> dict[str, Path]:
        """Each process under the roles that the chart gives it; as cluster-admin there would be other watches and no audit."""
        rendered = self.cluster.helm("template", "edgetun", str(ROOT / "charts" / "edgetun"), "--namespace", NAMESPACE)
        objects = [obj for obj in yaml.safe_load_all(rendered) if obj]
        return {
            who: self.cluster.service_account_kubeconfig(
                NAMESPACE,
                f"edgetun-{who}",
                [obj for obj in objects if who in obj["metadata"]["name"]],
            )
            for who in ("operator", "control")
        }

    def _start_exit_node(self) -> Process:
        account = f"edgetun-exit-{POOL}-{REGION}"
        client = self.cluster.client
        wait_until(
            "the pool's ServiceAccount",
            lambda: client.get("v1", "ServiceAccount", account, NAMESPACE) is not None,
            [self.operator],
            30,
        )
        secret = client.get("v1", "Secret", "edgetun-ca", NAMESPACE)
        assert secret is not None
        self.write("ca.crt", base64.b64decode(secret["data"]["ca.crt"]).decode())
        command = ("create", "token", account, "-n", NAMESPACE, "--audience=edgetun-control", "--duration=1h")
        self.write("token", self.cluster.kubectl(*command))
        wait_until("control", lambda: self.control_metric("edgetun_control_tunnels") >= 0, [self.control], 60)
        node = self.start(
            "edgetun-exitnode",
            [
                str(BIN / "edgetun-exitnode"), f"--control=https://127.0.0.1:{self.exit_port}",
                f"--control-ca={self.folder / 'ca.crt'}", f"--control-token-file={self.folder / 'token'}",
                f"--pool={POOL}", f"--region={REGION}", "--name=exit-1", f"--state={self.folder / 'exit-1'}",
                "--listen=127.0.0.1", f"--http-port={self.http_port}", "--https-port=-1",
                f"--tunnel-port={self.tunnel_port}", f"--tunnel-address=127.0.0.1:{self.tunnel_port}",
                f"--metrics=127.0.0.1:{self._metrics[2]}",
            ],
            env=_CLEAN,
        )  # fmt: skip
        self._exit_nodes = 1
        wait_until("the exit node", lambda: self.control_metric("edgetun_control_exit_nodes") == 1, [node], 30)
        return node

    # ---- doing

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    async def _connect(self) -> Any:
        from edgetun_cluster.client import Cluster
        from edgetun_cluster.connection import from_kubeconfig

        return Cluster(await from_kubeconfig(self.cluster.kubeconfig), timeout_s=120, max_concurrent=CONCURRENT)

    def create(self, objects: Iterable[Mapping[str, Any]]) -> None:
        """Tunnels, some at a time."""
        from edgetun_cluster.kinds import TUNNEL

        waiting = iter(objects)

        async def some_of_them() -> None:
            for obj in waiting:
                await self.admin.create(TUNNEL, dict(obj), manager="bench")

        async def all_of_them() -> None:
            await asyncio.gather(*(some_of_them() for _ in range(CONCURRENT)))

        self.run(all_of_them())

    def settle(self, tunnels: int, deadline_s: float = 900) -> None:
        """Returns when everybody knows all tunnels and the operator has had nothing to do for a second."""
        quiet = {"done": -1.0, "since": time.monotonic()}

        def is_quiet() -> bool:
            time.sleep(0.3)
            done = self.operator_metric("edgetun_operator_reconciles_total")
            if self.operator_metric("edgetun_operator_queue") or done != quiet["done"]:
                quiet.update(done=done, since=time.monotonic())
                return False
            return (
                time.monotonic() - quiet["since"] > self.QUIET_S
                and self.control_metric("edgetun_control_tunnels") >= tunnels
                and self.control_metric("edgetun_control_exit_nodes") == self._exit_nodes
                and self.control_metric("edgetun_control_exit_nodes_behind") == 0
            )

        wait_until(f"{tunnels} tunnels reconciled", is_quiet, [self.operator, self.control], deadline_s)

    # ---- figures

    def cost(self) -> Cost:
        api_server = self.cluster.pid("kube-apiserver")
        return Cost(
            self.operator.cpu_s(),
            self.control.cpu_s(),
            self.exit_node.cpu_s(),
            cpu_s_of(api_server) if api_server is not None else 0.0,
        )

    def operator_metric(self, name: str) -> float:
        return _metric(self._metrics[0], name)

    def control_metric(self, name: str) -> float:
        return _metric(self._metrics[1], name)

    def requests(self, seconds: float) -> dict[str, int]:
        """Requests to the API server in the next seconds, by who asked for what, watches included."""
        time.sleep(2.0)  # the log is written in batches
        begin = self.audit_log.stat().st_size
        time.sleep(seconds + 2.0)
        found: dict[str, str] = {}
        with self.audit_log.open("rb") as file:
            file.seek(begin)
            for line in file:
                event = json.loads(line)
                who, what = event["user"]["username"].rpartition(":")[2], event.get("objectRef", {}).get("resource", "")
                found[event["auditID"]] = f"{who} {event['verb']} {what}"
        return dict(Counter(found.values()))

    def versions(self) -> dict[str, str]:
        """The resource version of every tunnel and reservation."""
        from edgetun_cluster.kinds import HOSTNAME_RESERVATION, TUNNEL

        async def both() -> dict[str, str]:
            found = {}
            for kind in (TUNNEL, HOSTNAME_RESERVATION):
                for obj in (await self.admin.list(kind)).items:
                    meta = obj["metadata"]
                    found[f"{kind.plural}/{meta.get('namespace', '')}/{meta['name']}"] = meta["resourceVersion"]
            return found

        result: dict[str, str] = self.run(both())
        return result


_CLEAN: Final = {name: "" for name in os.environ if name.startswith("EDGETUN_")}


def _metric(port: int, name: str) -> float:
    """The sum of a metric over its labels; -1 while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
    except OSError:
        return -1.0
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


__all__ = ["DOMAIN", "NAMESPACE", "Cost", "FleetStage", "team", "tunnel"]

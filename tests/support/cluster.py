"""A real Kubernetes control plane for tests: etcd, kube-apiserver, controller-manager and scheduler on free ports.

Started by `tests/kube/up.sh` in a folder of its own, which a keeper process removes, with all that runs in it, as soon as the
process that started it ends, however it ends. Everything here blocks: in an event loop use `asyncio.to_thread`.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from support.kube_binaries import KUBE, Binaries
from support.kube_client import KubeClient, Object
from support.waiting import wait_for

RBAC_KINDS = ("ServiceAccount", "ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding")
RBAC = "rbac.authorization.k8s.io"

PROGRAMS = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")
NODE_IS_TAKEN = 75  # up.sh's exit status


class ClusterError(Exception):
    """A control plane or node that did not start, or a command that failed; carries the end of the log that matters."""


class NodeTaken(ClusterError):
    """Another run has a node on this machine."""


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, below the ephemeral range so that no connection of another test takes one meanwhile."""
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        low = 32768
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(15_000, max(low, 20_000))
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended: a zombie has, once all its threads have let go of what it held."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


class ControlPlane:
    """`kubeconfig` is cluster-admin's, `client` the same identity from Python."""

    def __init__(self, binaries: Binaries, *, node: bool = False, node_wait_s: float = 0) -> None:
        """Starts it; seconds. Raises ClusterError with the end of the log that says why not, NodeTaken for a second node."""
        self.binaries = binaries
        self.has_controllers = binaries.has_controllers
        self.state = Path(tempfile.mkdtemp(prefix="edgetun-kube-"))
        self.bin = self.state / "bin"
        self.bin.mkdir()
        for name, path in binaries.programs.items():  # one folder, also when the programs come from two
            (self.bin / name).symlink_to(path.absolute())
        self.kubeconfig = self.state / "admin.conf"
        self._node = node
        self._node_wait_s = node_wait_s
        self._keeper = subprocess.Popen(
            ["bash", KUBE / "keeper.sh", self.state],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._start()
            self.client = KubeClient.from_kubeconfig(self.kubeconfig)
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for last_try in (False, False, True):
            self._ports = free_ports(5)
            try:
                self._up()
                return
            except ClusterError as error:
                # two runs may have chosen the same free port: the first to bind it has it
                if last_try or "address already in use" not in str(error):
                    raise
                for name in PROGRAMS:
                    self._kill(name)
                for folder in ("log", "etcd"):
                    shutil.rmtree(self.state / folder, ignore_errors=True)

    def _up(self) -> None:
        environment = os.environ | {
            "BIN": str(self.bin),
            "PORTS": " ".join(map(str, self._ports)),
            "KCM": str(int(self.has_controllers)),
            "SCHED": str(int(self.has_controllers)),
            "NODE": str(int(self._node)),
            "NODE_WAIT": str(self._node_wait_s),
        }
        up = self.script("up.sh", self.state, environment=environment, timeout_s=150 + self._node_wait_s)
        if up.returncode == NODE_IS_TAKEN:
            raise NodeTaken(up.stderr.strip())
        if up.returncode:
            raise ClusterError(f"the control plane did not start: {up.stderr.strip()[-3000:]}")

    def script(
        self, name: str, *arguments: object, environment: dict[str, str] | None = None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script of tests/kube."""
        command = ["bash", str(KUBE / name), *map(str, arguments)]
        try:
            return subprocess.run(
                command,
                env=environment or self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{name} did not end within {timeout_s:g} s") from error

    def environment(self) -> dict[str, str]:
        """For a child process that is to see this cluster and nothing of the user's own."""
        return os.environ | {
            "BIN": str(self.bin),
            "KUBECONFIG": str(self.kubeconfig),
            "HOME": str(self.state),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HELM_CACHE_HOME": str(self.state / "helm/cache"),
            "HELM_CONFIG_HOME": str(self.state / "helm/config"),
            "HELM_DATA_HOME": str(self.state / "helm/data"),
        }

    @property
    def url(self) -> str:
        return self.client.server

    # ---- what a user types

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        kubeconfig: Path | None = None,
        timeout_s: float = 60,
    ) -> str:
        """What kubectl prints. Raises ClusterError with what it complained of, and its exit status."""
        return self._run("kubectl", f"--kubeconfig={kubeconfig or self.kubeconfig}", arguments, stdin, timeout_s)

    def helm(self, *arguments: str, kubeconfig: Path | None = None, timeout_s: float = 300) -> str:
        """What helm prints. Raises ClusterError."""
        return self._run("helm", f"--kubeconfig={kubeconfig or self.kubeconfig}", arguments, None, timeout_s)

    def _run(self, program: str, flag: str, arguments: tuple[str, ...], stdin: str | None, timeout_s: float) -> str:
        if program not in self.binaries.programs:
            raise ClusterError(f"there is no {program} beside this cluster's programs")
        ran = subprocess.run(
            [str(self.bin / program), flag, *arguments],
            env=self.environment(),
            input=stdin or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if ran.returncode:
            raise ClusterError(f"{program} {' '.join(arguments)}: exit {ran.returncode}: {ran.stderr.strip()}")
        return ran.stdout

    # ---- what goes wrong in real clusters

    def restart_apiserver(self, graceful: bool = False) -> None:
        """Kills the API server (or asks it to go) and starts it again: every connection and watch ends. About 3 s."""
        self._kill("kube-apiserver", signal.SIGTERM if graceful else signal.SIGKILL)
        self._up()

    @contextmanager
    def without_apiserver(self) -> Iterator[None]:
        """The API server is away while this lasts; connections to it are refused."""
        self._kill("kube-apiserver")
        try:
            yield
        finally:
            self._up()

    def _kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        pid = self.pid(name)
        if pid is None:
            return
        os.kill(pid, how)
        wait_for(lambda: not runs(pid), 70, f"{name} ends")

    def pid(self, name: str) -> int | None:
        """The process id of a program of this cluster, while it runs."""
        try:
            pid = int((self.state / "pid" / name).read_text())
            is_ours = os.readlink(f"/proc/{pid}/cwd") == str(self.state)
        except (OSError, ValueError):
            return None
        return pid if is_ours and runs(pid) else None

    def compact_etcd(self) -> int:
        """Forgets every older revision of every object; returns the oldest revision that is left."""
        revision = int(self._etcd("/v3/maintenance/status", {})["header"]["revision"])
        self._etcd("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def _etcd(self, path: str, body: Object) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self._ports[1]}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def expire_watches(self) -> None:
        """After this, every resource version that anybody holds is too old: watches end, and going on from it gets 410 Gone.

        etcd forgets its history, and the API server is restarted, since its watch cache would still remember. For a moment
        it answers watches with 429 while it fills that cache anew: a client must bear both.
        """
        for _ in range(2):  # so that what clients hold is older than what is left
            stamp = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "edgetun-tests-compaction"}}
            stamp["metadata"]["namespace"] = "default"  # type: ignore[index]
            self.client.apply(stamp | {"data": {"at": str(random.random())}})
        self.compact_etcd()
        self.restart_apiserver()

    # ---- custom resources

    def install_crds(self, crds: Iterable[Object]) -> None:
        """Applies CustomResourceDefinitions and returns when every version of them is served."""
        crds = list(crds)
        for crd in crds:
            self.client.apply(crd)
        for crd in crds:
            wait_for(lambda crd=crd: self._is_served(crd), 30, f"{crd['metadata']['name']} is served")  # type: ignore[misc]

    def _is_served(self, crd: Object) -> bool:
        found = self.client.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", crd["metadata"]["name"])
        conditions = {c["type"]: c["status"] for c in (found or {}).get("status", {}).get("conditions", [])}
        if conditions.get("Established") != "True":
            return False
        spec = crd["spec"]
        for version in spec["versions"]:
            if version["served"]:
                self.client.request("GET", f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}?limit=1")
        return True

    # ---- other identities

    def service_account_kubeconfig(
        self, namespace: str, name: str, manifests: Iterable[Object] = (), *, seconds: int = 3600
    ) -> Path:
        """A kubeconfig for a ServiceAccount with exactly the rights in `manifests`.

        Of the manifests (a chart's rendered objects, say) only RBAC objects and ServiceAccounts are applied. A role that none
        of them binds is bound to this account: a ClusterRole in the whole cluster, a Role in its namespace.
        """
        objects = [m for m in manifests if m and m.get("kind") in RBAC_KINDS]
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        if self.client.get("v1", "Namespace", namespace) is None:
            self.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for obj in [account, *objects, *_missing_bindings(objects, namespace, name)]:
            if obj["kind"] in {"ServiceAccount", "Role", "RoleBinding"}:
                obj = obj | {"metadata": {"namespace": namespace} | obj["metadata"]}
            self.client.apply(obj)
        path = self.client.path("v1", "ServiceAccount", namespace, name) + "/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
        token = self.client.request("POST", path, asked | {"spec": {"expirationSeconds": seconds}})["status"]["token"]
        return self._kubeconfig(f"{namespace}-{name}", {"token": token})

    def _kubeconfig(self, name: str, user: Object) -> Path:
        authority = base64.b64encode((self.state / "pki/ca.crt").read_bytes()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url, "certificate-authority-data": authority}}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = self.state / f"{name}.conf"
        path.touch(0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    # ---- when a test fails, and at the end

    def log(self, name: str, lines: int = 40) -> str:
        """The end of a program's log: "kube-apiserver", "etcd", "kubelet" ..."""
        path = self.state / "log" / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def close(self) -> None:
        """Ends every process and removes the folder. Twice is once."""
        if self._keeper.stdin is not None and not self._keeper.stdin.closed:
            self._keeper.stdin.close()
            self._keeper.wait(timeout=150)
            shutil.rmtree(self.state, ignore_errors=True)


def _missing_bindings(objects: list[Object], namespace: str, account: str) -> list[Object]:
    bound = {(o["roleRef"]["kind"], o["roleRef"]["name"]) for o in objects if o["kind"].endswith("Binding")}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    return [
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": f"{role['kind']}Binding",
            "metadata": {"name": f"{namespace}-{account}-{role['metadata']['name']}"},
            "roleRef": {"apiGroup": RBAC, "kind": role["kind"], "name": role["metadata"]["name"]},
            "subjects": [subject],
        }
        for role in objects
        if role["kind"] in {"ClusterRole", "Role"} and (role["kind"], role["metadata"]["name"]) not in bound
    ]

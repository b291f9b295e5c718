"""A fleet of real processes on a real API server: operator, control, exit nodes that relay to each other, agents.

Every process can be killed, paused and started again with the same ports, names and state. Everything here blocks: in an event loop
use `asyncio.to_thread`.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import signal
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgetun_core.credentials import ClusterToken
from support.cluster import ControlPlane, free_ports
from support.commands import Command
from support.kube_client import Object
from support.operator import GROUP_VERSION, OperatorProcess, pool, token, tunnel, wait_for_condition
from support.waiting import wait_for

REGION = "eu"
PATIENCE_S = 150.0
"""With what a start waits for: a busy machine takes a minute for what takes a second."""

ALARM = re.compile(r"Traceback \(most recent call last\)|never retrieved|Error handling request")


class Member:
    """One process of the fleet. `runs` are all that it has been, the present one last."""

    def __init__(
        self, name: str, program: str, argv: Sequence[str], ready: str, environ: Mapping[str, str], metrics_port: int
    ) -> None:
        self.name = name
        self.metrics_port = metrics_port
        self.runs: list[Command] = []
        self._program, self._argv, self._ready, self._environ = program, tuple(argv), ready, dict(environ)
        self._expected: set[Command] = set()
        self.is_paused = False

    @property
    def command(self) -> Command:
        return self.runs[-1]

    @property
    def pid(self) -> int:
        return self.command.process.pid

    @property
    def has_ended(self) -> bool:
        return not self.runs or self.command.process.poll() is not None

    def start(self) -> None:
        """Returns at once; `ready` waits."""
        self.runs.append(
            Command(self._program, *self._argv, f"--metrics=127.0.0.1:{self.metrics_port}", environ=self._environ)
        )

    def ready(self, deadline_s: float = PATIENCE_S) -> None:
        self.command.line(self._ready, deadline_s)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM; it may drain for a while, see `gone`."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        self._expected.add(self.command)
        with suppress(ProcessLookupError):
            self.command.signal(number)

    def gone(self, deadline_s: float = 30) -> None:
        """Waits for the end that was asked for, by force after the deadline."""
        with suppress(Exception):
            self.command.ended(deadline_s)
            return
        self.kill()
        self.command.ended()

    def pause(self) -> None:
        self.is_paused = True
        self.command.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.is_paused = False
        with suppress(ProcessLookupError):
            self.command.signal(signal.SIGCONT)

    def metrics(self, deadline_s: float = 10) -> dict[str, float]:
        """Every metric by name, its series summed."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=deadline_s) as answer:
            for line in answer.read().decode().splitlines():
                if not line.startswith("#"):
                    name = line.split("{")[0].split(" ")[0]
                    found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        return found

    def metric(self, name: str) -> float:
        """One of them; 0 when it has no series."""
        return self.metrics().get(name, 0.0)

    def unexpected(self, excused: Sequence[int] = ()) -> list[str]:
        """Ends that nobody asked for, and tracebacks."""
        found = []
        for run in self.runs:
            code = run.process.poll()
            if code is not None and run not in self._expected and code not in excused:
                found.append(f"{self.name} ended by itself with {code}; it said: {run.said[-2000:]}")
            if alarm := ALARM.search(run.said):
                found.append(f"{self.name} said:\n{run.said[max(0, alarm.start() - 500) : alarm.start() + 5000]}")
        return found

    def close(self) -> None:
        for run in self.runs:
            if run.process.poll() is None:
                with suppress(ProcessLookupError):
                    run.process.send_signal(signal.SIGCONT)
            run.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """One agent: which tunnels it serves, with how many sessions."""

    name: str
    tunnels: tuple[str, ...]
    sessions: int
    flags: tuple[str, ...] = ()


class Fleet:
    """Everything, started by `start`; ended by the `with`."""

    def __init__(self, cluster: ControlPlane, namespace: str, name: str, folder: Path, *, exit_nodes: int = 2) -> None:
        self.cluster, self.namespace, self.name, self.folder = cluster, namespace, name, folder
        self.agent_port, self.exit_port = free_ports(2)
        self.nodes = [f"exit-{number}" for number in range(1, exit_nodes + 1)]
        self.address = {node: f"127.0.0.{number}" for number, node in enumerate(self.nodes, 1)}
        """Of their own, since ports of TCP and UDP tunnels are the same on every exit node."""
        ports = iter(free_ports(5 * exit_nodes))
        self.http_port = {node: next(ports) for node in self.nodes}
        self.https_port = {node: next(ports) for node in self.nodes}
        self.tunnel_port = {node: next(ports) for node in self.nodes}
        self.way_port = {node: next(ports) for node in self.nodes}
        """By which agents are told to come: the tunnel port itself, or a path to it that somebody makes before `start`."""
        self.relay_port = {node: next(ports) for node in self.nodes}
        self.members: dict[str, Member] = {}
        self._stack = ExitStack()
        self._made: list[Object] = []

    def host(self, tunnel_name: str) -> str:
        return f"{tunnel_name}.{self.name}.example.com"

    def start(
        self,
        tunnels: Mapping[str, Object],
        agents: Sequence[AgentPlan],
        *,
        is_by_way: bool = False,
        pool_spec: Mapping[str, object] | None = None,
        exit_flags: Sequence[str] = ("--https-port=-1",),
    ) -> None:
        """Starts all. `tunnels`: spec of each by name, without hostnames and pool."""
        self.operator = self._stack.enter_context(
            OperatorProcess(self.cluster, self.namespace, "--control-name=127.0.0.1")
        )
        control = self.add(
            "control",
            "edgetun-control",
            [
                f"--kubeconfig={self.cluster.kubeconfig}", f"--namespace={self.namespace}", "--listen=127.0.0.1",
                f"--port={self.agent_port}", f"--exit-port={self.exit_port}",
            ],
        )  # fmt: skip
        control.start()
        self.apply(pool(self.name, service={"type": "NodePort", "addresses": ["127.0.0.1"]}, **(pool_spec or {})))
        for name, spec in tunnels.items():
            wanted = tunnel(self.namespace, name, self.name)
            wanted["spec"] = {**wanted["spec"], **spec}
            if "tcp" in spec or "udp" in spec:
                del wanted["spec"]["hostnames"]
            self.apply(wanted)
        self.apply(token(self.namespace, "laptops"))
        for name in tunnels:
            wait_for_condition(self.cluster.client, "Tunnel", name, self.namespace, "Accepted", "Accepted", PATIENCE_S)
        for node in self.nodes:
            self._add_exit_node(node, self.way_port[node] if is_by_way else self.tunnel_port[node], exit_flags)
        control.ready()
        for node in self.nodes:
            self.members[node].start()
        for node in self.nodes:
            self.members[node].command.line("following control", PATIENCE_S)
            self.members[node].command.line("agents on", PATIENCE_S)
        text = self._token_text()
        for plan in agents:
            self._add_agent(plan, text)
            self.members[plan.name].start()
        for plan in agents:
            self.members[plan.name].ready()

    def add(
        self,
        name: str,
        program: str,
        argv: Sequence[str],
        ready: str = "ready in",
        environ: Mapping[str, str] | None = None,
    ) -> Member:
        member = Member(name, program, argv, ready, environ or {}, free_ports(1)[0])
        self.members[name] = member
        self._stack.callback(member.close)
        return member

    def apply(self, obj: Object) -> None:
        self._made.append(obj)
        self.cluster.client.apply(obj)

    def _add_exit_node(self, node: str, way_port: int, flags: Sequence[str]) -> None:
        client = self.cluster.client
        account = f"edgetun-exit-{self.name}-{REGION}"
        wait_for(lambda: client.get("v1", "ServiceAccount", account, self.namespace), PATIENCE_S, "the ServiceAccount")
        ca = wait_for(lambda: client.get("v1", "Secret", "edgetun-ca", self.namespace), PATIENCE_S, "the CA")
        folder = self.folder / node
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(base64.b64decode(ca["data"]["ca.crt"]))
        (folder / "token").write_text(
            self.cluster.kubectl(
                "create", "token", account, "-n", self.namespace, "--audience=edgetun-control", "--duration=2h"
            )
        )
        self.add(
            node,
            "edgetun-exitnode",
            [
                f"--control=https://127.0.0.1:{self.exit_port}", f"--control-ca={folder / 'ca.crt'}",
                f"--control-token-file={folder / 'token'}", f"--pool={self.name}", f"--region={REGION}",
                f"--name={node}", f"--state={folder / 'state'}", f"--listen={self.address[node]}", "--drain=3",
                f"--http-port={self.http_port[node]}", f"--tunnel-port={self.tunnel_port[node]}",
                f"--tunnel-address={self.address[node]}:{way_port}", f"--relay-host={self.address[node]}",
                f"--relay-port={self.relay_port[node]}", *(flag.format(node=node, https=self.https_port[node]) for flag in flags),
            ],
        )  # fmt: skip

    def _token_text(self) -> str:
        client = self.cluster.client
        secret = wait_for(lambda: client.get("v1", "Secret", "laptops-token", self.namespace), PATIENCE_S, "the Secret")
        wait_for(
            lambda: client.get(GROUP_VERSION, "AgentToken", "laptops", self.namespace)["status"]["secretHash"],
            PATIENCE_S,  # type: ignore[index]
        )
        parsed = ClusterToken.parse(base64.b64decode(secret["data"]["token"]).decode())
        return dataclasses.replace(parsed, control_urls=(f"https://127.0.0.1:{self.agent_port}",)).format()

    def _add_agent(self, plan: AgentPlan, text: str) -> None:
        self.add(
            plan.name,
            "edgetun-agent",
            [
                f"--name={plan.name}", f"--state={self.folder / plan.name}", f"--sessions={plan.sessions}", "--drain=3",
                *(f"--tunnel={self.namespace}/{name}" for name in plan.tunnels), *plan.flags,
            ],
            environ={"EDGETUN_CLUSTER_TOKEN": text},
        )  # fmt: skip

    def said(self, last: int = 4000) -> str:
        """The end of what everybody said, for a failure."""
        return "\n".join(
            f"--- {name}, run {number} of {len(member.runs)}:\n{run.said[-last:]}"
            for name, member in self.members.items()
            for number, run in enumerate(member.runs, 1)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        client = self.cluster.client
        for obj in reversed(self._made):
            client.delete(obj)
        reservations = client.list_of(GROUP_VERSION, "HostnameReservation")["items"]
        for one in reservations:
            if one["metadata"]["name"].endswith(f".{self.name}.example.com"):
                client.delete(
                    {
                        "apiVersion": GROUP_VERSION,
                        "kind": "HostnameReservation",
                        "metadata": {"name": one["metadata"]["name"]},
                    }
                )


__all__ = ["AgentPlan", "Fleet", "Member"]

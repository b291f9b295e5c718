"""Control, operator, exit node and agent as processes, on a real API server: from an AgentToken's Secret to a visitor's answer."""

from __future__ import annotations

import base64
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgetun_core.credentials import ClusterToken
from support import commands
from support.cluster import ControlPlane, free_ports
from support.commands import Command
from support.kube_client import KubeClient, Object
from support.operator import (
    GROUP_VERSION,
    OperatorProcess,
    conditions,
    crds,
    pool,
    token,
    tunnel,
    wait_for_condition,
)
from support.waiting import wait_for

Apply = Callable[..., Object]


@pytest.fixture(scope="module", autouse=True)
def _crds(cluster: ControlPlane) -> None:
    cluster.install_crds(crds())


@contextmanager
def visiting(visit: Callable[[], int]) -> Iterator[list[int]]:
    """A visitor who comes again and again; the statuses that were answered, complete after the end."""
    answers: list[int] = []
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(0.05):
            answers.append(visit())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        is_over.set()
        thread.join(30)
    assert answers


def shown_places(fleet: Fleet) -> list[Object]:
    return [{name: one["status"].get(name) for name in ("nodes", "placed")} for one in fleet.connected()]


class Fleet:
    """One pool with one region of one exit node, on loopback; control and operator beside it."""

    def __init__(self, cluster: ControlPlane, namespace: str, name: str, folder: Path, apply: Apply) -> None:
        self.cluster, self.namespace, self.name, self.folder = cluster, namespace, name, folder
        self.client: KubeClient = cluster.client
        self.apply = apply
        self.agent_port, self.exit_port, self.tunnel_port, self.http_port = free_ports(4)
        self.host = f"shop.{name}.example.com"
        self._stack = ExitStack()
        self.control: Command | None = None

    def start(self, origin: str, regions: tuple[str, ...] = ("eu",)) -> None:
        self.operator = self._stack.enter_context(
            OperatorProcess(self.cluster, self.namespace, "--control-name=127.0.0.1")
        )
        self.start_control()
        service = {"type": "NodePort", "addresses": ["127.0.0.1"]}
        self.apply(pool(self.name, service=service, regions=[{"name": region} for region in regions]))
        wanted = tunnel(self.namespace, "shop", self.name)
        wanted["spec"]["origin"]["url"] = origin
        self.apply(wanted)
        # Operator and control have just been started, which takes its time on a busy machine.
        wait_for_condition(self.client, "Tunnel", "shop", self.namespace, "Accepted", "Accepted", 60)
        self.exit_node = self.start_exit_node("eu", "exit-1", self.http_port, self.tunnel_port)

    def start_control(self) -> None:
        self.control = self.start_replica(self.agent_port, self.exit_port)

    def start_replica(self, agent_port: int, exit_port: int) -> Command:
        """A control."""
        return self._stack.enter_context(
            Command(
                "edgetun-control",
                f"--kubeconfig={self.cluster.kubeconfig}",
                f"--namespace={self.namespace}",
                "--listen=127.0.0.1",
                f"--port={agent_port}",
                f"--exit-port={exit_port}",
            )
        )

    def start_exit_node(
        self, region: str, name: str, http_port: int, tunnel_port: int, *more: str, exit_port: int = 0
    ) -> Command:
        """An exit node that follows the control at `exit_port`, the first one's by default."""
        account = f"edgetun-exit-{self.name}-{region}"
        wait_for(lambda: self.client.get("v1", "ServiceAccount", account, self.namespace), 30, "the ServiceAccount")
        ca = wait_for(lambda: self.client.get("v1", "Secret", "edgetun-ca", self.namespace), 30, "the CA")
        self.ca = base64.b64decode(ca["data"]["ca.crt"])
        folder = self.folder / name
        folder.mkdir()
        (folder / "ca.crt").write_bytes(self.ca)
        text = self.cluster.kubectl(
            "create", "token", account, "-n", self.namespace, "--audience=edgetun-control", "--duration=1h"
        )
        (folder / "token").write_text(text)
        node = self._stack.enter_context(
            Command(
                "edgetun-exitnode",
                f"--control=https://127.0.0.1:{exit_port or self.exit_port}",
                f"--control-ca={folder / 'ca.crt'}",
                f"--control-token-file={folder / 'token'}",
                f"--pool={self.name}",
                f"--region={region}",
                f"--name={name}",
                f"--state={folder / 'state'}",
                "--listen=127.0.0.1",
                f"--http-port={http_port}",
                "--https-port=-1",
                f"--tunnel-port={tunnel_port}",
                f"--tunnel-address=127.0.0.1:{tunnel_port}",
                *more,
            )
        )
        node.line("following control", 60)
        node.line("agents on", 60)
        return node

    def token(self, name: str = "laptops", agent_port: int = 0, **spec: Any) -> str:
        """Applies an AgentToken; the text that its Secret holds, with control where it listens here."""
        self.apply(token(self.namespace, name, **spec))
        secret = wait_for(lambda: self.client.get("v1", "Secret", f"{name}-token", self.namespace), 30, "the Secret")
        parsed = ClusterToken.parse(base64.b64decode(secret["data"]["token"]).decode())
        wait_for(lambda: self.client.get(GROUP_VERSION, "AgentToken", name, self.namespace)["status"]["secretHash"], 20)  # type: ignore[index]
        return dataclasses.replace(
            parsed, control_urls=(f"https://127.0.0.1:{agent_port or self.agent_port}",)
        ).format()

    def agent(self, text: str, name: str = "laptop", *more: str) -> Command:
        return self._stack.enter_context(
            Command(
                "edgetun-agent",
                f"--name={name}",
                f"--state={self.folder / name}",
                *more,
                environ={"EDGETUN_CLUSTER_TOKEN": text},
            )
        )

    def status(self, path: str = "/", port: int = 0) -> int:
        return commands.visit(port or self.http_port, path, host=self.host).status

    def agents(self) -> list[Object]:
        found: list[Object] = self.client.list_of(GROUP_VERSION, "Agent", self.namespace)["items"]
        return found

    def connected(self) -> list[Object]:
        return [one for one in self.agents() if (one.get("status") or {}).get("sessions")]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def fleet(
    cluster: ControlPlane, namespace: str, unique: str, tmp_path: Path, apply: Apply, request: pytest.FixtureRequest
) -> Iterator[Fleet]:
    with commands.an_origin() as origin:
        found = Fleet(cluster, namespace, f"p{unique}", tmp_path, apply)
        try:
            found.start(origin.url, getattr(request, "param", ("eu",)))
            yield found
        finally:
            print([(one["metadata"]["name"], one.get("status")) for one in found.agents()])
            for name in ("control", "exit_node"):
                process = getattr(found, name, None)  # the start may have ended before it
                print(f"{name} said:\n{process.said[-4000:] if process is not None else ''}")
            found.close()
            name = {"name": f"shop.{found.name}.example.com"}
            cluster.client.delete({"apiVersion": GROUP_VERSION, "kind": "HostnameReservation", "metadata": name})


@pytest.mark.timeout(180)
def test_an_agent_with_the_secrets_token_serves_and_is_shown(fleet: Fleet, kubectl: Callable[..., str]) -> None:
    agent = fleet.agent(fleet.token())
    agent.line("ready in")
    wait_for(lambda: fleet.status() == 200, 10, "a visitor gets an answer")
    (shown,) = wait_for(fleet.connected, 15, "the Agent")
    assert shown["spec"]["agentId"] == "laptop"
    assert shown["spec"]["token"] == "laptops"
    assert shown["spec"]["tunnels"] == ["shop"]
    status = wait_for(lambda: fleet.agents()[0]["status"]["sessions"] == 2 and fleet.agents()[0]["status"], 15)
    assert (status["pool"], status["region"], status["nodes"]) == (fleet.name, "eu", ["exit-1"])
    assert status["transport"] in {"quic", "tls", "quic,tls"}
    assert conditions(fleet.agents()[0])["Ready"]["status"] == "True"
    table = kubectl("get", "agents", "-n", fleet.namespace)
    assert table.split()[:7] == ["NAME", "POOL", "REGION", "TRANSPORT", "RTT", "SINCE", "AGE"]
    assert fleet.name in table
    lease = wait_for(
        lambda: fleet.client.get("coordination.k8s.io/v1", "Lease", shown["metadata"]["name"], fleet.namespace), 10
    )
    assert lease["metadata"]["ownerReferences"][0]["name"] == shown["metadata"]["name"]
    written = lease["metadata"]["resourceVersion"]
    generation = fleet.agents()[0]["metadata"]["resourceVersion"]
    time.sleep(3)  # heartbeats go by
    again = fleet.client.get("coordination.k8s.io/v1", "Lease", shown["metadata"]["name"], fleet.namespace)
    assert again is not None
    assert again["metadata"]["resourceVersion"] == written, "a heartbeat was written"
    assert fleet.agents()[0]["metadata"]["resourceVersion"] == generation
    wait_for_condition(fleet.client, "Tunnel", "shop", fleet.namespace, "AgentConnected", "AgentConnected")
    agent.stop()
    wait_for(lambda: not fleet.connected(), 15, "the Agent has left")
    assert conditions(fleet.agents()[0])["AgentConnected"]["reason"] == "AgentGone"
    assert "edgetun_" not in fleet.control.said.replace("edgetun_control", "")  # type: ignore[union-attr]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_a_token_that_ends_closes_exactly_its_sessions_within_two_seconds(fleet: Fleet, how: str) -> None:
    kept = fleet.agent(fleet.token("kept"), "kept")
    gone = fleet.agent(fleet.token("gone"), "gone")
    kept.line("ready in")
    gone.line("ready in")
    wait_for(lambda: len(fleet.connected()) == 2, 15, "both Agents")
    if how == "deleted":
        fleet.client.delete(token(fleet.namespace, "gone"))
    else:
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 1))
        fleet.client.patch(token(fleet.namespace, "gone"), {"spec": {"expires": ended}})
    began = time.monotonic()
    gone.line("revoked or has ended|was revoked", 10)
    assert time.monotonic() - began < 2.0
    assert kept.process.poll() is None
    assert "revoked" not in kept.said
    assert fleet.status("/after") == 200
    wait_for(lambda: [one["spec"]["agentId"] for one in fleet.connected()] == ["kept"], 20, "only one is shown")


@pytest.mark.timeout(240)
def test_control_away_visitors_are_served_a_new_agent_comes_when_it_is_back_and_nothing_is_lost(fleet: Fleet) -> None:
    fleet.agent(fleet.token()).line("ready in")
    wait_for(lambda: fleet.status() == 200, 10)
    assert fleet.control is not None
    fleet.control.process.kill()
    fleet.control.ended()
    fleet.exit_node.line("no stream to control")
    assert fleet.status("/away") == 200
    later = fleet.token("later")
    fleet.start_control()
    fleet.control.line("ready in", 40)
    fleet.agent(later, "second").line("ready in", 40)
    wait_for(lambda: len(fleet.connected()) == 2, 30, "both are shown")
    assert fleet.status("/back") == 200


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["restarted", "expired"])
def test_the_api_server_restarted_and_its_history_gone(fleet: Fleet, cluster: ControlPlane, how: str) -> None:
    fleet.agent(fleet.token()).line("ready in")
    wait_for(lambda: fleet.status() == 200, 10)
    if how == "restarted":
        cluster.restart_apiserver()
    else:
        cluster.expire_watches()
    assert fleet.status("/meanwhile") == 200
    fleet.agent(fleet.token("later"), "later").line("ready in", 60)
    other = tunnel(fleet.namespace, "other", fleet.name)
    fleet.apply(other)
    wait_for(
        lambda: commands.visit(fleet.http_port, host=f"other.{fleet.name}.example.com").status != 404,
        60,
        "the exit node knows a tunnel that came later",
    )
    fleet.client.delete(
        {
            "apiVersion": GROUP_VERSION,
            "kind": "HostnameReservation",
            "metadata": {"name": f"other.{fleet.name}.example.com"},
        }
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fleet", [("eu", "us")], indirect=True)
def test_two_regions_are_measured_and_one_that_dies_is_survived(fleet: Fleet) -> None:
    tunnel_port, http_port = free_ports(2)
    other = fleet.start_exit_node("us", "exit-2", http_port, tunnel_port)
    agent = fleet.agent(fleet.token(), "laptop")
    agent.line("ready in")
    wait_for(lambda: fleet.status() == 200 and fleet.status(port=http_port) == 200, 20, "both regions serve")
    (shown,) = wait_for(fleet.connected, 15, "the Agent")
    assert shown["status"]["region"] in {"eu", "us"}
    wait_for(lambda: fleet.connected()[0]["status"]["nodes"] == ["exit-1", "exit-2"], 15, "a session with each")
    assert fleet.connected()[0]["status"]["rtt"].endswith("ms")
    other.process.kill()
    for n in range(20):
        assert fleet.status(f"/{n}") == 200
    wait_for(lambda: fleet.status("/later") == 200, 5)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fleet", [("eu", "us")], indirect=True)
def test_a_tunnels_spare_region_gets_one_session_of_its_agents(fleet: Fleet) -> None:
    for region, name in (("eu", "exit-2"), ("us", "exit-3")):
        tunnel_port, http_port = free_ports(2)
        if region == "us":
            agent = fleet.agent(fleet.token(), "laptop")
            agent.line("ready in")
            wait_for(lambda: fleet.connected()[0]["status"]["nodes"] == ["exit-1", "exit-2"], 30, "both in its region")
        fleet.start_exit_node(region, name, http_port, tunnel_port)
    named = {"apiVersion": GROUP_VERSION, "kind": "Tunnel", "metadata": {"name": "shop", "namespace": fleet.namespace}}
    fleet.client.patch(named, {"spec": {"pool": {"regions": {"spare": "us"}}}})

    def nodes() -> list[str]:
        found: list[str] = fleet.connected()[0]["status"]["nodes"]
        return found

    wait_for(lambda: len(nodes()) == 2 and "exit-3" in nodes(), 60, "one session in the spare region")
    assert fleet.connected()[0]["status"]["placed"] == f"{fleet.name}/eu"
    assert fleet.status() == 200


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fleet", [("eu", "us")], indirect=True)
def test_a_region_that_appears_is_used_and_one_that_is_emptied_lets_its_agents_go_and_gets_them_back(
    fleet: Fleet,
) -> None:
    agent = fleet.agent(fleet.token(), "laptop")
    agent.line("ready in")
    wait_for(lambda: fleet.connected()[0]["status"]["nodes"] == ["exit-1"], 15, "it is where the only exit node is")
    assert fleet.connected()[0]["status"]["placed"] == f"{fleet.name}/eu"

    tunnel_port, http_port = free_ports(2)
    fleet.start_exit_node("us", "exit-2", http_port, tunnel_port)
    second = fleet.agent(fleet.token("others"), "second")
    second.line("ready in")

    def wants(eu: int) -> None:
        regions = [{"name": "eu", "replicas": eu}, {"name": "us"}]
        named = {"apiVersion": GROUP_VERSION, "kind": "ExitPool", "metadata": {"name": fleet.name}}
        fleet.client.patch(named, {"spec": {"regions": regions}})

    with visiting(lambda: fleet.status(port=http_port)) as answers:
        wants(0)
        fleet.exit_node.line("control says: take no sessions", 30)
        where = [{"nodes": ["exit-2"], "placed": f"{fleet.name}/us"}] * 2
        wait_for(lambda: shown_places(fleet) == where, 30, "nobody is left in the empty region")
        wants(1)
        fleet.exit_node.line("control says: take sessions again", 30)
        both = [["exit-1", "exit-2"]] * 2
        wait_for(lambda: [one["nodes"] for one in shown_places(fleet)] == both, 30, "it is used again")
    assert set(answers) == {200}
    assert fleet.control is not None
    assert "could not be given" not in fleet.control.said


@pytest.mark.timeout(240)
def test_the_ca_is_rotated_under_visitors_and_tokens_of_before_and_after_are_good(fleet: Fleet) -> None:
    before = fleet.token()
    fleet.agent(before).line("ready in")
    wait_for(lambda: fleet.status() == 200, 10)
    assert fleet.control is not None
    with visiting(fleet.status) as answers:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "edgetun-ca", "namespace": fleet.namespace},
        }
        fleet.client.patch(secret, {"metadata": {"annotations": {"edgetun.dev/rotate-ca": "now"}}})

        def pinned() -> str:
            return ClusterToken.parse(fleet.token()).ca_fingerprint

        old = ClusterToken.parse(before).ca_fingerprint
        wait_for(lambda: pinned() != old, 30, "the token's Secret names the new CA")
        fleet.control.line("control shows its new certificate", 60)
        fleet.agent(before, "with-the-old-token").line("ready in", 30)
        fleet.agent(fleet.token("later"), "with-a-new-token").line("ready in", 30)
        wait_for(lambda: len(fleet.connected()) == 3, 20, "all three are connected")
        # An exit node that knows only the CA of before still knows control.
        fleet.control.process.kill()
        fleet.control.ended()
        fleet.exit_node.line("no stream to control")
        fleet.start_control()
        fleet.control.line("exit node .* follows", 40)
        # And one that comes now knows both.
        http_port, tunnel_port = free_ports(2)
        fleet.start_exit_node("eu", "exit-2", http_port, tunnel_port)
        wait_for(lambda: fleet.status(port=http_port) == 200, 40, "agents reach it, or it relays")
        fleet.client.patch(secret, {"metadata": {"annotations": {"edgetun.dev/retire-old-ca": "true"}}})
        wait_for(
            lambda: (
                base64.b64decode(fleet.client.get("v1", "Secret", "edgetun-ca", fleet.namespace)["data"]["ca.crt"])  # type: ignore[index]
                .decode()
                .count("BEGIN")
                == 1
            ),
            20,
            "the old one is forgotten",
        )
    assert set(answers) == {200}


@pytest.mark.timeout(240)
def test_a_name_that_an_agent_asks_for_is_reserved_and_outlives_it(fleet: Fleet) -> None:
    own = f"mine.{fleet.name}.example.com"
    text = fleet.token("makers", hostnames=[f"*.{fleet.name}.example.com"])
    assert fleet.control is not None
    with commands.an_origin() as origin:
        agent = fleet.agent(text, "maker", f"--origin={origin.url}", f"--host={own}")
        said = agent.line("error: (.*)|ready in")
    # The token of a cluster serves its namespace's Tunnels in pools that are named by them; the pool for others is "default".
    assert "ready in" in said.group(0) or "ExitPool" in said.group(0), agent.said
    reservation = {"apiVersion": GROUP_VERSION, "kind": "HostnameReservation", "metadata": {"name": own}}
    held = fleet.client.get(GROUP_VERSION, "HostnameReservation", own)
    assert held is not None
    assert held["spec"]["claimedBy"]["namespace"].startswith("token-makers-")
    other = fleet.agent(
        fleet.token("thieves", hostnames=["*"]), "thief", "--origin=http://127.0.0.1:1", f"--host={own}"
    )
    assert other.line("error: (.*)").group(1).startswith(f"the name {own} belongs to another token")
    fleet.client.delete(reservation)


@pytest.mark.timeout(180)
def test_an_agent_that_runs_hears_of_a_tunnel_that_comes_later_and_serves_it(fleet: Fleet) -> None:
    agent = fleet.agent(fleet.token())
    agent.line("ready in")
    wait_for(lambda: fleet.status() == 200, 10)
    with commands.an_origin("later") as origin:
        later = tunnel(fleet.namespace, "later", fleet.name)
        later["spec"]["origin"]["url"] = origin.url
        fleet.apply(later)
        host = f"later.{fleet.name}.example.com"
        began = time.monotonic()
        wait_for(lambda: commands.visit(fleet.http_port, host=host).body == "later /", 20, "the new tunnel serves")
        assert time.monotonic() - began < 10
        assert fleet.status("/still") == 200
        fleet.client.delete(later)
        wait_for(lambda: commands.visit(fleet.http_port, host=host).status == 404, 10)
    reservation = {"apiVersion": GROUP_VERSION, "kind": "HostnameReservation", "metadata": {"name": host}}
    fleet.client.delete(reservation)


@pytest.mark.timeout(240)
def test_nodes_of_two_replicas_find_each_others_sessions_and_ask_each_other_when_their_replica_is_gone(
    fleet: Fleet,
) -> None:
    """The visitor's node follows one replica; the agents come to the other one, and to the node that follows it."""
    agent_port, exit_port, tunnel_port, http_port, holders_tunnel_port, holders_http_port = free_ports(6)
    later = tunnel(fleet.namespace, "later", fleet.name)
    host = f"later.{fleet.name}.example.com"
    fleet.start_replica(agent_port, exit_port).line("ready in", 60)
    reached = ("--relay-host=127.0.0.1", "--relay-port=0")
    here = fleet.start_exit_node("eu", "here", http_port, tunnel_port, *reached)
    fleet.start_exit_node("eu", "holder", holders_http_port, holders_tunnel_port, *reached, exit_port=exit_port)

    def visit(name: str, path: str = "/") -> commands.Page:
        return commands.visit(http_port, path, host=f"{name}.{fleet.name}.example.com")

    with commands.an_origin("later") as origin:
        later["spec"]["origin"]["url"] = origin.url
        fleet.apply(later)
        fleet.agent(fleet.token("shops", agent_port, tunnels=["shop"]), "shops").line("ready in", 60)
        wait_for(
            lambda: [one["status"]["nodes"] for one in fleet.connected()] == [["holder"]], 60, "it is at the other"
        )
        wait_for(lambda: visit("shop").status == 200, 60, "the replicas tell each other, and the request is relayed")
        # Nobody holds the second tunnel yet, and its name is known.
        wait_for(lambda: visit("later").status == 503, 60, "it is there, and offline")
        assert fleet.control is not None
        fleet.control.process.kill()
        fleet.control.ended()
        here.line("no stream to control", 60)
        assert visit("shop", "/away").status == 200
        fleet.agent(fleet.token("laters", agent_port, tunnels=["later"]), "laters").line("ready in", 60)
        page = wait_for(lambda: (found := visit("later")).status == 200 and found, 60, "it has asked")
        assert page.body == "later /"
        assert visit("shop", "/still").status == 200
    fleet.client.delete({"apiVersion": GROUP_VERSION, "kind": "HostnameReservation", "metadata": {"name": host}})


@pytest.mark.timeout(180)
def test_a_port_that_an_exit_node_cannot_have_is_a_condition_of_its_tunnel_until_it_can(fleet: Fleet) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = other.getsockname()[1]
        wider = fleet.client.get(GROUP_VERSION, "ExitPool", fleet.name)
        assert wider is not None
        fleet.client.patch(wider, {"spec": {"ports": {"tcp": [{"from": busy}]}}})
        wanted = tunnel(fleet.namespace, "db", fleet.name)
        wanted["spec"] = {"pool": {"name": fleet.name}, "tcp": {"port": busy}, "origin": {"url": "tcp://127.0.0.1:9"}}
        fleet.apply(wanted)
        found = wait_for_condition(
            fleet.client, "Tunnel", "db", fleet.namespace, "PortAvailable", "PortUnavailable", 60
        )
        message = str(conditions(found)["PortAvailable"]["message"])  # type: ignore[index]
        assert "exit node exit-1" in message
        assert f"TCP port {busy}" in message
        assert "is taken by another program" in message
        (entry,) = found["status"]["portsUnavailable"]
        assert entry["node"] == "exit-1"
        other.close()
    found = wait_for_condition(fleet.client, "Tunnel", "db", fleet.namespace, "PortAvailable", "PortAvailable", 60)
    assert not found["status"].get("portsUnavailable")

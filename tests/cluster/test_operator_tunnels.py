"""The operator process on a real API server: Tunnels, AgentTokens, HostnameReservations and what their status says."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator

import pytest

from edgetun_core.credentials import ClusterToken, hash_secret
from support.cluster import ControlPlane
from support.kube_client import KubeClient, Object
from support.operator import GROUP_VERSION, OperatorProcess, conditions, crds, pool, token, tunnel, wait_for_condition
from support.waiting import wait_for

Apply = Callable[..., Object]


@pytest.fixture(scope="module", autouse=True)
def _crds(cluster: ControlPlane) -> None:
    cluster.install_crds(crds())


@pytest.fixture
def operator(cluster: ControlPlane, namespace: str) -> Iterator[OperatorProcess]:
    with OperatorProcess(cluster, namespace) as running:
        yield running


@pytest.fixture
def teams(client: KubeClient, unique: str) -> Iterator[tuple[str, str]]:
    """Two more namespaces."""
    names = (f"team-a-{unique}", f"team-b-{unique}")
    for name in names:
        client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield names
    for name in names:
        client.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


@pytest.fixture
def reservations(client: KubeClient) -> Iterator[Callable[[str], Object | None]]:
    """Asks for a reservation, and removes afterwards what was asked for."""
    asked: set[str] = set()

    def get(hostname: str) -> Object | None:
        asked.add(hostname)
        return client.get(GROUP_VERSION, "HostnameReservation", hostname)

    yield get
    for hostname in asked:
        client.delete({"apiVersion": GROUP_VERSION, "kind": "HostnameReservation", "metadata": {"name": hostname}})


Reservations = Callable[[str], Object | None]


def test_a_tunnel_without_its_pool_says_so_and_follows_when_the_pool_comes(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply, reservations: Reservations
) -> None:
    name = f"p{unique}"
    host = f"shop.{name}.example.com"
    apply(tunnel(namespace, "shop", name))
    found = wait_for_condition(client, "Tunnel", "shop", namespace, "Accepted", "PoolNotFound")
    assert conditions(found)["Ready"]["reason"] == "PoolNotFound"
    assert reservations(host) is None
    apply(pool(name))
    found = wait_for_condition(client, "Tunnel", "shop", namespace, "Accepted", "Accepted")
    assert conditions(found)["Ready"]["reason"] == "PoolNotReady"
    assert conditions(found)["AgentConnected"]["reason"] == "NoAgentConnected"
    assert found["status"]["hostnames"] == [host]
    assert found["status"]["regions"] == ["eu"]
    held = wait_for(lambda: reservations(host), 20, "the reservation")
    assert held["spec"] == {
        "hostname": host,
        "claimedBy": {"namespace": namespace, "tunnel": "shop"},
        "reclaimPolicy": "Retain",
    }
    wait_for(
        lambda: (
            {"PoolNotFound", "Accepted"}
            <= {
                event["reason"]
                for event in client.list_of("v1", "Event", namespace)["items"]
                if event["involvedObject"]["kind"] == "Tunnel"
            }
        ),
        10,
        "events on the Tunnel",
    )


def test_a_tunnel_with_an_agent_on_a_serving_pool_is_ready(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply, reservations: Reservations
) -> None:
    name = f"p{unique}"
    reservations(f"shop.{name}.example.com")
    apply(pool(name))
    apply(tunnel(namespace, "shop", name))
    wait_for_condition(client, "Tunnel", "shop", namespace, "Accepted", "Accepted")
    agent = {
        "apiVersion": GROUP_VERSION,
        "kind": "Agent",
        "metadata": {"name": "laptop", "namespace": namespace},
        "spec": {"agentId": "laptop", "token": "laptops", "tunnels": ["shop"]},
    }
    apply(agent)
    client.patch(agent, {"status": {"pool": name, "region": "eu", "transport": "quic", "sessions": 2}}, "status")
    found = wait_for_condition(client, "Tunnel", "shop", namespace, "AgentConnected", "AgentConnected")
    assert (found["status"]["agents"], found["status"]["transport"]) == (1, "quic")
    wait_for(
        lambda: client.get(GROUP_VERSION, "ExitPool", name)["status"].get("sessions") == 2,  # type: ignore[index]
        20,
        "the pool counts the sessions",
    )
    client.patch(agent, {"status": {"transport": "", "sessions": 0}}, "status")
    wait_for_condition(client, "Tunnel", "shop", namespace, "AgentConnected", "NoAgentConnected")


def test_the_oldest_keeps_a_hostname_and_its_namespace_keeps_it_after_it(
    operator: OperatorProcess,
    client: KubeClient,
    teams: tuple[str, str],
    unique: str,
    apply: Apply,
    reservations: Reservations,
) -> None:
    ours, theirs = teams
    name = f"p{unique}"
    host = f"shop.{name}.example.com"
    apply(pool(name))
    first = apply(tunnel(ours, "shop", name))
    wait_for_condition(client, "Tunnel", "shop", ours, "Accepted", "Accepted")
    wait_for(lambda: reservations(host), 20, "the reservation")
    apply(tunnel(theirs, "thief", name, host))
    found = wait_for_condition(client, "Tunnel", "thief", theirs, "Accepted", "HostnameReserved")
    assert f"{ours}/shop" in conditions(found)["Accepted"]["message"]
    apply(tunnel(ours, "second", name, host))
    found = wait_for_condition(client, "Tunnel", "second", ours, "Accepted", "HostnameConflict")
    assert f"{ours}/shop" in conditions(found)["Accepted"]["message"]

    client.delete(first)  # the name stays with the namespace: its other tunnel gets it, the other namespace does not
    wait_for_condition(client, "Tunnel", "second", ours, "Accepted", "Accepted")
    wait_for(lambda: reservations(host)["spec"]["claimedBy"]["tunnel"] == "second", 20, "handed over")  # type: ignore[index]
    client.delete(tunnel(ours, "second", name))
    wait_for_condition(client, "HostnameReservation", host, None, "Bound", "Retained")
    wait_for_condition(client, "Tunnel", "thief", theirs, "Accepted", "HostnameReserved")

    client.delete(reservations(host))  # type: ignore[arg-type]
    wait_for_condition(client, "Tunnel", "thief", theirs, "Accepted", "Accepted")
    assert reservations(host)["spec"]["claimedBy"]["namespace"] == theirs  # type: ignore[index]


def test_the_oldest_keeps_a_port_which_is_the_services_too(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, ports={"tcp": [{"from": 15432, "to": 15433}], "udp": [{"from": 53}]}))

    def database(called: str, port: int) -> Object:
        made = tunnel(namespace, called, name)
        made["spec"] = {
            "pool": {"name": name},
            "tcp": {"port": port},
            "origin": {"url": "tcp://localhost:5432"},
        }
        return made

    apply(database("first", 15432))
    found = wait_for_condition(client, "Tunnel", "first", namespace, "Accepted", "Accepted")
    assert (found["status"]["port"], found["status"]["hostnames"]) == ("tcp/15432", [])
    time.sleep(1.1)  # timestamps are to the second
    apply(database("second", 15432))
    apply(database("outside", 22))
    found = wait_for_condition(client, "Tunnel", "second", namespace, "Accepted", "PortConflict")
    assert f"held by Tunnel {namespace}/first" in conditions(found)["Accepted"]["message"]
    wait_for_condition(client, "Tunnel", "outside", namespace, "Accepted", "PortNotAllowed")
    service = wait_for(lambda: client.get("v1", "Service", f"edgetun-exit-{name}-eu", namespace), 20, "the Service")
    ports = {(one["name"], one["port"], one["protocol"]) for one in service["spec"]["ports"]}
    assert {("tcp-15432", 15432, "TCP"), ("tcp-15433", 15433, "TCP"), ("udp-53", 53, "UDP")} <= ports


def test_under_delete_a_name_is_free_with_its_tunnel(
    cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply, reservations: Reservations
) -> None:
    name = f"p{unique}"
    host = f"shop.{name}.example.com"
    with OperatorProcess(cluster, namespace, "--reclaim-policy=Delete"):
        apply(pool(name))
        apply(tunnel(namespace, "shop", name))
        wait_for(lambda: reservations(host), 20, "the reservation")
        client.delete(tunnel(namespace, "shop", name))
        wait_for(lambda: reservations(host) is None, 20, "the reservation is gone")


def test_a_pool_may_be_closed_to_a_namespace(
    operator: OperatorProcess,
    client: KubeClient,
    teams: tuple[str, str],
    unique: str,
    apply: Apply,
    reservations: Reservations,
) -> None:
    ours, theirs = teams
    name = f"p{unique}"
    for tunnel_name in ("a", "b"):
        reservations(f"{tunnel_name}.{name}.example.com")
    apply(pool(name, allowedNamespaces={"from": "Selector", "names": [ours]}))
    apply(tunnel(ours, "a", name))
    apply(tunnel(theirs, "b", name))
    wait_for_condition(client, "Tunnel", "a", ours, "Accepted", "Accepted")
    wait_for_condition(client, "Tunnel", "b", theirs, "Accepted", "NamespaceNotAllowed")
    apply(pool(name))
    wait_for_condition(client, "Tunnel", "b", theirs, "Accepted", "Accepted")


def read(secret: Object) -> ClusterToken:
    return ClusterToken.parse(base64.b64decode(secret["data"]["token"]).decode())


def test_a_token_becomes_a_secret_whose_hash_alone_stands_in_the_status(
    operator: OperatorProcess, client: KubeClient, kubectl: Callable[..., str], namespace: str, apply: Apply
) -> None:
    apply(token(namespace, "laptops"))
    found = wait_for_condition(client, "AgentToken", "laptops", namespace, "Ready", "Ready")
    secret = client.get("v1", "Secret", "laptops-token", namespace)
    assert secret is not None
    text = base64.b64decode(secret["data"]["token"]).decode()
    said = read(secret)
    assert said.control_urls == ("https://control.example.com:7443",)
    assert len(said.ca_fingerprint) == 64
    assert found["status"]["secretHash"] == hash_secret(said.token_id, said.secret)
    assert found["status"]["tokenId"] == said.token_id
    assert text not in kubectl("get", "agenttokens", "-n", namespace, "-o", "yaml")
    assert text not in operator.log()

    client.delete(secret)  # rotation
    wait_for(
        lambda: client.get(GROUP_VERSION, "AgentToken", "laptops", namespace)["status"]["tokenId"] != said.token_id,  # type: ignore[index]
        20,
        "another token",
    )
    again = wait_for(lambda: client.get("v1", "Secret", "laptops-token", namespace), 20)
    assert read(again).secret != said.secret

    client.patch(again, {"data": {"token": base64.b64encode(b"edgetun_broken").decode()}})
    wait_for_condition(client, "AgentToken", "laptops", namespace, "SecretReady", "SecretInvalid")


def test_a_token_under_another_name_leaves_no_old_one_behind(
    operator: OperatorProcess, client: KubeClient, namespace: str, apply: Apply
) -> None:
    apply(token(namespace, "laptops"))
    wait_for_condition(client, "AgentToken", "laptops", namespace, "Ready", "Ready")
    apply(token(namespace, "laptops", secretName="other"))
    wait_for(lambda: client.get("v1", "Secret", "other", namespace), 20, "the new Secret")
    wait_for(lambda: client.get("v1", "Secret", "laptops-token", namespace) is None, 20, "the old one is gone")


def test_a_secret_of_somebody_else_is_not_taken_for_a_token(
    operator: OperatorProcess, client: KubeClient, namespace: str, apply: Apply
) -> None:
    meta = {"name": "laptops-token", "namespace": namespace}
    theirs = client.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"password": "x"}})
    apply(token(namespace, "laptops"))
    wait_for_condition(client, "AgentToken", "laptops", namespace, "SecretReady", "ObjectConflict")
    now = client.get("v1", "Secret", "laptops-token", namespace)
    assert now is not None
    assert now["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]


def test_a_token_ends_in_time(operator: OperatorProcess, client: KubeClient, namespace: str, apply: Apply) -> None:
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 8))
    apply(token(namespace, "laptops", expires=ends))
    wait_for_condition(client, "AgentToken", "laptops", namespace, "SecretReady", "SecretCreated")
    wait_for_condition(client, "AgentToken", "laptops", namespace, "SecretReady", "TokenExpired", 20)


def test_a_restart_keeps_tokens_and_writes_no_status(
    cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply, reservations: Reservations
) -> None:
    name = f"p{unique}"
    reservations(f"shop.{name}.example.com")
    apply(pool(name))
    apply(tunnel(namespace, "shop", name))
    apply(token(namespace, "laptops"))
    kinds = (("Tunnel", "shop"), ("AgentToken", "laptops"))
    with OperatorProcess(cluster, namespace) as first:
        wait_for_condition(client, "Tunnel", "shop", namespace, "Accepted", "Accepted")
        wait_for_condition(client, "AgentToken", "laptops", namespace, "Ready", "Ready")
        first.settled()
    before = [client.get(GROUP_VERSION, kind, n, namespace) for kind, n in kinds]
    secret = client.get("v1", "Secret", "laptops-token", namespace)
    with OperatorProcess(cluster, namespace) as second:
        second.settled()
    assert [client.get(GROUP_VERSION, kind, n, namespace) for kind, n in kinds] == before
    assert client.get("v1", "Secret", "laptops-token", namespace) == secret


def test_a_namespace_goes_whole_with_the_operator_away(
    cluster: ControlPlane,
    controllers: None,
    client: KubeClient,
    namespace: str,
    unique: str,
    apply: Apply,
    reservations: Reservations,
) -> None:
    team = f"team-{unique}"
    client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team}})
    name = f"p{unique}"
    host = f"shop.{name}.example.com"
    apply(pool(name))
    with OperatorProcess(cluster, namespace) as running:
        client.apply(tunnel(team, "shop", name))
        client.apply(token(team, "laptops"))
        wait_for(lambda: reservations(host), 20, "the reservation")
        wait_for_condition(client, "AgentToken", "laptops", team, "Ready", "Ready")
        running.settled()
    client.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team}})
    wait_for(lambda: client.get("v1", "Namespace", team) is None, 60, "the namespace is gone")
    assert reservations(host) is not None  # kept, so that nobody else gets the name
    with OperatorProcess(cluster, namespace):
        wait_for_condition(client, "HostnameReservation", host, None, "Bound", "Retained")

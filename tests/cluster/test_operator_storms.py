"""The operator on a real API server when many things happen at once: names that all want, writers that write all the time, definitions of the version before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from support.cluster import ControlPlane
from support.kube_binaries import CONTROLLERS, Binaries
from support.kube_client import ApiError, KubeClient, Object
from support.manifests import as_it_was_before, as_it_will_be, read_crds
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
WRITERS = 8


@pytest.fixture(scope="module", autouse=True)
def _crds(cluster: ControlPlane) -> None:
    cluster.install_crds(crds())


@pytest.fixture
def teams(client: KubeClient, unique: str) -> Iterator[list[str]]:
    """Five more namespaces."""
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"team-{n}-{unique}"}} for n in range(5)]
    for obj in objects:
        client.create(obj)
    yield [obj["metadata"]["name"] for obj in objects]  # type: ignore[index]
    for obj in objects:
        client.delete(obj)


def accepted(obj: Object) -> Object:
    return conditions(obj).get("Accepted", {})


def test_of_forty_tunnels_that_want_one_name_at_once_one_gets_it_and_all_others_are_told_who(
    cluster: ControlPlane, client: KubeClient, namespace: str, teams: list[str], unique: str, apply: Apply
) -> None:
    name, wanted = f"p{unique}", 40
    host = f"shop.{name}.example.com"
    reservation = {"apiVersion": GROUP_VERSION, "kind": "HostnameReservation", "metadata": {"name": host}}
    apply(pool(name))
    with OperatorProcess(cluster, namespace) as operator:
        wait_for(operator.leads, 30)
        with ThreadPoolExecutor(WRITERS) as writers:
            made = [tunnel(teams[n % len(teams)], f"shop-{n}", name, host) for n in range(wanted)]
            list(writers.map(KubeClient.from_kubeconfig(cluster.kubeconfig).create, made))

        def all_told() -> list[Object]:
            found = [obj for team in teams for obj in client.list_of(GROUP_VERSION, "Tunnel", team)["items"]]
            assert len(found) == wanted
            reasons = [accepted(obj).get("reason") for obj in found]
            assert reasons.count("Accepted") == 1, reasons
            assert set(reasons) <= {"Accepted", "HostnameConflict", "HostnameReserved"}, reasons
            return found

        found = wait_for(all_told, 60, "one has the name")
        operator.settled(40)
        found = all_told()
        (winner,) = [obj for obj in found if accepted(obj)["reason"] == "Accepted"]
        holder = f"{winner['metadata']['namespace']}/{winner['metadata']['name']}"
        for loser in found:
            if loser is not winner:
                assert holder in accepted(loser)["message"], accepted(loser)
        held = client.get(GROUP_VERSION, "HostnameReservation", host)
        assert held is not None
        claimed = held["spec"]["claimedBy"]
        assert f"{claimed['namespace']}/{claimed['tunnel']}" == holder
        oldest = min(obj["metadata"]["creationTimestamp"] for obj in found)
        assert winner["metadata"]["creationTimestamp"] == oldest

        # The winner goes: its namespace keeps the name, whoever else is older.
        client.delete(winner)
        wanted -= 1
        (second,) = [obj for obj in wait_for(all_told, 60) if accepted(obj)["reason"] == "Accepted"]
        assert second["metadata"]["namespace"] == winner["metadata"]["namespace"]
        assert operator.metric("edgetun_operator_failing") == 0
    client.delete(reservation)


def test_writers_who_write_all_the_time_are_overwritten_by_nobody_and_the_status_is_right_in_the_end(
    cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name, count = f"p{unique}", 8
    apply(pool(name))
    hosts = [f"t{n}.{name}.example.com" for n in range(count)]
    with OperatorProcess(cluster, namespace) as operator:
        for n in range(count):
            client.apply(tunnel(namespace, f"t{n}", name, hosts[n]))
        for n in range(count):
            wait_for_condition(client, "Tunnel", f"t{n}", namespace, "Accepted", "Accepted")
        is_over = threading.Event()
        written: dict[str, int] = {}
        conflicts = []

        def write(which: int) -> None:
            """As people's tools do: read, change, replace with the version that was read."""
            own = KubeClient.from_kubeconfig(cluster.kubeconfig)
            times = 0
            while not is_over.is_set():
                for kind, target, where in (("Tunnel", f"t{which}", namespace), ("ExitPool", name, None)):
                    obj = own.get(GROUP_VERSION, kind, target, where)
                    assert obj is not None
                    notes = obj["metadata"].setdefault("annotations", {})
                    notes[f"example.com/writer-{which}"] = str(times + 1)
                    try:
                        own.request("PUT", own.path_of(obj), obj)
                    except ApiError as error:
                        if error.status != 409:
                            raise
                        conflicts.append(kind)
                    else:
                        times += 1 if kind == "Tunnel" else 0
                        if kind == "Tunnel":
                            written[target] = times

        with ThreadPoolExecutor(4) as writers:
            done = [writers.submit(write, n) for n in range(4)]
            for grace in range(1, 6):  # and the spec changes meanwhile
                for n in range(count):
                    client.patch(tunnel(namespace, f"t{n}", name), {"spec": {"reconnectGrace": f"{grace}s"}})
            is_over.set()
            for one in done:
                one.result(30)
        assert conflicts, "the writers were to meet each other"
        operator.settled(60)
        for n in range(count):
            obj = wait_for_condition(client, "Tunnel", f"t{n}", namespace, "Accepted", "Accepted")
            assert obj["spec"]["reconnectGrace"] == "5s"
            if n < 4:
                assert int(obj["metadata"]["annotations"][f"example.com/writer-{n}"]) >= written[f"t{n}"]
        assert operator.metric("edgetun_operator_failing") == 0
        before = operator.metric("edgetun_operator_statuses_written_total")
        time.sleep(2)
        assert operator.metric("edgetun_operator_statuses_written_total") == before, "it goes on writing"
    for host in hosts:
        client.delete({"apiVersion": GROUP_VERSION, "kind": "HostnameReservation", "metadata": {"name": host}})


def test_the_operator_works_with_the_definitions_of_the_version_after(another_cluster: ControlPlane) -> None:
    """As between the two commands of an upgrade: the definitions come first."""
    client, system = another_cluster.client, "edgetun-system"
    another_cluster.install_crds(as_it_will_be(crd) for crd in read_crds())
    try:
        with OperatorProcess(another_cluster, system) as operator:
            client.apply(pool("ahead"))
            stored = client.apply(tunnel("default", "ahead", "ahead"))
            assert stored["spec"]["later"] == stored["spec"]["origin"]["later"] == {"mood": "fine"}
            client.apply(token("default", "ahead"))
            wait_for_condition(client, "ExitPool", "ahead", None, "Accepted", "Accepted")
            wait_for_condition(client, "Tunnel", "ahead", "default", "Accepted", "Accepted")
            wait_for(lambda: client.get("v1", "Secret", "ahead-token", "default"), 20, "the token")
            assert client.get("apps/v1", "Deployment", "edgetun-exit-ahead-eu", system) is not None
            assert "is passed over" in operator.log()
    finally:
        another_cluster.install_crds(read_crds())


@pytest.fixture(scope="module")
def another_cluster(control_plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """Of its own, since definitions are the whole cluster's."""
    programs = {n: path for n, path in control_plane_binaries.programs.items() if n not in CONTROLLERS}
    plane = ControlPlane(Binaries(programs))
    yield plane
    plane.close()


def test_the_operator_works_with_the_definitions_of_the_version_before_and_goes_on_when_they_are_upgraded(
    another_cluster: ControlPlane,
) -> None:
    client, system = another_cluster.client, "edgetun-system"
    another_cluster.install_crds(as_it_was_before(crd) for crd in read_crds())
    with OperatorProcess(another_cluster, system) as operator:
        client.apply(pool("fleet"))
        client.apply(tunnel("default", "shop", "fleet"))
        client.apply(token("default", "laptops"))
        wait_for_condition(client, "ExitPool", "fleet", None, "Accepted", "Accepted")
        wait_for_condition(client, "Tunnel", "shop", "default", "Accepted", "Accepted")
        wait_for(lambda: client.get("v1", "Secret", "laptops-token", "default"), 20, "the token")
        made = client.get("apps/v1", "Deployment", "edgetun-exit-fleet-eu", system)
        assert made is not None
        uid, generation = made["metadata"]["uid"], made["metadata"]["generation"]
        # A rule that this version has and the definitions have not: it stands in the status instead.
        client.apply(
            tunnel("default", "broken", "fleet")
            | {"spec": {**tunnel("default", "broken", "fleet")["spec"], "limits": {"burst": 5}}}
        )
        wait_for_condition(client, "Tunnel", "broken", "default", "Accepted", "InvalidSpec")

        for crd in read_crds():
            another_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump(crd))
        another_cluster.install_crds(read_crds())
        client.apply(tunnel("default", "later", "fleet"))
        wait_for_condition(client, "Tunnel", "later", "default", "Accepted", "Accepted")
        operator.settled(40)
        assert operator.process.poll() is None
        again = client.get("apps/v1", "Deployment", "edgetun-exit-fleet-eu", system)
        assert again is not None
        assert (again["metadata"]["uid"], again["metadata"]["generation"]) == (uid, generation), "no pod was restarted"

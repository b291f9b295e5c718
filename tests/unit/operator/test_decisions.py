"""What a status says, from what was seen."""

from __future__ import annotations

from typing import Any

from edgetun_cluster.kinds import TUNNEL
from edgetun_core.api.conditions import ConditionType, Verdict
from edgetun_core.api.exitpool import ExitPool, region_plans
from edgetun_core.api.load import parse_resource
from edgetun_core.problem import Problem
from edgetun_operator.decide.conditions import build_conditions, decide_accepted, decide_notes
from edgetun_operator.decide.pool import RegionSeen, build_pool_numbers, decide_pool_verdicts, region_addresses
from edgetun_operator.decide.tunnel import (
    AgentSeen,
    PoolSeen,
    agent_seen,
    build_tunnel_facts,
    decide_tunnel_verdicts,
)
from edgetun_operator.world import see


def pool(**spec: Any) -> ExitPool:
    obj = {
        "apiVersion": "edgetun.dev/v1alpha1",
        "kind": "ExitPool",
        "metadata": {"name": "public"},
        "spec": {"regions": [{"name": "eu"}], "domains": ["*"], **spec},
    }
    found, problems = parse_resource(obj)
    assert isinstance(found, ExitPool), problems
    return found


def seen(available: int, *, service: Any = None, autoscaler: Any = None, complaint: str = "") -> RegionSeen:
    conditions = [{"type": "ReplicaFailure", "status": "True", "message": complaint}] if complaint else []
    return RegionSeen({"status": {"availableReplicas": available, "conditions": conditions}}, autoscaler, service)


LB = {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"hostname": "lb.example.com"}]}}}


def test_a_pool_with_all_its_nodes_and_an_address_is_ready() -> None:
    verdicts = decide_pool_verdicts(pool(), (), {"eu": seen(1, service=LB)}, (), ())
    assert {verdict.status for verdict in verdicts.values()} == {"True"}


def test_a_region_short_of_nodes_names_itself_and_the_reason() -> None:
    verdicts = decide_pool_verdicts(pool(replicas=2), (), {"eu": seen(1, service=LB, complaint="quota")}, (), ())
    assert verdicts["NodesAvailable"] == Verdict("False", "NodesUnavailable", "eu: 1 of 2 exit nodes serve (quota)")


def test_a_load_balancers_addresses_are_told_with_the_ports() -> None:
    (plan,) = region_plans(pool().spec)
    assert [address["host"] for address in region_addresses(plan, seen(1, service=LB))] == [
        "192.0.2.7",
        "lb.example.com",
    ]
    verdicts = decide_pool_verdicts(pool(), (), {"eu": seen(1)}, (), ())
    assert verdicts["AddressReady"].reason == "AddressPending"


def test_missing_metrics_are_told_and_a_paused_autoscaler_is_not() -> None:
    def scaling(reason: str) -> str:
        condition = {"type": "ScalingActive", "status": "False", "reason": reason, "message": "no metrics"}
        autoscaler = {"status": {"conditions": [condition], "desiredReplicas": 3}}
        regions = {"eu": seen(3, service=LB, autoscaler=autoscaler)}
        return decide_pool_verdicts(pool(autoscaling={}), (), regions, (), ())["ScalingActive"].reason

    assert scaling("FailedGetResourceMetric") == "MetricsUnavailable"
    assert scaling("ScalingDisabled") == "ScalingActive"


def test_numbers_add_up_over_the_regions() -> None:
    two = pool(regions=[{"name": "eu"}, {"name": "us", "replicas": 3}])
    numbers = build_pool_numbers(two, {"eu": seen(1), "us": seen(2)}, tunnels=7)
    assert (numbers["desired"], numbers["available"], numbers["tunnels"], numbers["regionNames"]) == (4, 3, 7, "eu,us")
    assert [row["reason"] for row in numbers["regions"]] == ["", "NodesUnavailable"]


def problem(severity: str, reason: str) -> Problem:
    return Problem(severity, "Tunnel a/b", "spec.hostnames[0]", reason, "because")  # type: ignore[arg-type]


def test_accepted_is_partial_while_something_is_served_and_false_else() -> None:
    taken = problem("error", "HostnameConflict")
    assert decide_accepted([taken], served=True)[:2] == ("True", "PartiallyAccepted")
    assert decide_accepted([taken])[:2] == ("False", "HostnameConflict")
    assert decide_accepted([problem("warning", "RegionNotFound")])[:2] == ("True", "Accepted")


def test_a_refused_tunnel_does_not_wait_for_an_agent() -> None:
    fine = build_conditions((), {"CertificateReady": Verdict("True", "CertificateValid")}, 1, 0.0)
    there = PoolSeen(pool(), fine, available=1)
    refused = decide_tunnel_verdicts([problem("error", "HostnameConflict")], (), there, ())
    assert refused["AgentConnected"].status == "Unknown"
    served = decide_tunnel_verdicts((), ("a.example.com",), there, [AgentSeen(True, "quic")])
    assert {verdict.status for verdict in served.values()} == {"True"}


def test_a_port_that_an_exit_node_cannot_have_is_told_with_the_nodes_names() -> None:
    fine = build_conditions((), {"CertificateReady": Verdict("True", "CertificateValid")}, 1, 0.0)
    there = PoolSeen(pool(), fine, available=1)

    def verdicts(*nodes: str, port: str = "tcp/5432") -> dict[str, Verdict]:
        entries = [{"node": node, "message": "TCP port 5432: is taken by another program"} for node in nodes]
        agents = [AgentSeen(True, "quic")]
        return decide_tunnel_verdicts((), (port,), there, agents, is_stream=True, port=port, ports_unavailable=entries)

    assert verdicts()["PortAvailable"] == Verdict("True", "PortAvailable")
    found = verdicts("eu-1", "eu-2", "eu-3", "eu-4")
    assert found["PortAvailable"][:2] == ("False", "PortUnavailable")
    message = found["PortAvailable"].message
    assert "exit node eu-1: TCP port 5432: is taken by another program" in message
    assert "and 1 more" in message
    assert "choose another port" in message
    ready = build_conditions((), found, 1, 0.0)[0]
    assert (ready.type, ready.status, ready.reason) == ("Ready", "False", "PortUnavailable")
    assert "PortAvailable" not in verdicts(port=""), "a tunnel without a port of its own has none to miss"


def test_an_agent_counts_by_its_condition_and_without_one_by_its_sessions() -> None:
    gone = {"conditions": [{"type": "AgentConnected", "status": "False"}], "sessions": 2}
    assert not agent_seen(gone).is_connected
    assert agent_seen({"sessions": 1}).is_connected
    assert not agent_seen({}).is_connected


def test_ready_repeats_the_first_child_that_is_not_and_times_stay_with_the_status() -> None:
    bad = {"Accepted": Verdict("True", "Accepted"), "PoolReady": Verdict("False", "PoolNotReady", "why")}
    first = build_conditions((), bad, 1, now=1000.0)
    assert [c.type for c in first] == ["Ready", "Accepted", "PoolReady"]
    assert (first[0].reason, first[0].message) == ("PoolNotReady", "why")
    second = build_conditions(first, bad, 2, now=2000.0)
    assert [c.last_transition_time for c in second] == [c.last_transition_time for c in first]
    assert {c.observed_generation for c in second} == {2}


def test_events_come_with_changes_and_not_with_repetitions() -> None:
    pending = build_conditions(
        (), {"Accepted": Verdict("True", "Accepted"), "PoolReady": Verdict("False", "P")}, 1, 0.0
    )
    assert [note.reason for note in decide_notes((), pending)] == ["Accepted"]
    assert decide_notes(pending, pending) == []
    ready = build_conditions(
        pending, {"Accepted": Verdict("True", "Accepted"), "PoolReady": Verdict("True", "R")}, 1, 1.0
    )
    assert [(note.type, note.reason) for note in decide_notes(pending, ready)] == [("Normal", "Ready")]
    refused = build_conditions(ready, {"Accepted": Verdict("False", "HostnameConflict", "who")}, 1, 2.0)
    assert [(n.type, n.reason, n.message) for n in decide_notes(ready, refused)] == [
        ("Warning", "HostnameConflict", "who")
    ]
    assert refused[0].type == ConditionType.READY


def test_a_resource_is_seen_as_it_is_read_and_blocks_that_say_the_same_are_shared() -> None:
    def tunnel(name: str) -> dict[str, Any]:
        spec = {
            "hostnames": [f"{name}.example.com"],
            "origin": {"url": "http://localhost:1"},
            "cache": {"mode": "respect"},
        }
        metadata = {"name": name, "namespace": "team-a", "uid": "u", "managedFields": [{}], "annotations": {"a": "b"}}
        return {"apiVersion": "edgetun.dev/v1alpha1", "kind": "Tunnel", "metadata": metadata, "spec": spec}

    one, two = see(TUNNEL, tunnel("one")), see(TUNNEL, tunnel("two"))
    assert one.metadata == {"name": "one", "namespace": "team-a", "uid": "u"}
    assert one.resource.spec.limits is two.resource.spec.limits
    assert one.resource.spec.cache is two.resource.spec.cache, "written, and the same"
    broken = see(TUNNEL, tunnel("three") | {"spec": {"hostnames": "no"}})
    assert broken.resource is None
    assert broken.problems


def test_a_tunnel_repeats_what_is_wrong_with_its_pools_certificate() -> None:
    missing = build_conditions((), {"CertificateReady": Verdict("False", "CertificateMissing", "no Secret")}, 1, 0.0)
    verdicts = decide_tunnel_verdicts((), ("a",), PoolSeen(pool(), missing, 1), [AgentSeen(True, "quic")])
    assert verdicts["CertificateReady"] == Verdict("False", "CertificateMissing", "ExitPool public: no Secret")


def stream_tunnel(**spec: Any) -> Any:
    obj = {"apiVersion": "edgetun.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": "db"}, "spec": spec}
    found, problems = parse_resource(obj)
    assert found is not None, problems
    return found


def test_a_tunnel_at_a_port_shows_the_port_and_one_by_name_where_it_is() -> None:
    public = PoolSeen(pool(), (), 1)
    by_port = stream_tunnel(tcp={"port": 5432}, origin={"url": "tcp://localhost:5432"})
    facts = build_tunnel_facts(by_port, ("tcp/5432",), public, ())
    assert (facts["port"], facts["hostnames"], facts["url"], facts["regions"]) == ("tcp/5432", [], "", ["eu"])
    by_name = stream_tunnel(
        tcp={"passthrough": True}, hostnames=["db.example.com"], origin={"url": "tcp://localhost:5432"}
    )
    facts = build_tunnel_facts(by_name, ("db.example.com",), public, ())
    assert (facts["port"], facts["hostnames"], facts["url"]) == ("", ["db.example.com"], "tcp://db.example.com:443")


def test_tcp_and_udp_do_not_wait_for_a_certificate() -> None:
    public = PoolSeen(pool(), (), 1)
    verdicts = decide_tunnel_verdicts((), ("tcp/5432",), public, (), is_stream=True)
    assert verdicts[ConditionType.CERTIFICATE_READY].status == "True"
    assert decide_tunnel_verdicts((), ("a.b",), public, ())[ConditionType.CERTIFICATE_READY].status == "Unknown"

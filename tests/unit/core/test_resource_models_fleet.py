"""What people say of a fleet: pools on a cluster, tokens, reservations."""

from __future__ import annotations

from typing import Any

import pytest

from edgetun_core.api.exitpool import ExitPool, region_plans
from edgetun_core.api.load import parse_resource


def read(kind: str, name: str, spec: dict[str, Any]) -> tuple[Any, list[str]]:
    data = {"apiVersion": "edgetun.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    resource, problems = parse_resource(data)
    return resource, [f"{problem.field}: {problem.message}" for problem in problems]


def pool(**spec: Any) -> dict[str, Any]:
    return {"regions": [{"name": "eu"}, {"name": "us"}], "domains": ["*"]} | spec


def plans(**spec: Any) -> dict[str, Any]:
    resource, problems = read("ExitPool", "fleet", pool(**spec))
    assert problems == []
    assert isinstance(resource, ExitPool)
    return {plan.name: plan for plan in region_plans(resource.spec)}


def test_a_region_is_the_pool_with_what_the_region_says_laid_over_it() -> None:
    both = plans(
        podTemplate={"labels": {"tier": "edge"}, "resources": {"requests": {"cpu": "1"}}, "image": "a"},
        service={"type": "LoadBalancer", "ports": {"https": 8443}},
        regions=[
            {"name": "eu"},
            {
                "name": "us",
                "podTemplate": {"resources": {"limits": {"memory": "1Gi"}}, "image": "b"},
                "service": {"type": "NodePort", "nodePorts": {"https": 30443}},
            },
        ],
    )
    eu, us = both["eu"], both["us"]
    assert (eu.pod_template.image, us.pod_template.image) == ("a", "b")
    assert us.pod_template.labels == {"tier": "edge"}
    assert us.pod_template.resources.requests == {"cpu": "1"}
    assert us.pod_template.resources.limits == {"memory": "1Gi"}
    assert eu.service.type == "LoadBalancer"
    assert (us.service.type, us.service.ports.https, us.service.node_ports.https) == ("NodePort", 8443, 30443)


def test_how_many_exit_nodes_a_region_has() -> None:
    assert [(plan.replicas, plan.autoscaling) for plan in plans().values()] == [(1, None), (1, None)]
    assert [plan.replicas for plan in plans(replicas=3).values()] == [3, 3]
    both = plans(autoscaling={"maxReplicas": 5}, regions=[{"name": "eu"}, {"name": "us", "replicas": 0}])
    assert both["eu"].autoscaling.max_replicas == 5
    assert (both["us"].replicas, both["us"].autoscaling) == (0, None)
    other = plans(replicas=3, regions=[{"name": "eu", "autoscaling": {"minReplicas": 2}}, {"name": "us"}])
    assert (other["eu"].autoscaling.min_replicas, other["us"].autoscaling) == (2, None)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"replicas": 1, "autoscaling": {}}, "spec.replicas: stands beside autoscaling; keep one of them"),
        (
            {"autoscaling": {"minReplicas": 9, "maxReplicas": 3}},
            "spec.autoscaling.minReplicas: is more than maxReplicas (3); write at most that",
        ),
        (
            {"service": {"nodePorts": {"http": 30080}}, "regions": [{"name": "eu"}]},
            "spec.service.nodePorts: has no effect with type LoadBalancer; write type: NodePort, or remove it",
        ),
        (
            {"service": {"type": "NodePort", "nodePorts": {"http": 30080}}},
            "spec.service.nodePorts: cannot be the same for several regions; write it in regions[].service.nodePorts",
        ),
        (
            {"certificates": [{"secretName": "a", "issuerRef": {"name": "b"}}]},
            "spec.certificates[0]: has more than one source; keep one of certFile and keyFile, secretName, issuerRef",
        ),
        (
            {"certificates": [{}]},
            "spec.certificates[0]: has no source; write certFile and keyFile, secretName, or issuerRef",
        ),
        (
            {"allowedNamespaces": {"from": "Same", "names": ["a"]}},
            "spec.allowedNamespaces.names: has no effect with from Same; write from: Selector, or remove it",
        ),
        (
            {"allowedNamespaces": {"from": "Selector"}},
            "spec.allowedNamespaces: selects no namespace; write names or matchLabels, or from: All",
        ),
        (
            {"podTemplate": {"labels": {"app.kubernetes.io/name": "x"}}},
            'spec.podTemplate.labels: "app.kubernetes.io/name" is written by edgetun; remove it',
        ),
        (
            {"podTemplate": {"resources": {"requests": {"cpu": "many"}}}},
            'spec.podTemplate.resources.requests.cpu: "many" is not a quantity; write 500m, 2 or 1Gi',
        ),
        (
            {"podTemplate": {"resources": {"limits": {"cpu": True}}}},
            "spec.podTemplate.resources.limits.cpu: true is not a quantity; write 500m, 2 or 1Gi",
        ),
        (
            {"disruptionBudget": {"maxUnavailable": 0}},
            "spec.disruptionBudget.maxUnavailable: 0 is neither a number nor a share; write 1 or more, or a share such as 25%",
        ),
        (
            {"disruptionBudget": {"maxUnavailable": "150%"}},
            'spec.disruptionBudget.maxUnavailable: "150%" is neither a number nor a share; write 1 or more, or a share such as 25%',
        ),
        (
            {"service": {"loadBalancerSourceRanges": ["192.0.2.1"]}},
            'spec.service.loadBalancerSourceRanges[0]: "192.0.2.1" is an address; write 192.0.2.1/32',
        ),
        (
            {"service": {"loadBalancerSourceRanges": ["192.0.2.1/24"]}},
            'spec.service.loadBalancerSourceRanges[0]: "192.0.2.1/24" is not a network; write 192.0.2.0/24 or 2001:db8::/32',
        ),
        (
            {"podTemplate": {"env": [{"name": "1A"}]}},
            "spec.podTemplate.env[0].name: \"1A\" is not a variable's name; write letters, digits and '_', such as LOG_LEVEL",
        ),
        (
            {"podTemplate": {"env": [{"name": "A"}, {"name": "A"}]}},
            'spec.podTemplate.env[1].name: "A" is there already as env[0]; remove one of them',
        ),
    ],
)
def test_a_pool_that_contradicts_itself_is_told_with_its_remedy(spec: dict[str, Any], message: str) -> None:
    assert read("ExitPool", "fleet", pool(**spec))[1] == [message]


@pytest.mark.parametrize(
    ("pattern", "is_good"), [("shop", True), ("preview-*", True), ("*", True), ("team-a/shop", False), ("", False)]
)
def test_a_token_names_tunnels_of_its_own_namespace(pattern: str, is_good: bool) -> None:
    resource, problems = read("AgentToken", "laptops", {"tunnels": [pattern]})
    assert (resource is not None) is is_good
    assert is_good or "write a name of this namespace" in problems[0]


def test_a_token_without_a_word_serves_all_of_its_namespace_and_has_its_secret() -> None:
    resource, _ = read("AgentToken", "laptops", {})
    assert resource.spec.tunnels == []
    assert resource.secret_name == "laptops-token"
    assert read("AgentToken", "laptops", {"secretName": "x"})[0].secret_name == "x"


def test_a_reservation_is_named_for_its_hostname() -> None:
    claimed = {"claimedBy": {"namespace": "team-a", "tunnel": "shop"}}
    assert read("HostnameReservation", "wildcard.example.com", {"hostname": "*.example.com", **claimed})[1] == []
    assert read("HostnameReservation", "shop", {"hostname": "shop.example.com", **claimed})[1] == [
        "metadata.name: is not the name of this hostname's reservation; write shop.example.com"
    ]


def test_what_a_controller_wrote_into_the_status_does_not_matter_to_the_reader() -> None:
    data = {
        "apiVersion": "edgetun.dev/v1alpha1",
        "kind": "ExitPool",
        "metadata": {"name": "fleet", "managedFields": [{}]},
        "spec": pool(),
        "status": {"novel": {"field": 1}},
    }
    resource, problems = parse_resource(data)
    assert problems == ()
    assert resource is not None
    assert resource.status is None

"""The chart's roles allow what operator and control do, and nothing else; both work under them."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from edgetun_cluster import kinds
from edgetun_operator.world import OWNED_KINDS
from support import commands
from support.chart import need_helm, render, rights
from support.cluster import ControlPlane, free_ports
from support.commands import Command
from support.kube_client import Object
from support.manifests import PROJECT
from support.operator import OperatorProcess, pool, token, tunnel, wait_for_condition
from support.waiting import wait_for

commands.MODULES.setdefault("edgetun-control", "edgetun_control.main")

WATCHED = ("list", "watch")
APPLIED = ("create", "patch")
"""Server-side apply is a patch, and a creation where there was nothing."""
OWNED = ("get", *WATCHED, *APPLIED, "delete")

Rights = set[tuple[str, str, str, str]]
"""(group, resource, name or "" for every one, verb)"""


def uses(*lines: tuple[kinds.Kind, str, Iterable[str]], name: str = "") -> Rights:
    """(kind, subresource, verbs) as rights."""
    return {
        (kind.group, f"{kind.plural}/{subresource}" if subresource else kind.plural, name, verb)
        for kind, subresource, verbs in lines
        for verb in verbs
    }


CRD = kinds.Kind("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False)

# What the code does, read from it by hand: edgetun_operator/{world,triggers}.py, reconcile/, edgetun_cluster/{events,leases}.py
OPERATOR_EVERYWHERE = uses(
    (kinds.EXIT_POOL, "", WATCHED),
    (kinds.TUNNEL, "", WATCHED),
    (kinds.AGENT_TOKEN, "", WATCHED),
    (kinds.AGENT, "", WATCHED),
    (kinds.HOSTNAME_RESERVATION, "", (*WATCHED, *APPLIED, "delete")),
    *((kind, "status", ("patch",)) for kind in (kinds.EXIT_POOL, kinds.TUNNEL, kinds.AGENT_TOKEN)),
    (kinds.HOSTNAME_RESERVATION, "status", ("patch",)),
    (kinds.NAMESPACE, "", WATCHED),
    (kinds.SECRET, "", OWNED),
    (kinds.EVENT, "", APPLIED),
    (CRD, "", WATCHED),
)
OPERATOR_AT_HOME = (
    uses(*((kind, "", OWNED) for kind in OWNED_KINDS))
    | uses((kinds.LEASE, "", ("create",)))
    | uses((kinds.LEASE, "", ("get", "update")), name="edgetun-operator")
    | uses((kinds.SECRET, "", ("update",)), name="edgetun-ca")
    | uses((kinds.SECRET, "", ("update",)), name="edgetun-signing-keys")
    | uses((kinds.SECRET, "", ("update",)), name="edgetun-control-tls")
)
# edgetun_control/{agents,cluster_control,ports}.py, stores/kubernetes.py
CONTROL_EVERYWHERE = uses(
    (kinds.EXIT_POOL, "", WATCHED),
    (kinds.TUNNEL, "", WATCHED),
    (kinds.TUNNEL, "status", ("patch",)),
    (kinds.AGENT_TOKEN, "", ("get", *WATCHED)),
    (kinds.AGENT_TOKEN, "status", ("patch",)),
    (kinds.HOSTNAME_RESERVATION, "", ("get", *WATCHED, *APPLIED)),
    (kinds.AGENT, "", OWNED),
    (kinds.AGENT, "status", ("patch",)),
    (kinds.LEASE, "", ("list", *APPLIED)),
    (kinds.NAMESPACE, "", WATCHED),
    (kinds.TOKEN_REVIEW, "", ("create",)),
)
CONTROL_AT_HOME = set().union(
    *(
        # "get" is what control of the version before does, which runs under this role while an upgrade goes on.
        uses((kinds.SECRET, "", ("get", *WATCHED)), name=name)
        for name in ("edgetun-ca", "edgetun-signing-keys", "edgetun-control-tls")
    )
)

ROLES = {
    "edgetun-operator": (OPERATOR_EVERYWHERE, OPERATOR_AT_HOME),
    "edgetun-control": (CONTROL_EVERYWHERE, CONTROL_AT_HOME),
}
NOT_ALLOWED = [
    ("edgetun-operator", "elsewhere", "apps", "deployments", "", "create"),
    ("edgetun-operator", "elsewhere", "", "configmaps", "", "get"),
    ("edgetun-operator", "elsewhere", "", "pods", "", "list"),
    ("edgetun-operator", "home", "", "pods", "", "create"),
    ("edgetun-operator", "home", "", "pods/exec", "", "create"),
    ("edgetun-operator", "home", "", "secrets", "another", "update"),
    ("edgetun-operator", "home", "coordination.k8s.io", "leases", "somebody-elses", "update"),
    ("edgetun-operator", "", "edgetun.dev", "exitpools", "", "patch"),
    ("edgetun-operator", "", "edgetun.dev", "exitpools", "", "delete"),
    ("edgetun-operator", "elsewhere", "edgetun.dev", "tunnels", "", "create"),
    ("edgetun-operator", "elsewhere", "edgetun.dev", "agenttokens", "", "create"),
    ("edgetun-operator", "", "rbac.authorization.k8s.io", "clusterroles", "", "create"),
    ("edgetun-operator", "", "", "nodes", "", "list"),
    ("edgetun-control", "elsewhere", "", "secrets", "", "get"),
    ("edgetun-control", "elsewhere", "", "secrets", "edgetun-ca", "get"),
    ("edgetun-control", "home", "", "secrets", "", "list"),
    ("edgetun-control", "home", "", "secrets", "another", "get"),
    ("edgetun-control", "home", "", "secrets", "another", "watch"),
    ("edgetun-control", "elsewhere", "", "secrets", "edgetun-ca", "list"),
    ("edgetun-control", "home", "", "secrets", "edgetun-ca", "patch"),
    ("edgetun-control", "elsewhere", "edgetun.dev", "tunnels", "", "patch"),
    ("edgetun-control", "elsewhere", "edgetun.dev", "agenttokens", "", "create"),
    ("edgetun-control", "", "edgetun.dev", "hostnamereservations", "", "delete"),
    ("edgetun-control", "home", "apps", "deployments", "", "get"),
    ("edgetun-control", "", "authorization.k8s.io", "subjectaccessreviews", "", "create"),
    ("edgetun-exit-default-eu", "home", "", "secrets", "", "get"),
    ("edgetun-exit-default-eu", "home", "edgetun.dev", "tunnels", "", "list"),
]


@pytest.fixture(scope="module", autouse=True)
def _helm(cluster: ControlPlane) -> None:
    need_helm(cluster)


@pytest.fixture
def may(cluster: ControlPlane, namespace: str) -> Callable[..., bool]:
    """Whether the API server would let a ServiceAccount of the system do something, under the chart's roles."""
    _install_roles(cluster, namespace)

    def ask(account: str, where: str, group: str, resource: str, name: str, verb: str) -> bool:
        attributes = {"group": group, "verb": verb, "name": name}
        attributes["resource"], _, attributes["subresource"] = resource.partition("/")
        attributes["namespace"] = {"home": namespace, "elsewhere": "default", "": ""}[where]
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": f"system:serviceaccount:{namespace}:{account}", "resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        answer: Any = cluster.client.request("POST", path, review)
        return bool(answer["status"]["allowed"])

    return ask


def _install_roles(cluster: ControlPlane, namespace: str) -> None:
    objects = render(cluster, namespace)
    for obj in objects:
        if obj["apiVersion"].startswith("rbac") or obj["kind"] == "ServiceAccount":
            cluster.client.apply(obj)


@pytest.mark.parametrize("account", ROLES)
def test_the_roles_say_exactly_what_the_code_does(cluster: ControlPlane, account: str) -> None:
    everywhere, at_home = ROLES[account]
    granted = rights(render(cluster, "edgetun-system"), account)
    assert granted == {"cluster": everywhere, "namespace": at_home}


def test_no_role_has_a_wildcard(cluster: ControlPlane) -> None:
    for account in ROLES:
        granted = rights(render(cluster, "edgetun-system"), account)
        assert not any("*" in part for right in itertools.chain(*granted.values()) for part in right)


def test_the_api_server_allows_everything_that_the_code_does(may: Callable[..., bool]) -> None:
    refused = []
    for account, (everywhere, at_home) in ROLES.items():
        refused += [(account, *right) for right in sorted(everywhere) if not may(account, "elsewhere", *right)]
        refused += [(account, *right) for right in sorted(at_home) if not may(account, "home", *right)]
    assert refused == []


def test_the_api_server_allows_nothing_else(may: Callable[..., bool]) -> None:
    assert [asked for asked in NOT_ALLOWED if may(*asked)] == []


@pytest.mark.parametrize(
    ("account", "package", "more"),
    [
        ("edgetun-operator", "edgetun_operator", {"EVENT", "LEASE"}),
        ("edgetun-control", "edgetun_control", {"TOKEN_REVIEW"}),
    ],
)
def test_every_kind_that_the_code_names_is_in_its_role(account: str, package: str, more: set[str]) -> None:
    """So that a kind that comes new into the code is not forgotten here. `more` are named by edgetun_cluster for it."""
    named = {
        alias.name
        for path in (PROJECT / "operator" / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "edgetun_cluster.kinds"
        for alias in node.names
        if isinstance(getattr(kinds, alias.name), kinds.Kind)
    }
    everywhere, at_home = ROLES[account]
    in_role = {(group, resource) for group, resource, _, _ in everywhere | at_home if "/" not in resource}
    in_role.discard((CRD.group, CRD.plural))
    assert {(k.group, k.plural) for k in (getattr(kinds, name) for name in named | more)} == in_role


def test_operator_and_control_work_under_the_charts_roles(
    cluster: ControlPlane, crds: list[Object], namespace: str, unique: str, apply: Callable[..., Object]
) -> None:
    objects = render(cluster, namespace)
    operators = cluster.service_account_kubeconfig(namespace, "edgetun-operator", objects)
    controls = cluster.service_account_kubeconfig(namespace, "edgetun-control", objects)
    agents, exit_nodes, admin = free_ports(3)
    with (
        OperatorProcess(cluster, namespace, kubeconfig=operators) as operator,
        Command(
            "edgetun-control",
            f"--kubeconfig={controls}",
            f"--namespace={namespace}",
            "--listen=127.0.0.1",
            f"--port={agents}",
            f"--exit-port={exit_nodes}",
            f"--metrics=127.0.0.1:{admin}",
            "--log-level=debug",
        ) as control,
    ):
        name = f"roles-{unique}"
        apply(pool(name, autoscaling={"maxReplicas": 3}))
        apply(tunnel(namespace, "shop", name))
        apply(token(namespace, "laptops"))
        # Both have just been started, which takes its time on a busy machine.
        wait_for_condition(cluster.client, "ExitPool", name, None, "Accepted", "Accepted", 60)
        wait_for_condition(cluster.client, "Tunnel", "shop", namespace, "Accepted", "Accepted")
        wait_for_condition(cluster.client, "AgentToken", "laptops", namespace, "SecretReady", "SecretCreated")
        for api, kind in (
            ("apps/v1", "Deployment"),
            ("v1", "Service"),
            ("autoscaling/v2", "HorizontalPodAutoscaler"),
            ("policy/v1", "PodDisruptionBudget"),
            ("networking.k8s.io/v1", "NetworkPolicy"),
        ):
            found = cluster.client.list_of(api, kind, namespace)["items"]
            assert [o["metadata"]["name"] for o in found] == [f"edgetun-exit-{name}-eu"], kind
        control.line("agents on port", 60)
        # a change and a deletion go through, too
        changed = pool(name, autoscaling={"maxReplicas": 3}, disruptionBudget={"enabled": False})
        apply(changed)
        wait_for(
            lambda: not cluster.client.list_of("policy/v1", "PodDisruptionBudget", namespace)["items"],
            20,
            "the budget is deleted",
        )
        events = wait_for(
            lambda: cluster.client.list_of("v1", "Event", namespace)["items"], 20, "an event on what people wrote"
        )
        assert any(event["source"].get("component") == "edgetun-operator" for event in events)
        operator.settled()
        for said in (operator.log(), control.said):
            assert "forbidden" not in said.lower(), said[-4000:]
            assert "cannot" not in said.lower(), said[-4000:]

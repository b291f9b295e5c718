"""YAML bytes to resources: whatever comes, problems come out and nothing is raised; what loads also compiles and travels."""

from __future__ import annotations

from edgetun_core.api.load import load_text
from edgetun_core.compile import Plan
from edgetun_core.snapshot import decode_snapshot, encode_snapshot

SEEDS = (
    b"apiVersion: edgetun.dev/v1alpha1\nkind: Tunnel\nmetadata: {name: a}\nspec: {hostnames: [a.b], origin: {url: 'http://x:1'}, cache: {mode: override, ttl: 1s}}\n",
    b"apiVersion: edgetun.dev/v1alpha1\nkind: ExitPool\nmetadata: {name: default}\nspec: {regions: [{name: eu}], domains: ['*']}\n",
    b"apiVersion: edgetun.dev/v1alpha1\nkind: ExitPool\nmetadata: {name: f}\nspec: {regions: [{name: eu, service: {type: NodePort}}], domains: [a.b], podTemplate: {resources: {limits: {cpu: 1}}}, allowedNamespaces: {from: Selector, names: [a]}}\n",
    b"apiVersion: edgetun.dev/v1alpha1\nkind: HostnameReservation\nmetadata: {name: wildcard.b}\nspec: {hostname: '*.b', claimedBy: {namespace: x, tunnel: y}}\n",
    b"apiVersion: edgetun.dev/v1alpha1\nkind: AgentToken\nmetadata: {name: t}\nspec: {tunnels: [a, 'b-*'], expires: '2030-01-01T00:00:00Z'}\n",
    b"apiVersion: v1\nkind: List\nitems: [&a {kind: Tunnel}, *a]\n",
    b"a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]\n",
)


def fuzz(data: bytes) -> None:
    loaded = load_text(data, "fuzz.yaml")
    for problem in loaded.problems:
        assert problem.message
        assert "\n" not in problem.render()
        assert problem.severity == "warning" or problem.reason
    plan = Plan(loaded.resources)
    for problem in plan.problems:
        assert "\n" not in loaded.place(problem).render()
    snapshot = plan.everything("default", "local", 1)
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot

"""What must hold for every pool, whatever it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgetun_cluster.kinds import EXIT_POOL
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.load import parse_resource
from edgetun_core.settings import load_settings
from edgetun_exitnode.settings import ExitNodeSettings
from edgetun_operator.desired.fleet import DEREGISTER_S, Desired, Fleet
from edgetun_operator.desired.labels import POOL, REGION, is_ours
from edgetun_operator.desired.pool import build_pool
from edgetun_operator.desired.quantities import canonical_quantity

FLEET = Fleet(namespace="edgetun-system", image="edgetun:1", control="https://control:7444", ca_pem="PEM")

specs = st.fixed_dictionaries(
    {
        "regions": st.lists(st.sampled_from(["eu", "us", "ap"]), min_size=1, unique=True).map(
            lambda names: [{"name": name} for name in names]
        ),
        "domains": st.sampled_from([["*"], ["*.example.com"], ["a.example.com", "*"]]),
        "drain": st.sampled_from(["1s", "30s", "10m"]),
        "service": st.sampled_from([{}, {"type": "NodePort"}, {"type": "HostPort"}, {"dnsNames": ["x.example.com"]}]),
        "certificates": st.sampled_from([[], [{"secretName": "a"}], [{"issuerRef": {"name": "i"}}]]),
    },
    optional={
        "autoscaling": st.sampled_from([{}, {"minReplicas": 3}, {"sessions": 10}, {"requestsPerSecond": 10}]),
        "podTemplate": st.sampled_from(
            [{"env": [{"name": "EDGETUN_POOL", "value": "x"}]}, {"labels": {"app": "mine"}}, {"image": "other:1"}]
        ),
    },
)


def build(spec: dict[str, Any], secrets: tuple[str, ...] = ("a",)) -> tuple[Desired, ...]:
    metadata = {"name": "public", "uid": "u-1"}
    obj = {"apiVersion": "edgetun.dev/v1alpha1", "kind": "ExitPool", "metadata": metadata, "spec": spec}
    pool, problems = parse_resource(obj)
    assert isinstance(pool, ExitPool), problems
    return build_pool(pool, FLEET, secrets)


def of_kind(objects: tuple[Desired, ...], kind: str) -> list[dict[str, Any]]:
    return [desired.object for desired in objects if desired.kind.kind == kind]


@given(specs)
def test_every_object_is_owned_labelled_and_in_the_systems_namespace(spec: dict[str, Any]) -> None:
    objects = build(spec)
    assert len({(desired.kind, desired.name) for desired in objects}) == len(objects)
    for desired in objects:
        assert is_ours(desired.object, EXIT_POOL, "public")
        assert desired.object["metadata"]["namespace"] == "edgetun-system"
        assert desired.object["metadata"]["labels"][POOL] == "public"
        assert all(not owner["blockOwnerDeletion"] for owner in desired.object["metadata"]["ownerReferences"])


@given(specs)
def test_the_same_pool_gives_the_same_objects(spec: dict[str, Any]) -> None:
    assert build(spec) == build(spec)


@given(specs)
def test_no_pod_may_do_more_than_serve(spec: dict[str, Any]) -> None:
    for deployment in of_kind(build(spec), "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        audiences = [
            source["serviceAccountToken"]["audience"]
            for volume in pod["volumes"]
            for source in volume.get("projected", {}).get("sources", ())
        ]
        assert audiences == ["edgetun-control"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@given(specs)
def test_a_pod_is_not_killed_before_its_drain_can_have_ended(spec: dict[str, Any]) -> None:
    seconds = {"1s": 1, "30s": 30, "10m": 600}[spec["drain"]]
    for deployment in of_kind(build(spec), "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] == DEREGISTER_S
        assert pod["terminationGracePeriodSeconds"] > seconds + DEREGISTER_S
    for scaler in of_kind(build(spec), "HorizontalPodAutoscaler"):
        down = scaler["spec"]["behavior"]["scaleDown"]
        assert all(policy["periodSeconds"] >= seconds for policy in down["policies"])


@given(specs)
def test_only_an_autoscaler_or_the_pool_says_how_many(spec: dict[str, Any]) -> None:
    objects = build(spec)
    scaled = {scaler["spec"]["scaleTargetRef"]["name"] for scaler in of_kind(objects, "HorizontalPodAutoscaler")}
    for deployment in of_kind(objects, "Deployment"):
        assert ("replicas" in deployment["spec"]) != (deployment["metadata"]["name"] in scaled)


@given(specs)
def test_what_selects_pods_selects_those_of_its_region_only(spec: dict[str, Any]) -> None:
    objects = build(spec)
    pods = {
        d["metadata"]["labels"][REGION]: d["spec"]["template"]["metadata"]["labels"]
        for d in of_kind(objects, "Deployment")
    }
    selectors = [
        (service["metadata"]["labels"][REGION], service["spec"]["selector"]) for service in of_kind(objects, "Service")
    ]
    selectors += [
        (obj["metadata"]["labels"][REGION], obj["spec"]["selector"]["matchLabels"])
        for kind in ("Deployment", "PodDisruptionBudget")
        for obj in of_kind(objects, kind)
    ]
    for region, selector in selectors:
        assert [name for name, labels in pods.items() if selector.items() <= labels.items()] == [region]


def test_a_changed_configuration_rolls_the_pods_and_nothing_else_does() -> None:
    spec = {"regions": [{"name": "eu"}], "domains": ["*.example.com"]}

    def template(fleet: Fleet) -> Any:
        obj = {"apiVersion": "edgetun.dev/v1alpha1", "kind": "ExitPool", "metadata": {"name": "p"}, "spec": spec}
        pool, _ = parse_resource(obj)
        assert isinstance(pool, ExitPool)
        return of_kind(build_pool(pool, fleet), "Deployment")[0]["spec"]["template"]

    other_ca = Fleet(namespace="edgetun-system", image="edgetun:1", control="https://control:7444", ca_pem="OTHER")
    assert template(FLEET) == template(FLEET)
    assert template(FLEET) != template(other_ca)


def test_quantities_are_written_as_the_api_server_gives_them_back() -> None:
    assert [canonical_quantity(value) for value in (1, 500, 1500, 5000, 1_000_000, 2_500_000)] == [
        "1", "500", "1500", "5k", "1M", "2500k",
    ]  # fmt: skip
    given = {
        "0.5": "500m",
        "1024Mi": "1Gi",
        "1.5Gi": "1536Mi",
        "1000m": "1",
        "512": "512",
        "0": "0",
        "0.1": "100m",
        "2Ki": "2Ki",
    }
    assert {text: canonical_quantity(text) for text in given} == given


@given(specs)
def test_an_exit_node_understands_what_it_is_started_with(spec: dict[str, Any]) -> None:
    (deployment, *_) = of_kind(build(spec), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    settings = load_settings(ExitNodeSettings, container["args"], {"EDGETUN_NAME": "pod-1"}, prog="edgetun-exitnode")
    assert (settings.pool, settings.region, settings.name) == ("public", spec["regions"][0]["name"], "pod-1")
    assert settings.control == "https://control:7444"
    assert settings.drain_s == {"1s": 1, "30s": 30, "10m": 600}[spec["drain"]]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (settings.http_port, settings.https_port, settings.tunnel_port) == (
        ports["http"],
        ports["https"],
        ports["tunnel"],
    )
    assert settings.metrics.endswith(f":{ports['admin']}")
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for path in (settings.state, Path(str(settings.control_ca)).parent, settings.control_token_file.parent):
        assert str(path) in mounts

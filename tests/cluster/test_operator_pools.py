"""The operator process on a real API server: what it makes of an ExitPool, repairs, leaves alone and lets go."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator

import pytest

from support.cluster import ControlPlane
from support.kube_client import KubeClient, Object
from support.operator import OperatorProcess, conditions, crds, pool, wait_for_condition
from support.waiting import wait_for

Apply = Callable[..., Object]

REGION_KINDS = (
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
)


@pytest.fixture(scope="module", autouse=True)
def _crds(cluster: ControlPlane) -> None:
    cluster.install_crds(crds())


@pytest.fixture
def operator(cluster: ControlPlane, namespace: str) -> Iterator[OperatorProcess]:
    with OperatorProcess(cluster, namespace) as running:
        yield running


def deployment(client: KubeClient, name: str, namespace: str, region: str = "eu") -> Object | None:
    return client.get("apps/v1", "Deployment", f"edgetun-exit-{name}-{region}", namespace)


def serve(client: KubeClient, obj: Object) -> None:
    """Says what a kubelet would: that the pods are there and ready (there is no node in this cluster)."""
    replicas = obj["spec"].get("replicas", 1)
    status = {"replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas}
    client.patch(obj, {"status": status}, subresource="status")


def test_a_pool_becomes_its_regions_objects_and_tells_how_it_stands(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, regions=[{"name": "eu"}, {"name": "us", "replicas": 3}], autoscaling={"maxReplicas": 5}))
    found = wait_for_condition(client, "ExitPool", name, None, "NodesAvailable", "NodesUnavailable")
    for api_version, kind in REGION_KINDS:
        for region in ("eu", "us"):
            assert client.get(api_version, kind, f"edgetun-exit-{name}-{region}", namespace), (kind, region)
    scaled = client.get("autoscaling/v2", "HorizontalPodAutoscaler", f"edgetun-exit-{name}-eu", namespace)
    assert scaled is not None
    assert client.get("autoscaling/v2", "HorizontalPodAutoscaler", f"edgetun-exit-{name}-us", namespace) is None
    assert "orbidden" not in operator.log()
    assert found["status"]["regionNames"] == "eu,us"
    assert found["status"]["desired"] == 4
    address = found["status"]["regions"][0]["addresses"][0]
    assert address["host"] == "192.0.2.1"
    assert address["tunnelPort"] == address["quicPort"] >= 30000
    assert conditions(found)["CertificateReady"]["status"] == "True"
    assert conditions(found)["Ready"]["reason"] == "NodesUnavailable"
    secret = client.get("v1", "Secret", f"edgetun-exit-{name}-tls", namespace)
    assert secret is not None
    assert secret["type"] == "kubernetes.io/tls"
    assert client.get("v1", "Secret", "edgetun-ca", namespace) is not None


def test_a_pool_is_made_once_and_its_pods_are_not_rolled_meanwhile(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name))
    wait_for_condition(client, "ExitPool", name, None, "NodesAvailable", "NodesUnavailable")
    operator.settled()
    made = deployment(client, name, namespace)
    assert made is not None
    assert made["metadata"]["generation"] == 1


def test_a_pool_whose_nodes_serve_is_ready(
    operator: OperatorProcess, controllers: None, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, replicas=0))
    found = wait_for_condition(client, "ExitPool", name, None, "Ready", "Ready")
    assert conditions(found)["NodesAvailable"]["reason"] == "ScaledToZero"


def test_drift_is_repaired_and_what_others_add_stays(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, replicas=2))
    made = wait_for(lambda: deployment(client, name, namespace), 20, "the Deployment")
    change = {"metadata": {"annotations": {"example.com/note": "mine"}}, "spec": {"replicas": 7}}
    client.patch(made, change)
    fixed = wait_for(
        lambda: (d := deployment(client, name, namespace)) and d["spec"]["replicas"] == 2 and d, 20, "2 replicas again"
    )
    assert fixed["metadata"]["annotations"]["example.com/note"] == "mine"
    budget = client.get("policy/v1", "PodDisruptionBudget", f"edgetun-exit-{name}-eu", namespace)
    assert budget is not None
    client.delete(budget)
    wait_for(
        lambda: (
            (b := client.get("policy/v1", "PodDisruptionBudget", budget["metadata"]["name"], namespace))
            and b["metadata"]["uid"] != budget["metadata"]["uid"]
        ),
        20,
        "the PodDisruptionBudget is back",
    )


def test_an_object_of_somebody_else_is_left_alone_and_told_of(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    theirs = client.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"edgetun-exit-{name}-eu", "namespace": namespace},
            "data": {"mine": "yes"},
        }
    )
    apply(pool(name))
    found = wait_for_condition(client, "ExitPool", name, None, "Accepted", "ObjectConflict")
    assert f"ConfigMap edgetun-exit-{name}-eu" in conditions(found)["Accepted"]["message"]
    now = client.get("v1", "ConfigMap", f"edgetun-exit-{name}-eu", namespace)
    assert now is not None
    assert now["metadata"]["resourceVersion"] == theirs["metadata"]["resourceVersion"]
    client.delete(theirs)  # no event of ours: it is looked for again by time, or on the next change
    apply(pool(name, drain="31s"))
    wait_for_condition(client, "ExitPool", name, None, "Accepted", "Accepted")


def test_a_region_that_is_no_longer_wanted_goes_with_all_its_objects(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, regions=[{"name": "eu"}, {"name": "us"}]))
    wait_for(lambda: deployment(client, name, namespace, "us"), 20, "the Deployment of us")
    operator.settled()
    apply(pool(name, regions=[{"name": "eu"}]))
    for api_version, kind in REGION_KINDS:
        wait_for(
            lambda a=api_version, k=kind: client.get(a, k, f"edgetun-exit-{name}-us", namespace) is None,  # type: ignore[misc]
            20,
            f"no {kind} of us",
        )
    assert deployment(client, name, namespace) is not None


def test_the_number_of_pods_stays_when_it_becomes_an_autoscalers(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, replicas=5))
    wait_for(lambda: deployment(client, name, namespace), 20, "the Deployment")
    operator.settled()
    scaled = pool(name, autoscaling={"minReplicas": 2, "maxReplicas": 9})
    apply(scaled)
    wait_for(lambda: client.get("autoscaling/v2", "HorizontalPodAutoscaler", f"edgetun-exit-{name}-eu", namespace), 20)
    operator.settled()
    now = deployment(client, name, namespace)
    assert now is not None
    assert now["spec"]["replicas"] == 5


def test_a_missing_cert_manager_is_a_condition_and_the_rest_is_made(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, certificates=[{"issuerRef": {"name": "letsencrypt"}}]))
    found = wait_for_condition(client, "ExitPool", name, None, "CertificateReady", "CertificateMissing")
    assert "cert-manager" in conditions(found)["CertificateReady"]["message"]
    assert "does not serve certificates.cert-manager.io" in conditions(found)["CertificateReady"]["message"]
    assert deployment(client, name, namespace) is not None
    assert operator.process.poll() is None


def test_a_certificate_that_appears_is_mounted(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, certificates=[{"secretName": "shop-tls"}]))
    wait_for_condition(client, "ExitPool", name, None, "CertificateReady", "CertificateMissing")
    made = deployment(client, name, namespace)
    assert made is not None
    assert not [v for v in made["spec"]["template"]["spec"]["volumes"] if "secret" in v]
    own = wait_for(lambda: client.get("v1", "Secret", "edgetun-control-tls", namespace), 20)
    data = {key: own["data"][key] for key in ("tls.crt", "tls.key")}
    meta = {"name": "shop-tls", "namespace": namespace}
    client.create({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": meta, "data": data})
    wait_for_condition(client, "ExitPool", name, None, "CertificateReady", "CertificateValid")
    mounted = deployment(client, name, namespace)
    assert mounted is not None
    assert [v["secret"]["secretName"] for v in mounted["spec"]["template"]["spec"]["volumes"] if "secret" in v] == [
        "shop-tls"
    ]


def test_a_restart_rewrites_no_object(
    cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    spec = {
        "autoscaling": {"sessions": 5000, "requestsPerSecond": 1500},
        "podTemplate": {"resources": {"limits": {"memory": "1Gi"}}},
    }
    apply(pool(name, **spec))
    watched = [
        *((a, k, f"edgetun-exit-{name}-eu") for a, k in REGION_KINDS),
        ("autoscaling/v2", "HorizontalPodAutoscaler", f"edgetun-exit-{name}-eu"),
        *(
            ("v1", "Secret", s)
            for s in ("edgetun-ca", "edgetun-signing-keys", "edgetun-control-tls", f"edgetun-exit-{name}-tls")
        ),
    ]

    def spec_of(api_version: str, kind: str, object_name: str) -> object:
        obj = client.get(api_version, kind, object_name, namespace)
        assert obj is not None, object_name
        # Other controllers write statuses; the version of what has none must not move, and no generation may.
        mine = [m for m in obj["metadata"]["managedFields"] if m["manager"].startswith("edgetun-operator")]
        version = obj["metadata"]["resourceVersion"] if "status" not in obj else ""
        return (obj["metadata"]["uid"], obj["metadata"].get("generation"), version, mine)

    with OperatorProcess(cluster, namespace) as first:
        wait_for_condition(client, "ExitPool", name, None, "ScalingActive", "MetricsUnavailable")
        first.settled()
        before = {key: spec_of(*key) for key in watched}
    pool_before = client.get("edgetun.dev/v1alpha1", "ExitPool", name)
    with OperatorProcess(cluster, namespace) as second:
        second.settled()
        assert second.metric("edgetun_operator_objects_unchanged_total") > 0
        assert second.metric("edgetun_operator_objects_applied_total") == 0
        assert second.metric("edgetun_operator_statuses_written_total") == 0
    assert {key: spec_of(*key) for key in watched} == before
    pool_after = client.get("edgetun.dev/v1alpha1", "ExitPool", name)
    assert pool_before is not None
    assert pool_after is not None
    assert pool_after["metadata"]["resourceVersion"] == pool_before["metadata"]["resourceVersion"]


def test_drift_from_while_it_was_away_is_repaired(
    cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, replicas=2))
    with OperatorProcess(cluster, namespace) as first:
        made = wait_for(lambda: deployment(client, name, namespace), 20, "the Deployment")
        first.settled()
    client.patch(made, {"spec": {"replicas": 9}})
    with OperatorProcess(cluster, namespace):
        wait_for(lambda: (deployment(client, name, namespace) or {})["spec"]["replicas"] == 2, 20, "2 replicas again")


def test_a_pool_goes_with_the_operator_away(
    cluster: ControlPlane, controllers: None, client: KubeClient, namespace: str, unique: str
) -> None:
    name = f"p{unique}"
    client.apply(pool(name))
    with OperatorProcess(cluster, namespace) as running:
        wait_for(lambda: deployment(client, name, namespace), 20, "the Deployment")
        running.settled()
        stored = client.get("edgetun.dev/v1alpha1", "ExitPool", name)
        assert stored is not None
        assert "finalizers" not in stored["metadata"]
        assert "annotations" not in stored["metadata"]
    client.delete(pool(name))
    assert client.get("edgetun.dev/v1alpha1", "ExitPool", name) is None
    for api_version, kind in (*REGION_KINDS, ("v1", "Secret")):
        suffix = "tls" if kind == "Secret" else "eu"
        wait_for(
            lambda a=api_version, k=kind, s=suffix: client.get(a, k, f"edgetun-exit-{name}-{s}", namespace) is None,  # type: ignore[misc]
            60,
            f"no {kind}",
        )


def test_two_replicas_have_one_leader_and_the_other_takes_over(
    cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    with OperatorProcess(cluster, namespace, "--identity=one") as one:
        wait_for(one.leads, 20, "the first leads")
        with OperatorProcess(cluster, namespace, "--identity=two") as two:
            wait_for(lambda: two.metric("edgetun_operator_leader") == 0.0 and "waiting" not in two.log(), 20)
            name = f"p{unique}"
            apply(pool(name))
            wait_for(lambda: deployment(client, name, namespace), 20, "the Deployment")
            one.settled()  # the Deployment is only the first of the pool's objects
            assert two.metric("edgetun_operator_reconciles_total") == 0
            assert one.stop() == 0
            wait_for(two.leads, 10, "the second leads at once: the first gave the Lease back")
            two.settled()
            assert two.metric("edgetun_operator_objects_applied_total") == 0
        lease = client.get("coordination.k8s.io/v1", "Lease", "edgetun-operator", namespace)
        assert lease is not None
        assert lease["spec"]["leaseTransitions"] == 1


def test_it_goes_on_after_the_api_server_was_restarted_and_history_is_gone(
    operator: OperatorProcess, cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    wait_for(operator.leads, 20, "it leads")
    operator.settled()
    cluster.expire_watches()
    name = f"p{unique}"
    apply(pool(name))
    wait_for(lambda: deployment(client, name, namespace), 45, "the Deployment")
    assert operator.process.poll() is None


def test_the_systems_secrets_are_made_once_and_never_overwritten(
    cluster: ControlPlane, client: KubeClient, namespace: str
) -> None:
    with OperatorProcess(cluster, namespace) as first:
        first.settled()
        made = {n: client.get("v1", "Secret", f"edgetun-{n}", namespace) for n in ("ca", "signing-keys", "control-tls")}
        assert all(made.values())
    keys = made["signing-keys"]
    assert keys is not None
    (entry,) = keys["data"].values()
    assert b'"key_id"' in base64.b64decode(entry)
    client.delete(made["control-tls"])  # type: ignore[arg-type]
    with OperatorProcess(cluster, namespace) as second:
        renewed = wait_for(lambda: client.get("v1", "Secret", "edgetun-control-tls", namespace), 20)
        second.settled()
        assert renewed["data"]["tls.crt"] != made["control-tls"]["data"]["tls.crt"]  # type: ignore[index]
        for name in ("ca", "signing-keys"):
            now = client.get("v1", "Secret", f"edgetun-{name}", namespace)
            assert now is not None
            assert now["metadata"]["resourceVersion"] == made[name]["metadata"]["resourceVersion"]  # type: ignore[index]


def test_somebody_who_fights_is_told_of_and_not_fought_with_without_end(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name, replicas=2))
    made = wait_for(lambda: deployment(client, name, namespace), 20, "the Deployment")
    operator.settled()
    before = operator.metric("edgetun_operator_objects_applied_total")
    fights = 0
    for _ in range(200):
        if (deployment(client, name, namespace) or {})["spec"]["replicas"] == 2:
            client.patch(made, {"spec": {"replicas": 3}})
            fights += 1
        found = client.get("edgetun.dev/v1alpha1", "ExitPool", name)
        if conditions(found)["Accepted"]["reason"] == "ObjectConflict":
            break
        time.sleep(0.1)
    assert "again and again" in conditions(found)["Accepted"]["message"]
    assert operator.metric("edgetun_operator_objects_applied_total") - before <= fights <= 12


def test_one_that_was_killed_in_the_middle_is_followed_by_one_that_finishes(
    cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    names = [f"p{index}{unique}" for index in range(6)]
    for name in names:
        apply(pool(name, regions=[{"name": "eu"}, {"name": "us"}]))
    with OperatorProcess(cluster, namespace, "--workers=1") as first:
        wait_for(lambda: any(deployment(client, name, namespace) for name in names), 20, "the first Deployment")
        first.kill()
    with OperatorProcess(cluster, namespace) as second:
        wait_for(second.leads, 30, "the dead one's Lease has ended")
        second.settled(30)
        for name in names:
            for region in ("eu", "us"):
                made = deployment(client, name, namespace, region)
                assert made is not None
                assert made["metadata"]["generation"] == 1
            wait_for_condition(client, "ExitPool", name, None, "NodesAvailable", "NodesUnavailable")


@pytest.fixture
def cert_manager(cluster: ControlPlane, client: KubeClient) -> Iterator[None]:
    """As much of cert-manager as the operator sees: the kind of its certificates."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "certificates.cert-manager.io"},
        "spec": {
            "group": "cert-manager.io",
            "scope": "Namespaced",
            "names": {"plural": "certificates", "singular": "certificate", "kind": "Certificate"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }
    cluster.install_crds([crd])
    yield
    client.delete(crd)
    wait_for(lambda: client.send("GET", "/apis/cert-manager.io/v1/certificates")[0] == 404, 30, "it is served no more")


def test_with_cert_manager_a_certificate_is_asked_for_and_mounted_when_it_is_issued(
    cert_manager: None, cluster: ControlPlane, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    with OperatorProcess(cluster, namespace) as running:
        apply(pool(name, certificates=[{"issuerRef": {"name": "letsencrypt"}}]))
        wait_for_condition(client, "ExitPool", name, None, "CertificateReady", "CertificateMissing")
        asked = client.get("cert-manager.io/v1", "Certificate", f"edgetun-exit-{name}-issued-0", namespace)
        assert asked is not None
        assert asked["spec"]["dnsNames"] == [f"*.{name}.example.com"]
        secret_name = asked["spec"]["secretName"]
        own = wait_for(lambda: client.get("v1", "Secret", "edgetun-control-tls", namespace), 20)
        data = {key: own["data"][key] for key in ("tls.crt", "tls.key")}
        meta = {"name": secret_name, "namespace": namespace}
        issued = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": meta, "data": data}
        client.create(issued)
        wait_for_condition(client, "ExitPool", name, None, "CertificateReady", "CertificateValid")
        running.settled()
        mounted = deployment(client, name, namespace)
        assert mounted is not None
        volumes = mounted["spec"]["template"]["spec"]["volumes"]
        assert [v["secret"]["secretName"] for v in volumes if "secret" in v] == [secret_name]
        apply(pool(name))
        wait_for(
            lambda: client.get("cert-manager.io/v1", "Certificate", f"edgetun-exit-{name}-issued-0", namespace) is None,
            20,
            "the Certificate is gone",
        )

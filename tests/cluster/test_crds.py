"""What people see of edgetun's custom resources: examples, defaults, columns, names, typing errors, status, upgrade."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import yaml

from edgetun_core.api.load import parse_resource
from support.cluster import ClusterError, ControlPlane
from support.kube_binaries import CONTROLLERS, Binaries
from support.kube_client import ApiError, KubeClient, Object
from support.manifests import EXAMPLES, as_it_was_before, read_crds
from support.waiting import wait_for

API = "edgetun.dev/v1alpha1"

pytestmark = pytest.mark.usefixtures("crds")


def tunnel(namespace: str, name: str = "shop", **spec: object) -> Object:
    given = {"hostnames": [f"{name}.example.com"], "origin": {"url": "http://localhost:3000"}} | spec
    return {"apiVersion": API, "kind": "Tunnel", "metadata": {"name": name, "namespace": namespace}, "spec": given}


def pool(name: str, **spec: object) -> Object:
    given = {"regions": [{"name": "eu-west"}, {"name": "us-east"}], "domains": ["*.example.com"]} | spec
    return {"apiVersion": API, "kind": "ExitPool", "metadata": {"name": name}, "spec": given}


def token(namespace: str, name: str = "team") -> Object:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": API, "kind": "AgentToken", "metadata": meta, "spec": {"expires": "2030-01-01T00:00:00Z"}}


def ready(status: str = "True", reason: str = "Ready", message: str = "All is well.") -> Object:
    moment = "2026-01-01T00:00:00Z"
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": moment,
        "observedGeneration": 1,
    }


def table(printed: str) -> list[list[str]]:
    """The cells of what kubectl printed; columns are two spaces or more apart."""
    return [re.split(r" {2,}", line.strip()) for line in printed.splitlines()]


# ---- the definitions


def test_the_api_server_finds_nothing_to_complain_of(crds: list[Object], client: KubeClient) -> None:
    assert len(crds) == 5
    for crd in crds:
        found = client.get("apiextensions.k8s.io/v1", "CustomResourceDefinition", crd["metadata"]["name"])
        assert found is not None
        conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}  # and no NonStructuralSchema
        assert found["status"]["storedVersions"] == ["v1alpha1"]


def test_kubectl_explain_tells_what_a_field_is_for(kubectl: Callable[..., str]) -> None:
    # the API server's OpenAPI document follows the definitions after a moment
    told = wait_for(lambda: kubectl("explain", "tunnels.spec.hostnames"), 30, "kubectl explain knows the field")
    assert "FIELD: hostnames <[]string>" in told
    assert "exactly one more label" in " ".join(told.split())


@pytest.fixture(scope="module")
def namespaces_of_examples(cluster: ControlPlane) -> None:
    """A dry run wants them to be there."""
    objects = [obj for path in EXAMPLES for obj in yaml.safe_load_all(path.read_text())]
    for name in {obj["metadata"].get("namespace", "default") for obj in objects}:
        cluster.client.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})


@pytest.mark.usefixtures("namespaces_of_examples")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted(path, kubectl: Callable[..., str]) -> None:
    documents = [d for d in yaml.safe_load_all(path.read_text()) if d]
    told = kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(path))
    assert len(told.splitlines()) == len(documents)
    assert all(line.endswith("(server dry run)") for line in told.splitlines())


# ---- defaults


@pytest.mark.usefixtures("namespaces_of_examples")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_api_server_fills_in_what_edgetun_would(path, client: KubeClient) -> None:
    for written in yaml.safe_load_all(path.read_text()):
        stored = client.apply(written, dry_run=True)
        ours, _ = parse_resource(written)
        theirs, problems = parse_resource({k: stored[k] for k in ("apiVersion", "kind", "metadata", "spec")})
        assert problems == ()
        assert ours is not None
        assert theirs is not None
        assert theirs.spec == ours.spec


def test_a_minimal_tunnel_is_stored_with_its_defaults(apply: Callable[..., Object], namespace: str) -> None:
    spec = apply(tunnel(namespace))["spec"]
    assert spec["protocol"] == "http"
    assert spec["pool"] == {"name": "default", "regions": {"allow": [], "deny": []}}
    assert spec["origin"]["timeouts"] == {"connect": "5s", "response": "1m", "idle": "5m"}
    assert spec["collapse"]["enabled"] is True


def test_a_route_is_stored_as_written_since_what_it_leaves_out_is_the_tunnels(
    apply: Callable[..., Object], namespace: str
) -> None:
    route = {"path": {"prefix": "/a"}, "cache": {"mode": "disabled"}, "limits": {"ratePerVisitor": "1/s"}}
    stored = apply(tunnel(namespace, routes=[route]))["spec"]["routes"][0]
    assert stored["cache"] == {"mode": "disabled"}
    assert stored["limits"] == {"ratePerVisitor": "1/s"}


# ---- what kubectl get prints


def test_kubectl_get_tunnels(apply: Callable[..., Object], client: KubeClient, kubectl, namespace: str) -> None:
    stored = apply(tunnel(namespace, hostnames=["shop.example.com", "www.example.com"], pool={"name": "fleet"}))
    header = ["NAME", "HOST", "PORT", "POOL", "TRANSPORT", "AGENTS", "READY", "AGE"]
    before = table(kubectl("get", "tunnels", "-n", namespace))
    assert before[0] == header
    assert before[1][:3] == ["shop", "shop.example.com", "fleet"]

    client.patch(stored, {"status": {"transport": "quic", "agents": 2, "conditions": [ready()]}}, "status")
    after = table(kubectl("get", "tunnels", "-n", namespace))
    assert after[1][:-1] == ["shop", "shop.example.com", "fleet", "quic", "2", "True"]
    assert re.fullmatch(r"\d+s", after[1][-1])

    failing = ready("False", "NoAgent", "No agent is connected.")
    client.patch(stored, {"status": {"conditions": [failing]}}, "status")
    wide = table(kubectl("get", "tunnels", "-n", namespace, "-o", "wide"))
    assert wide[0] == [*header[:-1], "REASON", "MESSAGE", "AGE"]
    assert wide[1][5:-1] == ["False", "NoAgent", "No agent is connected."]


def test_kubectl_get_exitpools(apply: Callable[..., Object], client: KubeClient, kubectl, unique: str) -> None:
    stored = apply(pool(f"p-{unique}"))
    counts = {"regionNames": "eu-west,us-east", "desired": 4, "available": 3, "sessions": 17}
    client.patch(stored, {"status": counts | {"conditions": [ready()]}}, "status")
    printed = table(kubectl("get", "exitpools", f"p-{unique}"))
    assert printed[0] == ["NAME", "REGIONS", "DESIRED", "AVAILABLE", "SESSIONS", "READY", "AGE"]
    assert printed[1][:-1] == [f"p-{unique}", "eu-west,us-east", "4", "3", "17", "True"]


def test_kubectl_get_agents_tells_pool_transport_rtt_and_since(
    apply: Callable[..., Object], client: KubeClient, kubectl, namespace: str
) -> None:
    meta = {"name": "laptop", "namespace": namespace}
    spec = {"agentId": "a1", "token": "team", "tunnels": ["shop"]}
    stored = apply({"apiVersion": API, "kind": "Agent", "metadata": meta, "spec": spec})
    told = {"pool": "fleet", "region": "eu-west", "transport": "quic", "rtt": "12ms", "since": "2026-01-01T00:00:00Z"}
    client.patch(stored, {"status": told}, "status")
    printed = table(kubectl("get", "agents", "-n", namespace))
    assert printed[0] == ["NAME", "POOL", "REGION", "TRANSPORT", "RTT", "SINCE", "AGE"]
    assert printed[1][:-2] == ["laptop", "fleet", "eu-west", "quic", "12ms"]


def test_kubectl_get_agenttokens_and_reservations(apply: Callable[..., Object], kubectl, namespace, unique) -> None:
    apply(token(namespace))
    tokens = table(kubectl("get", "agenttokens", "-n", namespace))
    assert tokens[0] == ["NAME", "EXPIRES", "LAST-USED", "READY", "AGE"]
    assert tokens[1][:2] == ["team", "2030-01-01T00:00:00Z"]

    host = f"{unique}.example.com"
    spec = {"hostname": f"*.{host}", "claimedBy": {"namespace": "team-a", "tunnel": "shop"}}
    name = f"wildcard.{host}"
    apply({"apiVersion": API, "kind": "HostnameReservation", "metadata": {"name": name}, "spec": spec})
    reservations = table(kubectl("get", "hostnamereservations", name))
    assert reservations[0] == ["NAME", "HOST", "NAMESPACE", "TUNNEL", "POLICY", "AGE"]
    assert reservations[1][:-1] == [name, f"*.{host}", "team-a", "shop", "Retain"]


def test_short_names_and_the_category(apply: Callable[..., Object], kubectl, namespace: str, unique: str) -> None:
    apply(tunnel(namespace))
    apply(token(namespace))
    apply(pool(f"p-{unique}"))
    for short, name in (("tun", "tunnel.edgetun.dev/shop"), ("at", "agenttoken.edgetun.dev/team")):
        assert kubectl("get", short, "-n", namespace, "-o", "name").split() == [name]
    for short in ("xp", "hr", "ea"):
        kubectl("get", short, "-n", namespace)
    everything = kubectl("get", "edgetun", "-n", namespace, "-o", "name").split()
    assert {"tunnel.edgetun.dev/shop", "agenttoken.edgetun.dev/team", f"exitpool.edgetun.dev/p-{unique}"} <= set(
        everything
    )


# ---- typing errors


def test_a_misspelt_field_is_refused_by_kubectl_apply(kubectl: Callable[..., str], namespace: str) -> None:
    text = yaml.safe_dump(tunnel(namespace, hostname="shop.example.com"))
    with pytest.raises(ClusterError, match=r'unknown field "spec.hostname"'):
        kubectl("apply", "-f", "-", stdin=text)


def test_an_unknown_field_of_another_version_is_dropped_when_validation_is_off(
    client: KubeClient, namespace: str
) -> None:
    stored = client.create(tunnel(namespace, hologram={"depth": 3}), unknown_fields="Ignore")
    assert "hologram" not in stored["spec"]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"hostnames": ["Shop_1"]}, r"spec.hostnames\[0\].*should match"),
        ({"protocol": "gopher"}, r'spec.protocol: Unsupported value: "gopher"'),
        ({"origin": {}}, r"spec.origin.url: Required value"),
        ({"cache": {"ttl": "2 seconds"}}, r"spec.cache.ttl.*should match"),
        ({"limits": {"maxConcurrentRequests": "many"}}, r"spec.limits.maxConcurrentRequests.*must be of type integer"),
    ],
)
def test_a_wrong_value_is_refused_where_it_stands(
    client: KubeClient, namespace: str, spec: Object, complaint: str
) -> None:
    with pytest.raises(ApiError, match=complaint):
        client.create(tunnel(namespace, **spec))


# ---- status


def test_status_and_spec_are_written_apart(client: KubeClient, apply: Callable[..., Object], namespace: str) -> None:
    stored = apply(tunnel(namespace) | {"status": {"agents": 9}})
    assert "status" not in stored
    written = client.patch(stored, {"spec": {"hostnames": ["x.example.com"]}, "status": {"agents": 1}}, "status")
    assert written["status"] == {"agents": 1}
    assert written["spec"] == stored["spec"]
    assert written["metadata"]["generation"] == 1
    changed = client.patch(stored, {"spec": {"forceHttps": True}})
    assert changed["metadata"]["generation"] == 2
    assert changed["status"] == {"agents": 1}


def test_two_writers_of_status_keep_to_their_own_conditions(
    client: KubeClient, apply: Callable[..., Object], namespace: str
) -> None:
    """Conditions are a map by type: server-side apply of one leaves the other."""
    apply(tunnel(namespace))
    bare = {k: v for k, v in tunnel(namespace).items() if k != "spec"}
    accepted = ready() | {"type": "Accepted", "reason": "Accepted"}
    client.apply(bare | {"status": {"conditions": [ready()]}}, manager="one", subresource="status")
    after = client.apply(bare | {"status": {"conditions": [accepted]}}, manager="two", subresource="status")
    assert {c["type"] for c in after["status"]["conditions"]} == {"Ready", "Accepted"}


# ---- upgrade


@pytest.fixture(scope="module")
def another_cluster(control_plane_binaries: Binaries) -> Iterator[ControlPlane]:
    """Of its own, since definitions are the whole cluster's; without controllers, which this does not need."""
    programs = {n: path for n, path in control_plane_binaries.programs.items() if n not in CONTROLLERS}
    plane = ControlPlane(Binaries(programs))
    yield plane
    plane.close()


def test_upgraded_definitions_keep_every_object(another_cluster: ControlPlane) -> None:
    client = another_cluster.client
    another_cluster.install_crds(as_it_was_before(crd) for crd in read_crds())
    old = client.apply_all(
        [
            tunnel("default"),
            tunnel("default", "broken", limits={"burst": 5}),  # a rule that came later refuses it
            pool("fleet"),
            token("default"),
        ]
    )
    assert "collapse" not in old[0]["spec"]

    # as an upgrade does it: helm never touches CRDs, people apply them
    for crd in read_crds():
        another_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump(crd))
    another_cluster.install_crds(read_crds())

    for before in old:
        meta = before["metadata"]
        after = client.get(before["apiVersion"], before["kind"], meta["name"], meta.get("namespace"))
        assert after is not None
        assert after["metadata"]["uid"] == meta["uid"]
        assert after["metadata"]["resourceVersion"] == meta["resourceVersion"]
        assert before["spec"].items() <= after["spec"].items()
    upgraded = client.get(API, "Tunnel", "shop", "default")
    assert upgraded is not None
    assert upgraded["spec"]["collapse"]["enabled"] is True  # new fields appear with their defaults

    # what a new rule refuses can still be told so, and be mended
    broken = old[1]
    client.patch(broken, {"status": {"conditions": [ready("False", "Invalid", "burst needs a rate")]}}, "status")
    with pytest.raises(ApiError, match=r"limits\.burst needs"):
        client.patch(broken, {"spec": {"limits": {"burst": 6}}})
    assert client.patch(broken, {"spec": {"limits": {"ratePerVisitor": "1/s"}}})["metadata"]["generation"] == 2

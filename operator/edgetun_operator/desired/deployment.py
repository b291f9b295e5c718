"""The Deployment of a region: exit nodes that start fast, leave in good order and may do nothing but serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from edgetun_cluster.kinds import DEPLOYMENT, Object
from edgetun_cluster.system_secrets import EXIT_NODE_AUDIENCE
from edgetun_core.admin import KEPT_WHILE_DRAINING
from edgetun_core.api.pods import PodTemplate
from edgetun_operator.desired.fleet import (
    ADMIN_PORT,
    CERTIFICATE_FOLDER,
    CONFIG_FOLDER,
    DEREGISTER_S,
    HTTP_PORT,
    HTTPS_PORT,
    IDENTITY_FOLDER,
    RELAY_PORT,
    SHUTDOWN_S,
    STATE_FOLDER,
    TUNNEL_PORT,
    USER_ID,
    Desired,
    RegionInputs,
    metadata,
    stream_ports,
)
from edgetun_operator.desired.labels import CONFIG, exit_labels, exit_selector
from edgetun_operator.desired.quantities import canonical_quantity

DEFAULT_REQUESTS: Final = {"cpu": "250m", "memory": "384Mi"}
"""CPU must be requested for an autoscaler to know what 70 % of it is."""
TOKEN_S: Final = 3600
CACHE_FOLDER: Final = "/var/cache/edgetun"


def build_deployment(inputs: RegionInputs, config_digest: str) -> Desired:
    """The Deployment. Under an autoscaler it says nothing of `replicas`, which is the autoscaler's then."""
    pool, plan, fleet = inputs.pool, inputs.plan, inputs.fleet
    uses_host_ports = plan.service.type == "HostPort"
    spec: Object = {
        "revisionHistoryLimit": 3,
        "minReadySeconds": 2,
        "selector": {"matchLabels": exit_selector(pool.metadata.name, plan.name)},
        "strategy": {
            "type": "RollingUpdate",
            # A new pod serves before an old one goes, unless both would want the same port of the node.
            "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}
            if uses_host_ports
            else {"maxUnavailable": 0, "maxSurge": "25%"},
        },
        "template": {
            "metadata": {
                "labels": {
                    **fleet.labels,
                    **plan.pod_template.labels,
                    **exit_labels(pool.metadata.name, plan.name),
                },
                "annotations": {**plan.pod_template.annotations, CONFIG: config_digest},
            },
            "spec": _pod_spec(inputs),
        },
    }
    if plan.autoscaling is None:
        spec["replicas"] = plan.replicas
    return Desired(DEPLOYMENT, {"metadata": metadata(pool, plan.name, fleet), "spec": spec})


def _pod_spec(inputs: RegionInputs) -> Object:
    pool, plan, fleet = inputs.pool, inputs.plan, inputs.fleet
    template = plan.pod_template
    selector = {"matchLabels": exit_selector(pool.metadata.name, plan.name)}
    pod: Object = {
        "serviceAccountName": inputs.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": round(pool.spec.drain) + DEREGISTER_S + SHUTDOWN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
            **_low_ports(inputs),
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": spread.max_skew,
                "topologyKey": spread.topology_key,
                "whenUnsatisfiable": spread.when_unsatisfiable,
                "labelSelector": selector,
            }
            for spread in pool.spec.topology_spread
        ],
        "containers": [_container(inputs)],
        "volumes": _volumes(inputs),
    }
    pull_secrets = merged_by_name(
        [{"name": name} for name in fleet.pull_secrets],
        [{"name": secret.name} for secret in template.image_pull_secrets],
    )
    optional = {
        "imagePullSecrets": pull_secrets,
        "nodeSelector": dict(template.node_selector),
        "tolerations": [_said(toleration.model_dump(by_alias=True)) for toleration in template.tolerations],
        "affinity": dict(template.affinity),
        "priorityClassName": template.priority_class_name,
    }
    return pod | {name: value for name, value in optional.items() if value}


def _low_ports(inputs: RegionInputs) -> Object:
    """Ports below 1024 (DNS, SSH) without root: a sysctl of the pod's own, one of those that Kubernetes calls safe."""
    if all(port >= 1024 for _, port in stream_ports(inputs.pool)):
        return {}
    return {"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]}


def _container(inputs: RegionInputs) -> Object:
    template, fleet = inputs.plan.pod_template, inputs.fleet
    container: Object = {
        "name": "exitnode",
        "image": template.image or fleet.image,
        "command": ["edgetun-exitnode"],
        "args": _arguments(inputs),
        "env": merged_by_name(
            [{"name": variable.name, "value": variable.value} for variable in template.env],
            [
                {"name": "EDGETUN_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
            ],
        ),
        "ports": _ports(inputs),
        "startupProbe": _probe("/healthz", periodSeconds=1, failureThreshold=60),
        "livenessProbe": _probe("/healthz", periodSeconds=10, failureThreshold=3),
        # True while it drains: a pod that goes gets nobody new anyway, and must not lose the UDP flows that it has.
        "readinessProbe": _probe(f"/readyz?{KEPT_WHILE_DRAINING}", periodSeconds=2, failureThreshold=2),
        "lifecycle": {"preStop": {"sleep": {"seconds": DEREGISTER_S}}},
        "resources": _resources(template),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "identity", "mountPath": IDENTITY_FOLDER, "readOnly": True},
            {"name": "state", "mountPath": STATE_FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir of the pod
            *([{"name": "cache", "mountPath": CACHE_FOLDER}] if inputs.pool.spec.limits.cache_disk_bytes else ()),
            *(
                {"name": f"certificate-{index}", "mountPath": f"{CERTIFICATE_FOLDER}/{secret}", "readOnly": True}
                for index, secret in enumerate(inputs.certificate_secrets)
            ),
        ],
    }
    pull_policy = template.image_pull_policy or fleet.pull_policy
    return container | ({"imagePullPolicy": pull_policy} if pull_policy else {})


def _arguments(inputs: RegionInputs) -> list[str]:
    pool, fleet, service = inputs.pool, inputs.fleet, inputs.plan.service
    return [
        f"--control={fleet.control}",
        f"--control-ca={CONFIG_FOLDER}/ca.crt",
        f"--control-token-file={IDENTITY_FOLDER}/token",
        f"--pool={pool.metadata.name}",
        f"--region={inputs.plan.name}",
        f"--state={STATE_FOLDER}",
        f"--http-port={HTTP_PORT}",
        f"--https-port={HTTPS_PORT}",
        f"--tunnel-port={TUNNEL_PORT}",
        "--relay-host=$(POD_IP)",
        f"--relay-port={RELAY_PORT}",
        f"--metrics=0.0.0.0:{ADMIN_PORT}",
        f"--cache-bytes={pool.spec.limits.cache_bytes}",
        *(
            (f"--cache-bytes-per-tunnel={pool.spec.limits.cache_bytes_per_tunnel}",)
            if pool.spec.limits.cache_bytes_per_tunnel
            else ()
        ),
        *(
            (f"--cache-disk-bytes={pool.spec.limits.cache_disk_bytes}", f"--cache-folder={CACHE_FOLDER}")
            if pool.spec.limits.cache_disk_bytes
            else ()
        ),
        f"--max-connections={pool.spec.limits.max_connections}",
        f"--drain={pool.spec.drain:g}s",
        f"--log-level={fleet.log_level}",
        "--json",
        *(() if fleet.http3 else ("--no-http3",)),
        # With a port of the node, agents can dial this very pod: a UDP Service may change the pod under a session.
        *([f"--tunnel-address=$(HOST_IP):{service.ports.tunnel}"] if service.type == "HostPort" else ()),
        *(
            f"--certificate={CERTIFICATE_FOLDER}/{secret}/tls.crt:{CERTIFICATE_FOLDER}/{secret}/tls.key"
            for secret in inputs.certificate_secrets
        ),
    ]


def _ports(inputs: RegionInputs) -> list[Object]:
    service = inputs.plan.service
    found = [
        ("http", HTTP_PORT, "TCP", service.ports.http),
        ("https", HTTPS_PORT, "TCP", service.ports.https),
        ("tunnel", TUNNEL_PORT, "TCP", service.ports.tunnel),
        ("tunnel-quic", TUNNEL_PORT, "UDP", service.ports.tunnel),
    ]
    if inputs.fleet.http3:
        found.append(("http3", HTTPS_PORT, "UDP", service.ports.https))
    uses_host_ports = service.type == "HostPort"
    ports: list[Object] = [
        {
            "name": name,
            "containerPort": port,
            "protocol": protocol,
            **({"hostPort": host_port} if uses_host_ports else {}),
        }
        for name, port, protocol, host_port in found
    ]
    if uses_host_ports:
        ports += [
            {"name": f"{kind}-{port}", "containerPort": port, "protocol": kind.upper(), "hostPort": port}
            for kind, port in stream_ports(inputs.pool)
        ]
    return [
        *ports,
        {"name": "relay", "containerPort": RELAY_PORT, "protocol": "TCP"},
        {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
    ]


def _cache_volume(disk_bytes: int) -> list[Object]:
    """A tenth more than the exit node uses: the kubelet evicts a pod that goes beyond, and measures by its own clock."""
    if not disk_bytes:
        return []
    limit = canonical_quantity(f"{-(-(disk_bytes + max(disk_bytes // 10, 64 << 20)) // (1 << 20))}Mi")
    return [{"name": "cache", "emptyDir": {"sizeLimit": limit}}]


def _volumes(inputs: RegionInputs) -> list[Object]:
    return [
        {"name": "config", "configMap": {"name": inputs.name}},
        {
            "name": "identity",
            "projected": {
                "sources": [
                    {
                        "serviceAccountToken": {
                            "audience": EXIT_NODE_AUDIENCE,
                            "expirationSeconds": TOKEN_S,
                            "path": "token",
                        }
                    }
                ]
            },
        },
        {"name": "state", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        *_cache_volume(inputs.pool.spec.limits.cache_disk_bytes),
        *(
            {"name": f"certificate-{index}", "secret": {"secretName": secret}}
            for index, secret in enumerate(inputs.certificate_secrets)
        ),
    ]


def _resources(template: PodTemplate) -> Object:
    requests = {**DEFAULT_REQUESTS, **template.resources.requests}
    found = {"requests": requests, "limits": template.resources.limits}
    return {
        what: {name: canonical_quantity(amount) for name, amount in amounts.items()}
        for what, amounts in found.items()
        if amounts
    }


def _probe(path: str, **timing: int) -> Object:
    # `/healthz` itself waits up to two seconds for the event loop.
    return {"httpGet": {"path": path, "port": "admin"}, "timeoutSeconds": 5, **timing}


def merged_by_name(base: Iterable[Mapping[str, Any]], over: Iterable[Mapping[str, Any]]) -> list[Object]:
    """Lists that are maps by `name`, as Kubernetes merges them: what `over` has of a name wins, the order stays."""
    found = {item["name"]: dict(item) for item in base}
    for item in over:
        found[item["name"]] = dict(item)
    return list(found.values())


def _said(values: Mapping[str, Any]) -> Object:
    return {name: value for name, value in values.items() if value not in (None, "")}

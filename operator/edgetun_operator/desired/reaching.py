"""How a region is reached, and by whom: the Service and the NetworkPolicy."""

from __future__ import annotations

from edgetun_cluster.kinds import NETWORK_POLICY, SERVICE, Object
from edgetun_operator.desired.fleet import (
    ADMIN_PORT,
    CONTROL_PORT,
    HTTP_PORT,
    HTTPS_PORT,
    RELAY_PORT,
    TUNNEL_PORT,
    Desired,
    RegionInputs,
    metadata,
    stream_ports,
)
from edgetun_operator.desired.labels import exit_selector

DNS_NAME = "external-dns.alpha.kubernetes.io/hostname"


def build_service(inputs: RegionInputs) -> Desired:
    """LoadBalancer or NodePort; with `HostPort` a headless one, by which external-dns finds the nodes' addresses."""
    pool, plan = inputs.pool, inputs.plan
    service = plan.service
    meta = metadata(pool, plan.name, inputs.fleet)
    meta["labels"] = {**service.labels, **meta["labels"]}
    annotations = dict(service.annotations)
    if service.dns_names:
        annotations[DNS_NAME] = ",".join(service.dns_names)
    if annotations:
        meta["annotations"] = annotations
    spec: Object = {
        "selector": exit_selector(pool.metadata.name, plan.name),
        "ports": _service_ports(inputs),
    }
    match service.type:
        case "HostPort":
            spec |= {"type": "ClusterIP", "clusterIP": "None"}
        case "LoadBalancer" | "NodePort":
            spec |= {"type": service.type, "externalTrafficPolicy": service.external_traffic_policy}
    if service.type == "LoadBalancer":
        if service.load_balancer_class is not None:
            spec["loadBalancerClass"] = service.load_balancer_class
        if service.load_balancer_source_ranges:
            spec["loadBalancerSourceRanges"] = list(service.load_balancer_source_ranges)
    return Desired(SERVICE, {"metadata": meta, "spec": spec})


def _service_ports(inputs: RegionInputs) -> list[Object]:
    service = inputs.plan.service
    found = [
        ("http", "TCP", service.ports.http, "http", service.node_ports.http),
        ("https", "TCP", service.ports.https, "https", service.node_ports.https),
        ("tunnel", "TCP", service.ports.tunnel, "tunnel", service.node_ports.tunnel),
        ("tunnel-quic", "UDP", service.ports.tunnel, "tunnel-quic", service.node_ports.tunnel),
    ]
    if inputs.fleet.http3:
        found.append(("http3", "UDP", service.ports.https, "http3", service.node_ports.https))
    http: list[Object] = [
        {
            "name": name,
            "protocol": protocol,
            "port": port,
            "targetPort": target,
            **({"nodePort": node_port} if node_port is not None and service.type == "NodePort" else {}),
        }
        for name, protocol, port, target, node_port in found
    ]
    # Ports of tunnels are the same outside and inside; with NodePort, Kubernetes chooses those of the nodes.
    streams: list[Object] = [
        {"name": f"{kind}-{port}", "protocol": kind.upper(), "port": port, "targetPort": port}
        for kind, port in stream_ports(inputs.pool)
    ]
    return http + streams


def _stream_ranges(inputs: RegionInputs) -> list[Object]:
    ports = inputs.pool.spec.ports
    return [
        {
            "port": each.from_,
            "protocol": kind.upper(),
            **({"endPort": each.last} if each.last != each.from_ else {}),
        }
        for kind in ("tcp", "udp")
        for each in ports.ranges(kind)
    ]


def build_network_policy(inputs: RegionInputs) -> Desired:
    """In: visitors and agents from anywhere, other exit nodes, `/metrics` from inside. Out: names, control, other exit nodes."""
    pool, plan = inputs.pool, inputs.plan
    public = [(HTTP_PORT, "TCP"), (HTTPS_PORT, "TCP"), (TUNNEL_PORT, "TCP"), (TUNNEL_PORT, "UDP")]
    if inputs.fleet.http3:
        public.append((HTTPS_PORT, "UDP"))
    peers = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "edgetun-exitnode"}}}
    return Desired(
        NETWORK_POLICY,
        {
            "metadata": metadata(pool, plan.name, inputs.fleet),
            "spec": {
                "podSelector": {"matchLabels": exit_selector(pool.metadata.name, plan.name)},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [
                    {
                        "ports": [
                            *({"port": port, "protocol": protocol} for port, protocol in public),
                            *_stream_ranges(inputs),
                        ]
                    },
                    {"from": [peers], "ports": [{"port": RELAY_PORT, "protocol": "TCP"}]},
                    {
                        "from": [{"namespaceSelector": {}}],
                        "ports": [{"port": ADMIN_PORT, "protocol": "TCP"}],
                    },
                ],
                "egress": [
                    {"ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]},
                    {"ports": [{"port": CONTROL_PORT, "protocol": "TCP"}]},
                    {
                        "to": [peers],
                        "ports": [{"port": RELAY_PORT, "protocol": "TCP"}],
                    },
                ],
            },
        },
    )

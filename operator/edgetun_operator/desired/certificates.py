"""Which certificates visitors of a pool get: cert-manager's Certificates, Secrets that people name, and the own CA's leaf."""

from __future__ import annotations

from typing import NamedTuple

from edgetun_cluster.kinds import CERTIFICATE, Object
from edgetun_core.api.exitpool import ExitPool
from edgetun_operator.desired.fleet import Desired, Fleet, metadata


class CertificateSource(NamedTuple):
    """A Secret with a certificate, and who fills it: "given" (people do), "issuer" (cert-manager), "own" (the operator)."""

    secret: str
    origin: str
    names: tuple[str, ...] = ()


def own_leaf_secret(pool: str) -> str:
    """Name of the Secret with the certificate that the own CA signs for a pool."""
    return f"edgetun-exit-{pool}-tls"


def certificate_sources(pool: ExitPool) -> tuple[CertificateSource, ...]:
    """What the pool asks for; the own CA's leaf when it asks for nothing else."""
    name = pool.metadata.name
    nameable = tuple(domain for domain in pool.spec.domains if domain != "*")
    found = []
    for index, certificate in enumerate(pool.spec.certificates):
        if certificate.secret_name is not None:
            found.append(CertificateSource(certificate.secret_name, "given"))
        elif certificate.issuer_ref is not None:
            names = tuple(certificate.hostnames) or nameable
            found.append(CertificateSource(f"edgetun-exit-{name}-issued-{index}", "issuer", names))
    if not found and nameable:
        found.append(CertificateSource(own_leaf_secret(name), "own", nameable))
    return tuple(found)


def build_certificates(pool: ExitPool, fleet: Fleet) -> tuple[Desired, ...]:
    """The Certificate objects of cert-manager, one for each `issuerRef`."""
    found = []
    sources = {source.secret: source for source in certificate_sources(pool)}
    for index, certificate in enumerate(pool.spec.certificates):
        issuer = certificate.issuer_ref
        if issuer is None:
            continue
        name = f"edgetun-exit-{pool.metadata.name}-issued-{index}"
        source = sources[name]
        if not source.names:
            continue  # only "*" is served: there is no name that a certificate could be asked for
        meta = metadata(pool, "", fleet, name=name)
        spec: Object = {
            "secretName": name,
            "dnsNames": list(source.names),
            "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": issuer.group},
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "usages": ["server auth"],
        }
        found.append(Desired(CERTIFICATE, {"metadata": meta, "spec": spec}))
    return tuple(found)

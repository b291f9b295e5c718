"""Certificates for visitors, and where they come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from edgetun_core.api.model import ApiModel, Broken, Rule, RuledModel
from edgetun_core.api.names import FilePath, Hostname, ObjectName


class IssuerRef(ApiModel):
    """A cert-manager issuer."""

    name: ObjectName = Field(description="Name of the issuer.", examples=["letsencrypt"])
    kind: Literal["Issuer", "ClusterIssuer"] = Field(
        default="ClusterIssuer", description="Its kind; an `Issuer` stands in edgetun's namespace."
    )
    group: ObjectName = Field(default="cert-manager.io", description="Its API group.")


def _one_source_of_a_certificate(certificate: Certificate) -> Iterator[Broken]:
    files = certificate.cert_file is not None or certificate.key_file is not None
    if (certificate.cert_file is None) != (certificate.key_file is None):
        missing = "keyFile" if certificate.key_file is None else "certFile"
        yield Broken((missing,), f"is missing; add {missing}: certs/shop.{'key' if missing == 'keyFile' else 'pem'}")
    if files + (certificate.secret_name is not None) + (certificate.issuer_ref is not None) > 1:
        yield Broken((), "has more than one source; keep one of certFile and keyFile, secretName, issuerRef")
    elif not files and certificate.secret_name is None and certificate.issuer_ref is None:
        yield Broken((), "has no source; write certFile and keyFile, secretName, or issuerRef")


def _hostnames_are_for_issuers(certificate: Certificate) -> Iterator[Broken]:
    if certificate.issuer_ref is None and certificate.hostnames:
        yield Broken(("hostnames",), "is for issuerRef only; the names of other certificates stand in them")


class Certificate(RuledModel):
    """A certificate for visitors: from files, from a Secret, or from cert-manager."""

    reserved: ClassVar[frozenset[str]] = frozenset({"secretRef", "acme", "hosts", "duration", "renewBefore"})

    cert_file: FilePath | None = Field(
        default=None,
        description="PEM file with the certificate and its chain, for exit nodes without a cluster.",
        examples=["certs/shop.pem"],
    )
    key_file: FilePath | None = Field(
        default=None, description="PEM file with the private key.", examples=["certs/shop.key"]
    )
    secret_name: ObjectName | None = Field(
        default=None, description="Secret of type `kubernetes.io/tls`, in edgetun's namespace.", examples=["shop-tls"]
    )
    issuer_ref: IssuerRef | None = Field(
        default=None,
        description="cert-manager issuer that the certificate is asked of.",
        examples=["{name: letsencrypt}"],
    )
    hostnames: list[Hostname] = Field(
        default_factory=list,
        max_length=64,
        description="With `issuerRef`: names of the certificate; empty: `spec.domains`.",
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.certFile) == has(self.keyFile) && [has(self.certFile), has(self.secretName), has(self.issuerRef)]"
            ".filter(given, given).size() == 1",
            "say one of certFile and keyFile, secretName, issuerRef",
            _one_source_of_a_certificate,
        ),
        Rule(
            "has(self.issuerRef) || !has(self.hostnames) || size(self.hostnames) == 0",
            "hostnames are for issuerRef only",
            _hostnames_are_for_issuers,
        ),
    )

"""What an ExitPool and its Tunnels say of certificates: missing, expiring, expired, damaged, of the own CA and renewed."""

from __future__ import annotations

import base64
import datetime
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from support.cluster import ControlPlane
from support.kube_client import KubeClient, Object
from support.operator import GROUP_VERSION, OperatorProcess, conditions, crds, pool, tunnel, wait_for_condition
from support.waiting import wait_for

Apply = Callable[..., Object]
DAY = 86400.0


@pytest.fixture(scope="module", autouse=True)
def _crds(cluster: ControlPlane) -> None:
    cluster.install_crds(crds())


@pytest.fixture
def operator(cluster: ControlPlane, namespace: str) -> Iterator[OperatorProcess]:
    with OperatorProcess(cluster, namespace) as running:
        yield running


def certificate(name: str, ends_in_s: float) -> dict[str, str]:
    """A self-signed certificate, as a Secret's data."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    ends = datetime.datetime.fromtimestamp(time.time() + ends_in_s, datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(ends - datetime.timedelta(days=90))
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    found = {"tls.crt": made.public_bytes(serialization.Encoding.PEM), "tls.key": pem}
    return {what: base64.b64encode(text).decode() for what, text in found.items()}


def test_a_pool_and_its_tunnels_tell_of_a_certificate_from_missing_to_valid_and_back(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    secret: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": "shop-tls", "namespace": namespace},
    }
    apply(pool(name, certificates=[{"secretName": "shop-tls"}]))
    apply(tunnel(namespace, "shop", name))

    def told(reason: str, says: str, serves: bool) -> None:
        for kind, what, where in (("ExitPool", name, None), ("Tunnel", "shop", namespace)):
            found = wait_for_condition(client, kind, what, where, "CertificateReady", reason)
            condition = conditions(found)["CertificateReady"]
            assert condition["status"] == ("True" if reason == "CertificateValid" else "False")
            assert says in condition["message"], condition
        made = client.get("apps/v1", "Deployment", f"edgetun-exit-{name}-eu", namespace)
        assert made is not None
        mounted = [v["secret"]["secretName"] for v in made["spec"]["template"]["spec"]["volumes"] if "secret" in v]
        assert mounted == (["shop-tls"] if serves else [])

    told("CertificateMissing", "Secret shop-tls is not there", serves=False)
    client.apply(secret | {"data": certificate("shop.example.com", 3.5 * DAY)})
    told("CertificateExpiring", "ends in", serves=True)
    client.apply(secret | {"data": certificate("shop.example.com", -60)})
    told("CertificateExpired", "has expired", serves=True)
    client.apply(secret | {"data": {key: base64.b64encode(b"nothing").decode() for key in ("tls.crt", "tls.key")}})
    told("CertificateInvalid", "holds no certificate", serves=False)
    client.apply(secret | {"data": certificate("shop.example.com", 60 * DAY)})
    told("CertificateValid", "", serves=True)
    client.delete(secret)
    told("CertificateMissing", "Secret shop-tls is not there", serves=False)

    def events() -> set[str]:
        found = client.list_of("v1", "Event", "default")["items"] + client.list_of("v1", "Event", namespace)["items"]
        return {event["reason"] for event in found if event["involvedObject"]["name"] in {name, "shop"}}

    wanted = {"CertificateMissing", "CertificateExpiring", "CertificateExpired", "CertificateInvalid"}
    wait_for(lambda: wanted <= events(), 20, "events on what people wrote")


def test_the_own_cas_certificate_is_renewed_when_its_names_change_or_it_was_put_in_disorder(
    operator: OperatorProcess, client: KubeClient, namespace: str, unique: str, apply: Apply
) -> None:
    name = f"p{unique}"
    apply(pool(name))
    wait_for_condition(client, "ExitPool", name, None, "CertificateReady", "CertificateValid")

    def names() -> set[str]:
        secret = client.get("v1", "Secret", f"edgetun-exit-{name}-tls", namespace)
        assert secret is not None
        found = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
        return set(
            found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
                x509.DNSName
            )
        )

    assert names() == {f"*.{name}.example.com"}
    apply(pool(name, domains=[f"*.{name}.example.com", f"*.more.{name}.example.com"]))
    wait_for(lambda: names() == {f"*.{name}.example.com", f"*.more.{name}.example.com"}, 20, "the second name")
    meta = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"edgetun-exit-{name}-tls", "namespace": namespace},
    }
    client.patch(meta, {"data": certificate("other.example.com", 60 * DAY)})
    wait_for(lambda: f"*.{name}.example.com" in names(), 20, "it is issued anew")
    assert conditions(client.get(GROUP_VERSION, "ExitPool", name))["CertificateReady"]["status"] == "True"

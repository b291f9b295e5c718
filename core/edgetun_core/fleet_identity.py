"""Who is who inside the fleet: exit nodes' certificates, signed by the fleet's CA, and the TLS contexts that demand them.

An exit node makes its key itself and sends a signing request; control decides what stands in the certificate. The certificate serves
both as the node's proof towards control (its URI) and as what agents see on the tunnel port (its names). `cryptography` is
imported where a certificate is made or read, not with this module.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from edgetun_core.errors import AuthError, ConfigError
from edgetun_core.pki import CLOCK_SKEW_S, DAY_S, ServerIdentity, Trust, canonical_names, load_chain
from edgetun_core.transport.link import ALPN

EXIT_NODE_CERTIFICATE_S: Final = float(DAY_S)
_URI: Final = "edgetun://exitnode/"
_NAME: Final = re.compile(r"[a-z0-9A-Z]([-a-zA-Z0-9_.]{0,251}[a-zA-Z0-9])?")
INNER_DOMAIN: Final = "exit.edgetun.internal"


class ExitNodeName(NamedTuple):
    """Which exit node."""

    pool: str
    region: str
    node: str

    @property
    def uri(self) -> str:
        """As it stands in the certificate."""
        return f"{_URI}{self.pool}/{self.region}/{self.node}"

    def __str__(self) -> str:
        return f"{self.pool}/{self.region}/{self.node}"

    @classmethod
    def parse(cls, uri: str) -> ExitNodeName | None:
        """Reads `uri`; None for anything else."""
        parts = uri.removeprefix(_URI).split("/")
        if not uri.startswith(_URI) or len(parts) != 3 or not all(_NAME.fullmatch(part) for part in parts):
            return None
        return cls(*parts)


def check_exit_node_name(name: ExitNodeName) -> None:
    """Raises `ConfigError` for a name that could not stand in a certificate."""
    if ExitNodeName.parse(name.uri) is None:
        raise ConfigError(f"{str(name)!r} is no name of an exit node", remedy="use letters, digits, '-', '_' and '.'")


def inner_name(pool: str, region: str) -> str:
    """A name that every certificate of the region carries, whatever the region's addresses are or will be."""
    return f"{region}.{pool}.{INNER_DOMAIN}"


def make_key_and_request(name: ExitNodeName) -> tuple[bytes, bytes]:
    """A fresh key and a request to have it certified: `(key_pem, csr_pem)`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.node[:64])]))
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, csr.public_bytes(serialization.Encoding.PEM)


def sign_exit_node(
    csr_pem: bytes,
    name: ExitNodeName,
    names: Iterable[str],
    *,
    ca_pem: bytes,
    ca_key_pem: bytes,
    now: float,
    lifetime_s: float = EXIT_NODE_CERTIFICATE_S,
) -> bytes:
    """The certificate (PEM) for the request's key. Of the request nothing but the key counts.

    Raises `AuthError` for a request that is not one or does not hold its key, `ConfigError` for names that are none.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    check_exit_node_name(name)
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        holds_key = csr.is_signature_valid
        key = csr.public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise AuthError(f"exit node {name}: the signing request cannot be read") from None
    if not holds_key or not isinstance(key, ec.EllipticCurvePublicKey):
        raise AuthError(f"exit node {name}: the signing request is not signed by an elliptic-curve key of its own")
    ca = x509.load_pem_x509_certificate(ca_pem)
    ca_key = serialization.load_pem_private_key(ca_key_pem, None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the fleet's CA has no elliptic-curve key", remedy="make a CA with an EC P-256 key")
    all_names = canonical_names([inner_name(name.pool, name.region), *names])
    ends = min(now + lifetime_s, ca.not_valid_after_utc.timestamp())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.node[:64])]))
        .issuer_name(ca.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(now - CLOCK_SKEW_S), UTC))
        .not_valid_after(datetime.fromtimestamp(int(ends), UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [*(_general_name(one) for one in all_names), x509.UniformResourceIdentifier(name.uri)]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _general_name(name: str) -> Any:
    import ipaddress

    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def exit_node_of(peer_certificate: Mapping[str, Any] | None) -> ExitNodeName | None:
    """Who the verified peer of a TLS connection is (`getpeercert()`); None when it showed no exit node's certificate."""
    for kind, value in (peer_certificate or {}).get("subjectAltName", ()):
        if kind == "URI":
            found = ExitNodeName.parse(value)
            if found is not None:
                return found
    return None


def server_context(identity: ServerIdentity, ca_pem: bytes) -> ssl.SSLContext:
    """For control's listener of exit nodes: those that have a certificate show it, the others may only ask for one."""
    context = ServerIdentity(identity.cert_pem, identity.key_pem).ssl_context(("http/1.1",))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    return context


def client_context(trust: Trust, cert_pem: bytes = b"", key_pem: bytes = b"") -> ssl.SSLContext:
    """For an exit node that speaks to control; with its certificate once it has one."""
    context = trust.ssl_context(("http/1.1",))
    if cert_pem:
        load_chain(context, cert_pem, key_pem)
    return context


class PeerContexts:
    """TLS among exit nodes: both sides show their certificate, and both must be of the fleet's CA.

    Contexts are made when they are first needed and again when the certificate was renewed.
    """

    def __init__(self, identity: ServerIdentity, ca_pem: Callable[[], bytes]) -> None:
        """`ca_pem` is asked again with every renewal. Raises `ConfigError` when it holds no certificate."""
        self._identity = identity
        self._ca_pem = ca_pem
        self._version = 0
        self._server: ssl.SSLContext | None = None
        self._client: ssl.SSLContext | None = None
        self.entrance = self._demanding(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        """What a listener begins handshakes with; OpenSSL takes from it whether the client must show a certificate."""

    def server(self, _name: str | None = None) -> ssl.SSLContext:
        """For handshakes that come in."""
        self._look()
        if self._server is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.set_alpn_protocols([ALPN])
            load_chain(context, self._identity.cert_pem, self._identity.key_pem)
            self._server = self._demanding(context)
        return self._server

    def ssl_context(self, alpn: Iterable[str] = ()) -> ssl.SSLContext:
        """For dialling; in the place of a `Trust`."""
        self._look()
        if self._client is None:
            self._client = Trust(self._ca_pem()).ssl_context(alpn)
            load_chain(self._client, self._identity.cert_pem, self._identity.key_pem)
        return self._client

    def _demanding(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self._ca_pem().decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _look(self) -> None:
        if self._version != self._identity.version:
            self._version = self._identity.version
            self._server = self._client = None

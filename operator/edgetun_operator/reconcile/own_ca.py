"""The own CA, as it stands in its Secret: what it signs, and whether what it has signed is still good. Blocks; use threads."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgetun_cluster.kinds import Object
from edgetun_cluster.system_secrets import secret_data, to_data
from edgetun_core.errors import ConfigError
from edgetun_core.pki import DevelopmentCA, canonical_names, first_certificate, is_renewal_due


class CertificateFacts(NamedTuple):
    """What a certificate says. Times are seconds since the epoch."""

    names: frozenset[str]
    begins: float
    ends: float
    issuer_key: bytes
    """Key identifier of whoever signed it; empty when it does not say."""


def describe_certificate(secret: Mapping[str, Any]) -> CertificateFacts | None:
    """The certificate in a Secret's `tls.crt`, or None when there is none."""
    from cryptography import x509

    try:
        pem = secret_data(secret).get("tls.crt", b"")
        certificate = x509.load_pem_x509_certificate(pem)
    except (ConfigError, ValueError):
        return None
    extensions = certificate.extensions
    try:
        general = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = {*general.get_values_for_type(x509.DNSName), *map(str, general.get_values_for_type(x509.IPAddress))}
    except x509.ExtensionNotFound:
        names = set()
    try:
        authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        issuer_key = authority.key_identifier or b""
    except x509.ExtensionNotFound:
        issuer_key = b""
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return CertificateFacts(frozenset(names), begins, ends, issuer_key)


class OwnCA:
    """Filled from `edgetun-ca` by the system's reconcile; until then `is_ready` is false."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.ca_pem = ""
        """All CAs that are to be trusted; the first is the one that signs."""
        self._signs_pem = b""
        self._cross_pem = b""
        self._key_pem = b""
        self._key_identifier = b""
        self._clock = clock

    @property
    def is_ready(self) -> bool:
        return bool(self.ca_pem)

    def take(self, secret: Mapping[str, Any]) -> bool:
        """Takes what stands in the Secret; True when it is another CA than before. Raises `ConfigError` when it is none."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        data = secret_data(secret)
        ca_pem, key_pem = data.get("ca.crt", b""), data.get("ca.key", b"")
        cross_pem = data.get("cross.crt", b"")
        if (ca_pem.decode("ascii", "replace"), key_pem, cross_pem) == (self.ca_pem, self._key_pem, self._cross_pem):
            return False
        name = secret["metadata"].get("name", "")
        try:
            certificate = x509.load_pem_x509_certificate(ca_pem)
            key = load_pem_private_key(key_pem, None)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"Secret {name} holds no CA (ca.crt and ca.key)",
                remedy="restore it, or delete it and let all agents get new tokens",
            ) from error
        if key.public_key() != certificate.public_key():
            raise ConfigError(f"Secret {name}: ca.key is not the key of ca.crt", remedy="restore both")
        self.ca_pem = ca_pem.decode("ascii")
        self._signs_pem = first_certificate(ca_pem)
        self._cross_pem = cross_pem
        self._key_pem = key_pem
        self._key_identifier = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest
        return True

    def make(self) -> dict[str, str]:
        """A new CA, as the Secret's data."""
        with tempfile.TemporaryDirectory(prefix="edgetun-ca-") as folder:
            ca = DevelopmentCA(folder, clock=self._clock)
            return to_data({"ca.crt": ca.ca_pem, "ca.key": (Path(folder) / "ca.key").read_bytes()})

    def issue_leaf(self, names: Iterable[str]) -> dict[str, str]:
        """A certificate for these names, as the data of a Secret of type kubernetes.io/tls."""
        with tempfile.TemporaryDirectory(prefix="edgetun-ca-") as name:
            folder = Path(name)
            (folder / "ca.pem").write_bytes(self._signs_pem)
            (folder / "ca.key").touch(0o600)
            (folder / "ca.key").write_bytes(self._key_pem)
            cert_pem, key_pem = DevelopmentCA(folder, clock=self._clock).issue(names)
        # Behind it what leads from the CA before to this one, for those who trust only that.
        return to_data({"tls.crt": cert_pem + self._cross_pem, "tls.key": key_pem, "ca.crt": self.ca_pem.encode()})

    def is_good(self, secret: Object, names: Iterable[str], now: float) -> bool:
        """Whether the Secret's certificate is ours, for exactly these names, and good for a while yet."""
        facts = describe_certificate(secret)
        return (
            facts is not None
            and facts.names == frozenset(canonical_names(names))
            and facts.issuer_key == self._key_identifier
            and not is_renewal_due(facts.begins, facts.ends, now)
        )

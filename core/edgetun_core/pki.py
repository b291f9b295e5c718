"""Certificates: whom a dialler trusts, what a listener shows, and a CA of one's own for development.

A warm start reads two files and imports nothing heavy: `cryptography` is imported only where a certificate is made, and a
made leaf is kept beside its CA with its names and end date in plain text before the PEM.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import ipaddress
import os
import re
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetun_core.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

DAY_S = 24 * 3600
CA_TTL_S = 3650 * DAY_S
LEAF_TTL_S = 90 * DAY_S
CLOCK_SKEW_S = 3600
"""Certificates begin this much in the past, so that a peer whose clock is a little behind accepts them."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.+?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


@dataclass(frozen=True, slots=True)
class Trust:
    """Which servers a dialler believes.

    `ca_pem` trusts only these CAs, None the system's; `insecure` accepts any certificate and any name, and is only for
    somebody who asked for it.
    """

    ca_pem: bytes | None = None
    insecure: bool = False

    def ssl_context(self, alpn: Iterable[str] = ()) -> ssl.SSLContext:
        """A client context, TLS 1.3 only. Raises `ConfigError` when `ca_pem` holds no certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif self.ca_pem is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        else:
            try:
                context.load_verify_locations(cadata=self.ca_pem.decode("ascii"))
            except (ssl.SSLError, ValueError) as error:
                raise ConfigError(
                    "the CA certificate to trust cannot be read", remedy="give a PEM file with BEGIN CERTIFICATE in it"
                ) from error
        protocols = list(alpn)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context


def certificates_der(pem: bytes) -> list[bytes]:
    """The certificates of a PEM text, in order, as DER."""
    return [base64.b64decode(match.group(1)) for match in _CERTIFICATE.finditer(pem)]


def first_certificate(pem: bytes) -> bytes:
    """The first certificate of a PEM text alone; empty when there is none."""
    found = _CERTIFICATE.search(pem)
    return found.group(0) + b"\n" if found is not None else b""


def fingerprint(ca_pem: bytes) -> str:
    """SHA-256 over the DER of the first certificate in `ca_pem`, in hex. Raises `ConfigError` when there is none."""
    found = certificates_der(ca_pem)
    if not found:
        raise ConfigError("no certificate in this PEM text", remedy="give one that holds BEGIN CERTIFICATE")
    return hashlib.sha256(found[0]).hexdigest()


def ca_with_fingerprint(chain_der: Iterable[bytes], wanted: str) -> bytes | None:
    """The certificate of a chain that has this fingerprint, as PEM; what pins a CA that came over an unverified link."""
    for der in chain_der:
        if hashlib.sha256(der).hexdigest() == wanted:
            return ssl.DER_cert_to_PEM_cert(der).encode()
    return None


class ServerIdentity:
    """A certificate chain with its key as listeners show it; replaceable while they run.

    Engines ask for it per handshake: `version` tells them when what they prepared is old. Links that stand are untouched.
    """

    __slots__ = ("_contexts", "_files", "cert_pem", "key_pem", "version")

    def __init__(self, cert_pem: bytes, key_pem: bytes) -> None:
        """Raises `ConfigError` when the two cannot be read or do not belong together."""
        self._files: tuple[Path, Path] | None = None
        self._contexts: dict[tuple[str, ...], ssl.SSLContext] = {}
        self.cert_pem = b""
        self.key_pem = b""
        self.version = 0
        self.replace(cert_pem, key_pem)

    @classmethod
    def from_files(cls, cert_file: str | Path, key_file: str | Path) -> ServerIdentity:
        """Reads both files now, and again whenever `reload` is called."""
        files = Path(cert_file), Path(key_file)
        identity = cls(*_read_pair(files))
        identity._files = files
        return identity

    def replace(self, cert_pem: bytes, key_pem: bytes) -> None:
        """Shows another certificate from the next handshake on. Raises `ConfigError` and keeps the old one when it is bad."""
        context = _server_context(cert_pem, key_pem, self._name())
        self.cert_pem = cert_pem
        self.key_pem = key_pem
        self._contexts = {(): context}
        self.version += 1

    def reload(self) -> bool:
        """Reads the files again; True when they had changed. Raises `ConfigError` and keeps the old ones when they are bad."""
        if self._files is None:
            return False
        cert_pem, key_pem = _read_pair(self._files)
        if cert_pem == self.cert_pem and key_pem == self.key_pem:
            return False
        self.replace(cert_pem, key_pem)
        return True

    def ssl_context(self, alpn: Iterable[str] = ()) -> ssl.SSLContext:
        """A server context of the present certificate, TLS 1.3 only; shared by those who ask for the same protocols."""
        protocols = tuple(alpn)
        context = self._contexts.get(protocols)
        if context is None:
            context = _server_context(self.cert_pem, self.key_pem, self._name())
            context.set_alpn_protocols(list(protocols))
            self._contexts[protocols] = context
        return context

    def _name(self) -> str:
        return f"certificate {self._files[0]}" if self._files is not None else "server certificate"


def _read_pair(files: tuple[Path, Path]) -> tuple[bytes, bytes]:
    try:
        return files[0].read_bytes(), files[1].read_bytes()
    except OSError as error:
        raise ConfigError(
            f"certificate {error.filename}: {error.strerror}", remedy="check the path and who may read it"
        ) from error


def _server_context(cert_pem: bytes, key_pem: bytes, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The ssl module reads certificates from files only; the key leaves no trace on disk when the file has no name.
    with _nameless_file(key_pem.rstrip() + b"\n" + cert_pem) as path:
        try:
            context.load_cert_chain(path)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", "") or str(error)
            what = (
                "the key does not belong to the certificate"
                if "KEY_VALUES_MISMATCH" in reason
                else "is not a PEM certificate with an unencrypted PEM key"
            )
            raise ConfigError(f"{name}: {what}", remedy="give the pair that was issued together") from error
    return context


def load_chain(context: ssl.SSLContext, cert_pem: bytes, key_pem: bytes) -> None:
    """Lets a context show this certificate, also a client's. Raises `ConfigError`."""
    with _nameless_file(key_pem.rstrip() + b"\n" + cert_pem) as path:
        try:
            context.load_cert_chain(path)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"the certificate and its key cannot be used: {error}") from error


@contextlib.contextmanager
def _nameless_file(content: bytes) -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("pem", os.MFD_CLOEXEC)
        try:
            os.write(fd, content)
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name


class DevelopmentCA:
    """A certificate authority in a folder, made on first use: `ca.pem` to hand out, `ca.key` (0600) to keep.

    Several processes may use one folder: a lock file guards the making, and files appear whole or not at all. Issued leaves
    that were asked for by `identity` are kept beside them (0600) and replaced when a third of their time is left.
    """

    def __init__(self, folder: str | Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = Path(folder)
        self._clock = clock
        self._ca_pem: bytes | None = None

    @property
    def certificate_file(self) -> Path:
        """What people import into a browser."""
        return self._folder / "ca.pem"

    @property
    def ca_pem(self) -> bytes:
        """The CA's certificate. Raises `ConfigError` when the folder cannot be used."""
        if self._ca_pem is None:
            if not self.certificate_file.exists():
                self._create()
            self._ca_pem = _read(self.certificate_file)
        return self._ca_pem

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA's certificate in hex."""
        return fingerprint(self.ca_pem)

    @property
    def trust(self) -> Trust:
        """Trust in this CA and no other."""
        return Trust(ca_pem=self.ca_pem)

    def identity(self, names: Iterable[str], ttl_s: float = LEAF_TTL_S) -> ServerIdentity:
        """A server identity for these names, from the folder when one is there and good for a while yet."""
        return ServerIdentity(*self.leaf(names, ttl_s))

    def leaf(self, names: Iterable[str], ttl_s: float = LEAF_TTL_S) -> tuple[bytes, bytes]:
        """`(cert_pem, key_pem)` for these names, kept in the folder; a new one when a third of its time or less is left."""
        wanted = canonical_names(names)
        file = self._folder / f"leaf-{hashlib.sha256(','.join(wanted).encode()).hexdigest()[:16]}.pem"
        ca = self.fingerprint
        kept = _read_leaf(file, ca, wanted)
        if kept is not None and not is_renewal_due(kept.begins, kept.ends, self._clock()):
            return kept.cert_pem, kept.key_pem
        cert_pem, key_pem = self.issue(wanted, ttl_s)
        begins = int(self._clock())
        ends = int(min(begins + ttl_s, self._ca_ends()))
        header = f"names: {','.join(wanted)}\nissuer: {ca}\nbegins: {begins}\nends: {ends}\n".encode()
        _write_whole(file, header + key_pem + cert_pem, 0o600)
        return cert_pem, key_pem

    def issue(self, names: Iterable[str], ttl_s: float = LEAF_TTL_S) -> tuple[bytes, bytes]:
        """Makes `(cert_pem, key_pem)` for DNS names (also `*.name`) and IP addresses; never outlives the CA itself."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        wanted = canonical_names(names)
        ca_certificate = x509.load_pem_x509_certificate(self.ca_pem)
        ca_key = serialization.load_pem_private_key(_read(self._folder / "ca.key"), None)
        assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock()
        ends = min(now + ttl_s, ca_certificate.not_valid_after_utc.timestamp())
        certificate = (
            _builder(key, now, ends)
            # Names longer than 64 characters do not fit a common name (RFC 5280 §A.1); nobody matches it anyway.
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted[0][:64])]))
            .issuer_name(ca_certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in wanted]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)

    def renew(self) -> bool:
        """Makes a new CA when a third of its time or less is left; True when it did. Who trusted the old one must learn it."""
        self.ca_pem  # noqa: B018 - makes the first one
        ends = self._ca_ends()
        if not is_renewal_due(ends - CA_TTL_S, ends, self._clock()):
            return False
        self._create(replace=self.ca_pem)
        return True

    def _ca_ends(self) -> float:
        from cryptography import x509

        return x509.load_pem_x509_certificate(self.ca_pem).not_valid_after_utc.timestamp()

    def _create(self, replace: bytes | None = None) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"certificate folder {self._folder}: {error.strerror}", remedy="choose a folder that can be written"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.certificate_file
            if not file.exists() or file.read_bytes() == replace:
                self._make_ca()
            self._ca_pem = None
        finally:
            os.close(lock)

    def _make_ca(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        serial = os.urandom(4).hex()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgetun development CA {serial}")])
        now = self._clock()
        certificate = (
            _builder(key, now, now + CA_TTL_S)
            .subject_name(name)
            .issuer_name(name)
            # 1: a CA may vouch for its successor
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        # The key first: whoever sees the certificate may rely on the key.
        _write_whole(self._folder / "ca.key", _key_pem(key), 0o600)
        _write_whole(self.certificate_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def is_renewal_due(begins: float, ends: float, now: float) -> bool:
    """True when a third of a certificate's time or less is left, or when the clock stands before its beginning."""
    return now > ends - (ends - begins) / 3 or now < begins - CLOCK_SKEW_S


def canonical_names(names: Iterable[str]) -> tuple[str, ...]:
    """Host names in lower case (IDNA as `xn--`), IP addresses in their short form, each once, sorted but for the first.

    Raises `ConfigError` for what is neither, and for no name at all.
    """
    found: dict[str, None] = {}
    for name in names:
        found[_canonical_name(name)] = None
    if not found:
        raise ConfigError("a certificate needs at least one name", remedy="give a host name or an IP address")
    first, *rest = found
    return (first, *sorted(rest))


def _canonical_name(name: str) -> str:
    text = name.strip().lower().rstrip(".")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(text.strip("[]")))
    wildcard, host = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    with contextlib.suppress(UnicodeError):
        host = host.encode("idna").decode("ascii")
    if len(host) > 253 or not host or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise ConfigError(
            f'"{name}" is neither a host name nor an IP address', remedy="write name.example or 192.0.2.1"
        )
    return wildcard + host


@dataclass(frozen=True, slots=True)
class _KeptLeaf:
    cert_pem: bytes
    key_pem: bytes
    begins: float
    ends: float


def _read_leaf(file: Path, issuer: str, names: tuple[str, ...]) -> _KeptLeaf | None:
    """A kept leaf, or None when there is none of this CA for these names (also when the file is damaged)."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    header, _, _ = content.partition(b"-----BEGIN")
    fields = dict(line.split(": ", 1) for line in header.decode("latin-1").splitlines() if ": " in line)
    key = _KEY.search(content)
    certificate = _CERTIFICATE.search(content)
    if fields.get("issuer") != issuer or fields.get("names") != ",".join(names) or key is None or certificate is None:
        return None
    try:
        return _KeptLeaf(certificate.group(0) + b"\n", key.group(0), float(fields["begins"]), float(fields["ends"]))
    except (KeyError, ValueError):
        return None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"certificate file {file}: {error.strerror}", remedy="check the folder and who may read it"
        ) from error


def _write_whole(file: Path, content: bytes, mode: int) -> None:
    """Writes so that a reader sees the old content or the new, never a part, and never with wider rights than `mode`."""
    try:
        fd, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # 0600 from the start
    except OSError as error:
        raise ConfigError(
            f"certificate folder {file.parent}: {error.strerror}", remedy="choose a folder that can be written"
        ) from error
    try:
        with os.fdopen(fd, "wb") as handle:
            handle.write(content)
            os.fchmod(handle.fileno(), mode)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def _builder(key: ec.EllipticCurvePrivateKey, begins: float, ends: float) -> x509.CertificateBuilder:
    from datetime import UTC, datetime

    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(begins - CLOCK_SKEW_S), UTC))
        .not_valid_after(datetime.fromtimestamp(int(ends), UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

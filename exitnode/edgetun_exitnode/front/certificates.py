"""Which certificate a visitor is shown: by server name, from files that may change under us, or made for development.

One `ssl.SSLContext` lives as long as the store and holds the session ticket keys; for the chosen name each handshake switches
to that certificate's context, so a reload neither cuts a connection nor spoils a ticket.
"""

from __future__ import annotations

import re
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgetun_core.errors import ConfigError
from edgetun_core.memo import Memo
from edgetun_core.pki import DevelopmentCA, ServerIdentity, certificates_der

ALPN_PROTOCOLS: Final = ("h2", "http/1.1")
"""What the TLS front speaks, in order of preference."""

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_DEVELOPMENT_NAMES: Final = ("localhost", "*.localhost", "127.0.0.1", "::1")
_REMAKE_AFTER_S: Final = 12 * 3600.0
_SNI: Final = "edgetun_sni"


class NameSet:
    """DNS names of a certificate, wildcards included (RFC 6125 §6.4.3: the whole leftmost label and no more)."""

    __slots__ = ("exact", "parents")

    def __init__(self, names: Iterable[str]) -> None:
        lowered = [name.lower().rstrip(".") for name in names]
        self.exact = frozenset(name for name in lowered if not name.startswith("*."))
        self.parents = frozenset(name[2:] for name in lowered if name.startswith("*."))

    def covers(self, host: str) -> bool:
        return host in self.exact or (bool(self.parents) and host.partition(".")[2] in self.parents)


class Certificate:
    """One certificate of the store; `prepared` is for whoever needs it in another form than OpenSSL's (QUIC does)."""

    __slots__ = ("context", "identity", "made_at", "names", "prepared")

    def __init__(self, identity: ServerIdentity, names: Iterable[str], made_at: float = 0.0) -> None:
        self.identity = identity
        self.prepared: object | None = None
        self.context = identity.ssl_context()  # nobody else has this identity, so its context is ours to set up
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(ALPN_PROTOCOLS)
        self.names = NameSet(names)
        self.made_at = made_at


@dataclass(slots=True)
class _FilePair:
    cert_file: Path
    key_file: Path
    stamp: tuple[int, ...] = ()
    certificate: Certificate | None = None


class CertificateStore:
    """Certificates from files, looked up by exact name and then by wildcard; a development CA for the rest, if given.

    `may_issue` bounds for which names the development CA makes a certificate. For an unknown name the handshake ends with
    `unrecognized_name` (RFC 6066 §3) unless `default_for_unknown`: then the first certificate is shown. A visitor who names no
    server gets the first certificate of the files, or a development one for localhost.
    """

    def __init__(
        self,
        files: Sequence[tuple[str | Path, str | Path]] = (),
        *,
        development: DevelopmentCA | None = None,
        may_issue: Callable[[str], bool] | None = None,
        default_for_unknown: bool = False,
    ) -> None:
        self._pairs = [_FilePair(Path(cert_file), Path(key_file)) for cert_file, key_file in files]
        self._development = development
        self._may_issue = may_issue or _is_local
        self._default_for_unknown = default_for_unknown
        self._exact: dict[str, Certificate] = {}
        self._wildcard: dict[str, Certificate] = {}
        self._made: Memo[str, Certificate] = Memo(256)
        if not self._pairs and development is None:
            raise ConfigError(
                "HTTPS needs a certificate", remedy="give certificate and key files, or allow the development CA"
            )
        for pair in self._pairs:
            self._load(pair)
        self._index()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(ALPN_PROTOCOLS)
        # A second ticket costs a tenth of a handshake and serves only who opens two resumed connections of one.
        self.context.num_tickets = 1
        self.context.sni_callback = self._on_client_hello

    @classmethod
    def build(
        cls,
        files: Iterable[tuple[Path, Path]],
        *,
        development_ca: Path | None = None,
        may_issue: Callable[[str], bool] | None = None,
    ) -> CertificateStore:
        """A store of these certificate and key files, with the development CA of a folder for other names if one is given."""
        development = DevelopmentCA(development_ca) if development_ca is not None else None
        return cls(tuple(files), development=development, may_issue=may_issue)

    def reload(self) -> list[str]:
        """Reads every file again; returns what is wrong, in words. What cannot be read stays as it was."""
        for pair in self._pairs:
            pair.stamp = ()
        return self.reload_changed()

    def reload_changed(self) -> list[str]:
        """Reads the files that changed since they were last read. Called now and then by the front."""
        problems: list[str] = []
        for pair in self._pairs:
            if _stamp(pair) == pair.stamp:
                continue
            try:
                self._load(pair)
            except ConfigError as error:
                # A pair that is being replaced is inconsistent for a moment; it is tried again when it changes again.
                problems.append(f"{error}; until then the old certificate stays")
        self._index()
        return problems

    def covers_both(self, sni: str, host: str) -> bool:
        """Whether the certificate shown for `sni` vouches for `host` as well."""
        certificate = self.choose(sni)
        return certificate is not None and certificate.names.covers(host)

    def shared_secret(self) -> bytes:
        """Key bytes that every node with the same certificate files has, to derive other keys from; empty without files."""
        certificate = self._pairs[0].certificate if self._pairs else None
        return certificate.identity.key_pem if certificate is not None else b""

    def approves(self, sni: str, authority: bytes) -> bool:
        """RFC 9110 §7.4: a host other than the one the connection was made for only if one certificate vouches for both."""
        if not sni:
            return True
        host = authority.decode("ascii", "replace")
        if not host.endswith("]"):
            host = host.rpartition(":")[0] or host
        host = host.rstrip(".")
        return host == sni or self.covers_both(sni, host)

    def _load(self, pair: _FilePair) -> None:
        pair.stamp = _stamp(pair)
        try:
            identity = ServerIdentity.from_files(pair.cert_file, pair.key_file)
            names = _names_of(identity.cert_pem)
        except (ConfigError, ValueError) as error:
            message = error.message if isinstance(error, ConfigError) else "its names cannot be read"
            raise ConfigError(
                f"{pair.cert_file} with {pair.key_file}: {message}",
                remedy="give a PEM certificate chain and the unencrypted PEM key that belongs to it",
            ) from error
        pair.certificate = Certificate(identity, names)

    def _index(self) -> None:
        self._exact = {}
        self._wildcard = {}
        for pair in reversed(self._pairs):
            if pair.certificate is not None:
                self._exact.update(dict.fromkeys(pair.certificate.names.exact, pair.certificate))
                self._wildcard.update(dict.fromkeys(pair.certificate.names.parents, pair.certificate))

    def choose(self, name: str) -> Certificate | None:
        """The certificate for a server name (lower case, empty when none was given), or None; may raise ConfigError."""
        if not name:
            return self._default()
        certificate = self._exact.get(name) or self._wildcard.get(name.partition(".")[2])
        if certificate is None and self._development is not None:
            certificate = self._issue(name)
        if certificate is None and self._default_for_unknown:
            certificate = self._default()
        return certificate

    def _default(self) -> Certificate | None:
        if self._pairs:
            return self._pairs[0].certificate
        return self._issue("localhost")

    def _issue(self, name: str) -> Certificate | None:
        """A development certificate: from the memo, from the CA's folder, or made now (under a millisecond)."""
        if self._development is None:
            return None
        is_local = name in ("localhost", "127.0.0.1", "::1")
        if not is_local and (not _HOST_NAME.fullmatch(name) or not self._may_issue(name)):
            return None
        known = self._made.get(name)
        now = time.monotonic()
        if known is None or now - known.made_at > _REMAKE_AFTER_S:
            names = _DEVELOPMENT_NAMES if is_local else (name,)
            known = Certificate(self._development.identity(names), names, now)
            self._made.put(name, known)
        return known

    def _on_client_hello(self, tls: ssl.SSLObject, server_name: str | None, _context: ssl.SSLContext) -> int | None:
        name = (server_name or "").lower().rstrip(".")
        try:
            certificate = self.choose(name)
        except ConfigError:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        if certificate is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        tls.context = certificate.context
        setattr(tls, _SNI, sys.intern(name))  # visitors of one host share it
        return None


def sni_of(tls: ssl.SSLObject | None) -> str:
    """The server name that the visitor asked for, lower case, or the empty string."""
    name = getattr(tls, _SNI, "")
    return name if isinstance(name, str) else ""


def _is_local(name: str) -> bool:
    return name.endswith(".localhost")


def _stamp(pair: _FilePair) -> tuple[int, ...]:
    try:
        stats = [path.stat() for path in (pair.cert_file, pair.key_file)]
    except OSError:
        return (0,)
    return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_ino, stat.st_size))


def _names_of(cert_pem: bytes) -> list[str]:
    """The names that the first certificate of a chain vouches for (subjectAltName, RFC 5280 §4.2.1.6)."""
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(certificates_der(cert_pem)[0])
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    ]

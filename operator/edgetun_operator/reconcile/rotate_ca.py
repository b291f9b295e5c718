"""The steps of a CA's rotation, as new data of the Secret `edgetun-ca`. When to take them, `decide.ca` says. Blocks; use threads."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetun_cluster.kinds import Object
from edgetun_cluster.system_secrets import secret_data, to_data
from edgetun_core.errors import ConfigError
from edgetun_core.pki import CLOCK_SKEW_S, DevelopmentCA, certificates_der, first_certificate
from edgetun_operator.decide.ca import RETIRE, ROTATE, SINCE, CaSeen, Step

if TYPE_CHECKING:
    from cryptography import x509


def see_ca(secret: Mapping[str, Any]) -> CaSeen:
    """What decides about the rotation. Raises `ConfigError` when there is no CA in the Secret."""
    data = secret_data(secret)
    notes = secret["metadata"].get("annotations") or {}
    signs, *old = _certificates(data.get("ca.crt", b""))
    introduced = 0.0
    with contextlib.suppress(ValueError):
        introduced = float(notes.get(SINCE) or 0.0)
    has_next = bool(data.get("next.key"))
    ends = signs.not_valid_after_utc.timestamp()
    return CaSeen(
        ends,
        ends - signs.not_valid_before_utc.timestamp(),
        notes.get(ROTATE) or "",
        notes.get(RETIRE) or "",
        has_next,
        introduced,
        () if has_next else tuple(one.not_valid_after_utc.timestamp() for one in old),
    )


def take_step(secret: Object, step: Step, now: float, clock: Callable[[], float] = time.time) -> Object:
    """The Secret after the step; to be written with the version that was read."""
    data = secret_data(secret)
    meta = dict(secret["metadata"])
    notes = dict(meta.get("annotations") or {})
    match step:
        case "introduce":
            with tempfile.TemporaryDirectory(prefix="edgetun-ca-") as folder:
                successor = DevelopmentCA(folder, clock=clock)
                data["ca.crt"] += successor.ca_pem
                data["next.crt"] = successor.ca_pem
                data["next.key"] = (Path(folder) / "ca.key").read_bytes()
            notes[SINCE] = str(int(now))
            if notes.get(ROTATE) != "now":
                notes.pop(ROTATE, None)
        case "switch":
            old_pem, next_pem = first_certificate(data["ca.crt"]), data.pop("next.crt")
            others = data["ca.crt"].replace(next_pem, b"").replace(old_pem, b"")
            data["cross.crt"] = cross_sign(next_pem, old_pem, data["ca.key"], now) + data.get("cross.crt", b"")
            data["ca.crt"] = next_pem + old_pem + others
            data["ca.key"] = data.pop("next.key")
            for note in (SINCE, ROTATE):
                notes.pop(note, None)
        case "retire":
            data["ca.crt"] = first_certificate(data["ca.crt"])
            data.pop("cross.crt", None)
            notes.pop(RETIRE, None)
    meta["annotations"] = notes
    return {**secret, "metadata": meta, "data": to_data(data)}


def cross_sign(next_pem: bytes, old_pem: bytes, old_key_pem: bytes, now: float) -> bytes:
    """The next CA's key, certified by the old one: who trusts only the old one trusts what the next one signs, by this."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    successor, old = (x509.load_pem_x509_certificate(pem) for pem in (next_pem, old_pem))
    key = serialization.load_pem_private_key(old_key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the CA has no elliptic-curve key", remedy="rotate by hand: new tokens, then a new CA")
    builder = (
        x509.CertificateBuilder()
        .subject_name(successor.subject)
        .issuer_name(old.subject)
        .public_key(successor.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(now - CLOCK_SKEW_S), UTC))
        .not_valid_after(min(old.not_valid_after_utc, successor.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(successor.extensions.get_extension_for_class(x509.KeyUsage).value, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(successor.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _certificates(pem: bytes) -> list[x509.Certificate]:
    from cryptography import x509

    try:
        found = [x509.load_der_x509_certificate(der) for der in certificates_der(pem)]
    except ValueError:
        found = []
    if not found:
        raise ConfigError("Secret edgetun-ca holds no CA (ca.crt and ca.key)", remedy="restore it")
    return found

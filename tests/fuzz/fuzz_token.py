"""Hostile texts for the two parsers of proofs: cluster tokens and session credentials. Anything but a refusal is a bug."""

from __future__ import annotations

import base64
import zlib

from edgetun_core.credentials import ClusterToken, CredentialVerifier, SigningKey
from edgetun_core.errors import AuthError

_VERIFIER = CredentialVerifier([SigningKey("k1", bytes(32)).public])


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def fuzz(data: bytes) -> None:
    """Reads the bytes as each of them: as text, and as the content of a whole one."""
    sealed = "edgetun_" + _text(data + zlib.crc32(data).to_bytes(4, "big"))
    for text in (data.decode("latin-1"), "edgetun_" + data.decode("latin-1"), sealed):
        try:
            token = ClusterToken.parse(text)
        except AuthError:
            continue
        assert ClusterToken.parse(token.format()) == token
    for text in (data.decode("latin-1"), f"{_text(data)}.{_text(data[-64:])}"):
        try:
            _VERIFIER.verify(text, 0.0)
        except AuthError:
            continue
        raise AssertionError("a credential that nobody signed was accepted")

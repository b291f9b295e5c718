"""Address validation by Retry (RFC 9000 §8.1.2): tokens that only we can make, and the packet that carries one. And stateless
reset (§10.3): ending a connection whose state is gone, or was another process's.

A token holds where the client's first packet went and what the Retry said, sealed (AES-GCM) under a key of 16 bytes, and
bound to the client's address. Whoever has the key can check it, so a fleet that shares a key may take each other's tokens.
"""

from __future__ import annotations

import hmac
import os
import socket
from typing import TYPE_CHECKING, Final

from edgetun_core.transport.udp import Address

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN_LIFETIME_S: Final = 10.0
_NONCE_BYTES: Final = 12
_CID_BYTES: Final = 8
_MAX_TOKEN_BYTES: Final = 128

# RFC 9001 §5.8: key and nonce of the integrity tag of QUIC version 1.
_RETRY_KEY: Final = bytes.fromhex("be0c690b9f66575a1d766b54e368c84e")
_RETRY_NONCE: Final = bytes.fromhex("461599d35d632bf2239825bb")


class RetryTokens:
    """Makes and checks tokens. The newest key seals; the one before it still opens."""

    def __init__(self, secret: bytes = b"") -> None:
        """`secret` is what a fleet shares; without one the key is this object's own."""
        self._secrets: list[bytes] = []
        self._keys: list[AESGCM] = []
        self.renew(secret or os.urandom(32))

    def renew(self, secret: bytes) -> None:
        """Seals with a key derived of this secret from now on."""
        if self._secrets and self._secrets[0] == secret:
            return
        # Here and not above: most processes never see a handshake flood, and the library takes a while to load.
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        key = HKDF(hashes.SHA256(), 16, salt=None, info=b"edgetun quic retry token").derive(secret)
        self._secrets = [secret, *self._secrets][:2]
        self._keys = [AESGCM(key), *self._keys][:2]

    def make(self, address: Address, original_cid: bytes, retry_cid: bytes, wall_now: float) -> bytes:
        """A token for the client at this address, whose first packet went to `original_cid`."""
        nonce = os.urandom(_NONCE_BYTES)
        text = int(wall_now).to_bytes(6, "big") + retry_cid + original_cid
        return nonce + self._keys[0].encrypt(nonce, text, _bound_to(address))

    def open(self, address: Address, token: bytes, wall_now: float) -> tuple[bytes, bytes] | None:
        """The original destination connection id and the Retry's source connection id; None when the token is not good."""
        if not _NONCE_BYTES + 16 < len(token) <= _MAX_TOKEN_BYTES:
            return None
        from cryptography.exceptions import InvalidTag

        for key in self._keys:
            try:
                text = key.decrypt(token[:_NONCE_BYTES], token[_NONCE_BYTES:], _bound_to(address))
            except InvalidTag:
                continue
            age_s = wall_now - int.from_bytes(text[:6], "big")
            if not -TOKEN_LIFETIME_S <= age_s <= TOKEN_LIFETIME_S:
                return None
            return text[6 + _CID_BYTES :], text[6 : 6 + _CID_BYTES]
        return None


def _bound_to(address: Address) -> bytes:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    return socket.inet_pton(family, address[0].partition("%")[0]) + address[1].to_bytes(2, "big")


def retry_packet(client_cid: bytes, retry_cid: bytes, original_cid: bytes, token: bytes) -> bytes:
    """A Retry packet of QUIC version 1 (RFC 9000 §17.2.5) with its integrity tag (RFC 9001 §5.8)."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    packet = b"".join(
        (
            bytes((0xF0 | os.urandom(1)[0] & 0x0F,)),
            b"\x00\x00\x00\x01",
            bytes((len(client_cid),)),
            client_cid,
            bytes((len(retry_cid),)),
            retry_cid,
            token,
        )
    )
    pseudo = bytes((len(original_cid),)) + original_cid + packet
    return packet + AESGCM(_RETRY_KEY).encrypt(_RETRY_NONCE, b"", pseudo)


MIN_RESET_BYTES: Final = 21
MAX_RESET_BYTES: Final = 43


class ResetTokens:
    """Stateless reset tokens (RFC 9000 §10.3.2): whoever has the secret can end a connection that it knows nothing of."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"edgetun quic stateless reset", "sha256")

    def token(self, cid: bytes) -> bytes:
        """The token of a connection id: what a client is given for it, and what ends its connection."""
        return hmac.digest(self._key, cid, "sha256")[:16]

    def packet(self, cid: bytes, size_bytes: int) -> bytes | None:
        """A stateless reset in answer to a packet of this size, always smaller than it (§10.3.3); None when that is too small."""
        size = min(size_bytes - 1, MAX_RESET_BYTES)
        if size < MIN_RESET_BYTES:
            return None
        noise = os.urandom(size - 16)
        return bytes((0x40 | noise[0] & 0x3F,)) + noise[1:] + self.token(cid)


def initial_token(data: bytes) -> bytes | None:
    """The token of an Initial packet, empty when it has none; None when the packet is too short to say (RFC 9000 §17.2.2)."""
    at = 6 + data[5]
    if at >= len(data):
        return None
    at += 1 + data[at]
    if at >= len(data):
        return None
    size = 1 << (data[at] >> 6)
    length = int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1)
    token = data[at + size : at + size + length]
    return token if len(token) == length else None

"""What the server keeps of a cluster token: a hash of its secret, what the token may serve, and until when."""

from __future__ import annotations

import enum
import hashlib
import hmac
from typing import Final

from msgspec import Struct

_HASH_DOMAIN: Final = b"edgetun cluster token v1\0"


class TokenState(enum.Enum):
    """Whether a token counts at a moment."""

    LIVE = "live"
    EXPIRED = "expired"
    REVOKED = "revoked"


class TokenRecord(Struct, frozen=True, omit_defaults=True):
    """One token as control knows it. Times are seconds since the epoch; 0 means never.

    `tunnels` are patterns over `"namespace/name"` (`*` stands for any run of characters), `hostnames` patterns over hostnames
    (`*.` stands for exactly one more label, `*` alone for any name). Without either, the token may serve every tunnel of the
    server's manifests and claim names directly under the server's domain.
    """

    id: str
    secret_hash: str
    label: str = ""
    tunnels: tuple[str, ...] = ()
    hostnames: tuple[str, ...] = ()
    created: float = 0.0
    expires: float = 0.0
    revoked: float = 0.0

    def has_secret(self, secret: bytes) -> bool:
        """Whether the secret is this token's, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.secret_hash, hash_secret(self.id, secret))

    def state(self, now: float) -> TokenState:
        if self.revoked:
            return TokenState.REVOKED
        if self.expires and now >= self.expires:
            return TokenState.EXPIRED
        return TokenState.LIVE

    def may_serve_tunnel(self, tunnel_id: str) -> bool:
        """Whether the tunnel patterns allow it; none given allow every tunnel."""
        return not self.tunnels or any(tunnel_matches(pattern, tunnel_id) for pattern in self.tunnels)

    def may_serve_hostname(self, hostname: str) -> bool:
        """Whether the hostname patterns allow it; none given allow every hostname that a manifest names."""
        return not self.hostnames or any(hostname_matches(pattern, hostname) for pattern in self.hostnames)


def hash_secret(token_id: str, secret: bytes) -> str:
    """The hash kept on the server, in hex, salted with the id.

    One round of SHA-256 is enough here: the secret is 256 random bits, so there is nothing to guess and no need to be slow.
    """
    return hashlib.sha256(_HASH_DOMAIN + token_id.encode() + b"\0" + secret).hexdigest()


def tunnel_matches(pattern: str, tunnel_id: str) -> bool:
    """Whether `"namespace/name"` matches a pattern in which each `*` stands for any run of characters, also an empty one."""
    pieces = pattern.split("*")
    if len(pieces) == 1:
        return pattern == tunnel_id
    first, *middle, last = pieces
    if len(tunnel_id) < len(first) + len(last) or not tunnel_id.startswith(first) or not tunnel_id.endswith(last):
        return False
    at, end = len(first), len(tunnel_id) - len(last)
    for piece in middle:
        found = tunnel_id.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def hostname_matches(pattern: str, hostname: str) -> bool:
    """Whether a hostname matches `name`, `*.name` (exactly one more label, as in a certificate, RFC 6125 §6.4.3) or `*`."""
    if pattern == "*":
        return True
    pattern, hostname = pattern.lower(), hostname.lower()
    if pattern.startswith("*."):
        label, _, parent = hostname.partition(".")
        return bool(label) and parent == pattern[2:]
    return pattern == hostname

"""The session credential: what control signs for an agent, and every exit node checks offline.

Text form: base64url(claims as msgpack) + "." + base64url(Ed25519 signature), both without padding. The signature covers a
domain string and the claims' bytes as they were sent, so nothing is serialised again to check it. One hour long, because an
exit node that is cut off from control learns of a revocation no sooner than the credential ends.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from edgetun_core.errors import AuthError, ConfigError
from edgetun_core.memo import Memo
from edgetun_core.snapshot import CredentialKey, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CREDENTIAL_LIFETIME_S: Final = 3600.0
CLOCK_LEEWAY_S: Final = 60.0
CUT_OFF_GRACE_S: Final = 12 * 3600.0
"""How much longer a credential counts at an exit node that is cut off from control when it ends: nobody could renew it."""
"""How far two machines' clocks may differ before a credential is refused."""
MAX_CREDENTIAL_LENGTH: Final = 16 * 1024
"""Characters; some 200 services with long names."""

_DOMAIN: Final = b"edgetun session credential v1\0"
_SIGNATURE_BYTES: Final = 64


class CredentialInvalid(AuthError):
    """Not a credential, altered, or signed by a key that this exit node does not know."""


class CredentialKeyUnknown(CredentialInvalid):
    """Signed by a key that the present snapshot does not hold; the next one may."""


class CredentialExpired(AuthError):
    """Its hour is over; the agent should have renewed it."""


class CredentialRevoked(AuthError):
    """Its cluster token was revoked or has ended."""


class ClockSkewed(AuthError):
    """The credential begins in the future: the clocks of control and of this machine differ."""


class SessionCredential(Struct, frozen=True, array_like=True):
    """The claims. `services` are tunnel ids; times are seconds since the epoch."""

    key_id: str
    agent_id: str
    token_id: str
    services: tuple[str, ...]
    issued: float
    expires: float


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SessionCredential)


class SigningKey:
    """Control's private key. cryptography is imported when a key is made, not when this module is."""

    __slots__ = ("_private", "created", "key_id", "public")

    def __init__(self, key_id: str, seed: bytes, created: float = 0.0) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if len(seed) != 32:
            raise ConfigError(f"signing key {key_id}: an Ed25519 seed has 32 bytes, not {len(seed)}")
        self.key_id = key_id
        self.created = created
        self._private: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = CredentialKey(key_id, self._private.public_key().public_bytes_raw())
        """What goes into the snapshot."""

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigningKey) and other.public == self.public and other.created == self.created

    def __hash__(self) -> int:
        return hash(self.public)

    def sign(
        self,
        *,
        agent_id: str,
        token_id: str,
        services: Iterable[str],
        now: float,
        lifetime_s: float = CREDENTIAL_LIFETIME_S,
    ) -> str:
        """The text of a credential that is good from `now` for `lifetime_s` seconds."""
        claims = SessionCredential(self.key_id, agent_id, token_id, tuple(services), now, now + lifetime_s)
        body = _encoder.encode(claims)
        text = f"{_to_text(body)}.{_to_text(self._private.sign(_DOMAIN + body))}"
        if len(text) > MAX_CREDENTIAL_LENGTH:
            raise ConfigError(
                f"agent {agent_id} asks for {len(claims.services)} tunnels, more than one credential can name",
                remedy="let it ask for fewer, or run several agents",
            )
        return text


class CredentialVerifier:
    """Checks credentials against one snapshot's keys; the costly part (the signature, ~120 us) once per text.

    Bounded: at most `2 * capacity` texts are remembered, good ones only.
    """

    __slots__ = ("_keys", "_memo", "_revoked")

    def __init__(
        self, keys: Iterable[CredentialKey] = (), revoked_tokens: Iterable[str] = (), *, capacity: int = 4096
    ) -> None:
        self._memo: Memo[str, SessionCredential] = Memo(capacity)
        self._keys: tuple[CredentialKey, ...] = tuple(keys)
        self._revoked = frozenset(revoked_tokens)

    def update(self, snapshot: Snapshot) -> None:
        """Takes a new snapshot's keys and revocations; what was verified by a key that is gone is forgotten."""
        if snapshot.credential_keys != self._keys:
            self._memo.clear()
        self._keys = snapshot.credential_keys
        self._revoked = frozenset(snapshot.revoked_tokens)

    def verify(self, text: str, now: float, cut_off_since: float | None = None) -> SessionCredential:
        """Returns the claims of a credential that counts now. `cut_off_since`: from when on control could not be reached, if so.

        A credential whose life was cut short, since its token ends, is not prolonged.

        Raises `CredentialInvalid` (`CredentialKeyUnknown`), `CredentialExpired`, `CredentialRevoked` or `ClockSkewed`; messages never hold the text.
        """
        claims = self._memo.get(text)
        if claims is None:
            claims = self._verify_signature(text)
            self._memo.put(text, claims)
        if claims.token_id in self._revoked:
            raise CredentialRevoked(
                f"cluster token {claims.token_id} was revoked or has ended", remedy="ask for a new token"
            )
        if now < claims.issued - CLOCK_LEEWAY_S:
            ahead_s = round(claims.issued - now)
            raise ClockSkewed(
                f"the session credential begins {ahead_s} s in the future: the clocks of control and of this exit node differ"
                f" by at least that",
                remedy="set both machines' clocks (NTP)",
            )
        if now > claims.expires + CLOCK_LEEWAY_S + _prolonged_s(claims, cut_off_since):
            late_s = round(now - claims.expires)
            raise CredentialExpired(
                f"the session credential ended {late_s} s ago by this exit node's clock",
                remedy="let the agent reach control to renew it, and check both machines' clocks",
            )
        return claims

    def _verify_signature(self, text: str) -> SessionCredential:
        body, signature = _split(text)
        try:
            claims = _decoder.decode(body)
        except (ValueError, RecursionError):
            raise _not_a_credential() from None

        for key in self._keys:
            if key.key_id == claims.key_id:
                _check_signature(key, signature, body)
                return claims
        raise CredentialKeyUnknown(
            "the session credential is signed by a key that this exit node does not know",
            remedy="let the agent register again; if it stays, agent and exit node belong to different servers",
        )


def _prolonged_s(claims: SessionCredential, cut_off_since: float | None) -> float:
    if cut_off_since is None or claims.expires + CLOCK_LEEWAY_S < cut_off_since:
        return 0.0
    return CUT_OFF_GRACE_S if claims.expires - claims.issued >= 0.99 * CREDENTIAL_LIFETIME_S else 0.0


def _check_signature(key: CredentialKey, signature: bytes, body: bytes) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, _DOMAIN + body)
    except (InvalidSignature, ValueError):
        raise CredentialInvalid(
            "the session credential's signature is wrong", remedy="let the agent register again"
        ) from None


def _split(text: str) -> tuple[bytes, bytes]:
    if len(text) > MAX_CREDENTIAL_LENGTH:
        raise _not_a_credential()
    body_text, dot, signature_text = text.partition(".")
    body, signature = _from_text(body_text), _from_text(signature_text)
    if not dot or body is None or signature is None or len(signature) != _SIGNATURE_BYTES:
        raise _not_a_credential()
    return body, signature


def _not_a_credential() -> CredentialInvalid:
    return CredentialInvalid("this is not a session credential", remedy="let the agent register again")


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _from_text(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None

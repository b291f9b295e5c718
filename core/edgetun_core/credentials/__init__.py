"""The two proofs an agent holds: a cluster token (long-lived, for control) and a session credential (1 h, for exit nodes).

`cluster_token.py` is the token's text, `token_record.py` what the server keeps of it, `session_credential.py` the signed
claims that any exit node checks offline.
"""

from edgetun_core.credentials.cluster_token import ClusterToken, TokenUnreadable, redact_tokens
from edgetun_core.credentials.session_credential import (
    CLOCK_LEEWAY_S,
    CREDENTIAL_LIFETIME_S,
    CUT_OFF_GRACE_S,
    ClockSkewed,
    CredentialExpired,
    CredentialInvalid,
    CredentialKeyUnknown,
    CredentialRevoked,
    CredentialVerifier,
    SessionCredential,
    SigningKey,
)
from edgetun_core.credentials.token_record import TokenRecord, TokenState, hash_secret, hostname_matches, tunnel_matches

__all__ = [
    "CLOCK_LEEWAY_S",
    "CREDENTIAL_LIFETIME_S",
    "CUT_OFF_GRACE_S",
    "ClockSkewed",
    "ClusterToken",
    "CredentialExpired",
    "CredentialInvalid",
    "CredentialKeyUnknown",
    "CredentialRevoked",
    "CredentialVerifier",
    "SessionCredential",
    "SigningKey",
    "TokenRecord",
    "TokenState",
    "TokenUnreadable",
    "hash_secret",
    "hostname_matches",
    "redact_tokens",
    "tunnel_matches",
]

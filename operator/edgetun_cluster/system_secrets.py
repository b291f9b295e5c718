"""The Secrets of the system itself, in its namespace: their names and what is in them. The operator makes them, control reads them.

| Secret | keys |
| --- | --- |
| `edgetun-ca` | `ca.crt`, `ca.key`: the own CA; signs control's and exit nodes' certificates. Rotated when somebody asks for it: `ca.crt` then
holds the one that signs and those that are trusted still, `next.*` the next one, `cross.crt` what leads from the old one to the new |
| `edgetun-signing-keys` | `ID.json` each: the Ed25519 seeds that session credentials are signed with |
| `edgetun-control-tls` | `tls.crt`, `tls.key`, `ca.crt`: what control shows to agents and exit nodes |
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from edgetun_cluster.kinds import Object
from edgetun_core.credentials import SigningKey
from edgetun_core.errors import ConfigError

CA_SECRET: Final = "edgetun-ca"  # noqa: S105 - a name
SIGNING_KEYS_SECRET: Final = "edgetun-signing-keys"  # noqa: S105 - a name
CONTROL_TLS_SECRET: Final = "edgetun-control-tls"  # noqa: S105 - a name

TOKEN_KEY: Final = "token"  # noqa: S105 - a name
"""Key of the cluster token's text in the Secret of an AgentToken."""
EXIT_NODE_AUDIENCE: Final = "edgetun-control"
"""Audience of the ServiceAccount token by which an exit node shows control who it is."""

KEY_LIFETIME_S: Final = 30 * 86400.0
"""After this a new signing key is made."""
OLD_KEY_KEPT_S: Final = 2 * 3600.0
"""How long a key is still published after its successor came into use: longer than any credential lives."""


class SigningSeed(Struct, frozen=True):
    """A signing key as it stands in the Secret; `seed` is base64 there, `created` seconds since the epoch."""

    key_id: str
    seed: bytes
    created: float


def secret_data(secret: Mapping[str, Any]) -> dict[str, bytes]:
    """The decoded data of a Secret. Raises `ConfigError` when it is damaged."""
    try:
        return {key: base64.b64decode(value, validate=True) for key, value in (secret.get("data") or {}).items()}
    except (binascii.Error, TypeError, ValueError) as error:
        raise ConfigError(f"Secret {secret['metadata'].get('name')}: its data is no base64") from error


def to_data(values: Mapping[str, bytes]) -> dict[str, str]:
    """Values as a Secret's `data`."""
    return {key: base64.b64encode(value).decode("ascii") for key, value in values.items()}


def signing_seeds(secret: Mapping[str, Any]) -> tuple[SigningSeed, ...]:
    """From old to new. What cannot be read is left out."""
    found = []
    for name, value in secret_data(secret).items():
        if not name.endswith(".json"):
            continue
        try:
            seed = msgspec.json.decode(value, type=SigningSeed)
        except (msgspec.MsgspecError, ValueError):
            continue
        if len(seed.seed) == 32:
            found.append(seed)
    return tuple(sorted(found, key=lambda seed: (seed.created, seed.key_id)))


def signing_keys(secret: Mapping[str, Any]) -> tuple[SigningKey, ...]:
    """The keys of `edgetun-signing-keys`, from old to new."""
    return tuple(SigningKey(seed.key_id, seed.seed, seed.created) for seed in signing_seeds(secret))


def rotate_seeds(
    seeds: tuple[SigningSeed, ...], now: float, random_bytes: Callable[[int], bytes]
) -> tuple[SigningSeed, ...]:
    """The first key, or the next one when the newest has grown old, without those that were replaced long ago."""
    kept = tuple(
        seed
        for seed, successor in itertools.zip_longest(seeds, seeds[1:])
        if successor is None or successor.created + OLD_KEY_KEPT_S >= now
    )
    if not kept or kept[-1].created + KEY_LIFETIME_S < now:
        kept = (*kept, SigningSeed(random_bytes(4).hex(), random_bytes(32), now))
    return kept


def seeds_to_data(seeds: tuple[SigningSeed, ...]) -> dict[str, str]:
    """As `data` of `edgetun-signing-keys`."""
    return to_data({f"{seed.key_id}.json": msgspec.json.encode(seed) for seed in seeds})


def system_secret(name: str, namespace: str, data: Mapping[str, str], type_: str = "Opaque") -> Object:
    """The Secret object."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "edgetun", "app.kubernetes.io/managed-by": "edgetun-operator"},
        },
        "type": type_,
        "data": dict(data),
    }

"""Names a snapshot by its content, without its version: equal content, equal name, whichever process works it out.

Replicas of control that hold the same resources so make the same names without speaking to each other, and an exit node may resume
at any of them. Tunnels are hashed in buckets and buckets in groups, so that what one changed tunnel costs does not grow with their number
before there are tens of thousands.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from typing import Final

import msgspec

from edgetun_core.snapshot import Snapshot, TunnelRule, encode_snapshot

BUCKETS: Final = 4096
GROUP: Final = 64
"""Buckets of a group."""
_NOTHING: Final = bytes(16)

_encoder = msgspec.msgpack.Encoder()


class RuleHashes:
    """A set of tunnels by id, and their hashes, kept up to date change by change."""

    __slots__ = ("_buckets", "_count", "_groups", "_hashes", "_stale")

    def __init__(self, tunnels: Iterable[TunnelRule] = ()) -> None:
        self._buckets: dict[int, dict[str, TunnelRule]] = {}
        self._hashes: list[bytes] = [_NOTHING] * BUCKETS
        self._groups: list[bytes] = [_NOTHING] * (BUCKETS // GROUP)
        self._stale: set[int] = set()
        self._count = 0
        for rule in tunnels:
            self.put(rule)

    def __len__(self) -> int:
        return self._count

    def get(self, tunnel_id: str) -> TunnelRule | None:
        """The rule of a tunnel, if it is there."""
        bucket = self._buckets.get(_bucket(tunnel_id))
        return bucket.get(tunnel_id) if bucket is not None else None

    def put(self, rule: TunnelRule) -> None:
        """Adds a tunnel or takes its new rule."""
        number = _bucket(rule.id)
        bucket = self._buckets.setdefault(number, {})
        self._count += rule.id not in bucket
        bucket[rule.id] = rule
        self._stale.add(number)

    def drop(self, tunnel_id: str) -> None:
        """Takes a tunnel out; one that is not there is fine."""
        number = _bucket(tunnel_id)
        bucket = self._buckets.get(number, {})
        if bucket.pop(tunnel_id, None) is not None:
            self._count -= 1
            self._stale.add(number)

    def sorted(self) -> tuple[TunnelRule, ...]:
        """All of them, by id."""
        return tuple(sorted((rule for bucket in self._buckets.values() for rule in bucket.values()), key=_id_of))

    def digest(self, snapshot: Snapshot) -> str:
        """The name of a snapshot that has these tunnels; of the snapshot itself only the rest is looked at."""
        groups = set()
        for number in self._stale:
            bucket = self._buckets.get(number)
            groups.add(number // GROUP)
            if not bucket:
                self._buckets.pop(number, None)
                self._hashes[number] = _NOTHING
                continue
            content = b"".join(_encoder.encode(bucket[tunnel_id]) for tunnel_id in sorted(bucket))
            self._hashes[number] = hashlib.blake2b(content, digest_size=16).digest()
        self._stale.clear()
        for group in groups:
            content = b"".join(self._hashes[group * GROUP : (group + 1) * GROUP])
            # However it became empty, an empty group is the same.
            self._groups[group] = hashlib.blake2b(content, digest_size=16).digest() if any(content) else _NOTHING
        rest = encode_snapshot(msgspec.structs.replace(snapshot, version=0, tunnels=()))
        return hashlib.blake2b(b"".join(self._groups) + rest, digest_size=12).hexdigest()


def snapshot_digest(snapshot: Snapshot) -> str:
    """Names the content: equal for equal tunnels, keys, revocations and limits, whatever the version. 10 ms for 10,000 tunnels."""
    return RuleHashes(snapshot.tunnels).digest(snapshot)


def _bucket(tunnel_id: str) -> int:
    return zlib.crc32(tunnel_id.encode()) % BUCKETS


def _id_of(rule: TunnelRule) -> str:
    return rule.id

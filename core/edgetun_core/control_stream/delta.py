"""The difference of two snapshots, and what comes of applying it: `apply_delta(a, diff_snapshots(a, b)) == b`. Pure.

A snapshot is named by a digest of its content, without its version: replicas of control that hold the same resources make the
same digests without speaking to each other, so an exit node may resume at any of them.
"""

from __future__ import annotations

import hashlib

import msgspec

from edgetun_core.control_stream.messages import Delta
from edgetun_core.errors import ProtocolError
from edgetun_core.snapshot import PoolRule, Snapshot, TunnelRule, encode_snapshot


class DeltaMismatch(ProtocolError):
    """The delta starts from another snapshot than the one that is there; only the whole helps."""


def snapshot_digest(snapshot: Snapshot) -> str:
    """Names the content: equal for equal tunnels, keys, revocations and limits, whatever the version. About 10 ms for 10,000 tunnels."""
    content = encode_snapshot(msgspec.structs.replace(snapshot, version=0))
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def diff_snapshots(old: Snapshot, new: Snapshot, *, base: str, digest: str) -> Delta:
    """What turns `old` (named `base`) into `new` (named `digest`). Both are of one pool and region."""
    if (old.pool, old.region) != (new.pool, new.region):
        raise ValueError(f"{old.pool}/{old.region} cannot become {new.pool}/{new.region}")
    before = {rule.id: rule for rule in old.tunnels}
    put: list[TunnelRule] = []
    for rule in new.tunnels:
        was = before.pop(rule.id, None)
        if was is not rule and was != rule:
            put.append(rule)
    was_revoked, is_revoked = set(old.revoked_tokens), set(new.revoked_tokens)
    return Delta(
        base=base,
        digest=digest,
        version=new.version,
        put=tuple(put),
        removed=tuple(sorted(before)),
        credential_keys=None if new.credential_keys == old.credential_keys else new.credential_keys,
        revoked=tuple(sorted(is_revoked - was_revoked)),
        unrevoked=tuple(sorted(was_revoked - is_revoked)),
        pool_rule=None if new.pool_rule == old.pool_rule else new.pool_rule,
    )


def apply_delta(old: Snapshot, old_digest: str, delta: Delta) -> Snapshot:
    """The snapshot after the delta. Raises `DeltaMismatch` when it does not start from `old`."""
    if delta.base != old_digest:
        raise DeltaMismatch(f"the delta starts from {delta.base}, and {old_digest or 'nothing'} is here")
    tunnels = old.tunnels
    if delta.put or delta.removed:
        rules = {rule.id: rule for rule in tunnels}
        for gone in delta.removed:
            rules.pop(gone, None)
        rules.update((rule.id, rule) for rule in delta.put)
        tunnels = tuple(sorted(rules.values(), key=_id_of))
    revoked = old.revoked_tokens
    if delta.revoked or delta.unrevoked:
        revoked = tuple(sorted((set(revoked) | set(delta.revoked)) - set(delta.unrevoked)))
    pool_rule: PoolRule = old.pool_rule if delta.pool_rule is None else delta.pool_rule
    return Snapshot(
        version=delta.version,
        pool=old.pool,
        region=old.region,
        tunnels=tunnels,
        credential_keys=old.credential_keys if delta.credential_keys is None else delta.credential_keys,
        revoked_tokens=revoked,
        pool_rule=pool_rule,
    )


def _id_of(rule: TunnelRule) -> str:
    return rule.id

"""The difference of two snapshots, and what comes of applying it: `apply_delta(a, diff_snapshots(a, b)) == b`. Pure.

Both cost what has changed, when it is known which tunnels may have: the rest of 10,000 is neither compared nor sorted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final

from edgetun_core.control_stream.messages import Delta
from edgetun_core.errors import ProtocolError
from edgetun_core.snapshot import PoolRule, Snapshot, TunnelRule

MANY: Final = 256
"""With more changes than this, sorting all tunnels once is cheaper than moving them aside for each."""


class DeltaMismatch(ProtocolError):
    """The delta starts from another snapshot than the one that is there; only the whole helps."""


def diff_snapshots(old: Snapshot, new: Snapshot, *, base: str, digest: str) -> Delta:
    """What turns `old` (named `base`) into `new` (named `digest`). Both are of one pool and region. Compares all tunnels."""
    changes = compare_rules({rule.id: rule for rule in old.tunnels}, new.tunnels)
    return build_delta(old, new, changes, base=base, digest=digest)


def compare_rules(before: Mapping[str, TunnelRule], tunnels: Iterable[TunnelRule]) -> dict[str, TunnelRule | None]:
    """The rules among `tunnels` that are others than before, and None for those that are gone."""
    gone = set(before)
    changes: dict[str, TunnelRule | None] = {}
    for rule in tunnels:
        gone.discard(rule.id)
        was = before.get(rule.id)
        if was is not rule and was != rule:
            changes[rule.id] = rule
    changes.update(dict.fromkeys(gone))
    return changes


def build_delta(
    old: Snapshot, new: Snapshot, changes: Mapping[str, TunnelRule | None], *, base: str, digest: str
) -> Delta:
    """The same where it is known how the tunnels differ: of the snapshots only the rest is looked at."""
    if (old.pool, old.region) != (new.pool, new.region):
        raise ValueError(f"{old.pool}/{old.region} cannot become {new.pool}/{new.region}")
    was_revoked, is_revoked = set(old.revoked_tokens), set(new.revoked_tokens)
    changed = sorted(changes.items())
    return Delta(
        base=base,
        digest=digest,
        version=new.version,
        put=tuple(rule for _, rule in changed if rule is not None),
        removed=tuple(tunnel_id for tunnel_id, rule in changed if rule is None),
        credential_keys=None if new.credential_keys == old.credential_keys else new.credential_keys,
        revoked=tuple(sorted(is_revoked - was_revoked)),
        unrevoked=tuple(sorted(was_revoked - is_revoked)),
        pool_rule=None if new.pool_rule == old.pool_rule else new.pool_rule,
    )


def apply_delta(old: Snapshot, old_digest: str, delta: Delta) -> Snapshot:
    """The snapshot after the delta. Raises `DeltaMismatch` when it does not start from `old`."""
    if delta.base != old_digest:
        raise DeltaMismatch(f"the delta starts from {delta.base}, and {old_digest or 'nothing'} is here")
    revoked = old.revoked_tokens
    if delta.revoked or delta.unrevoked:
        revoked = tuple(sorted((set(revoked) | set(delta.revoked)) - set(delta.unrevoked)))
    pool_rule: PoolRule = old.pool_rule if delta.pool_rule is None else delta.pool_rule
    return Snapshot(
        version=delta.version,
        pool=old.pool,
        region=old.region,
        tunnels=replace_rules(old.tunnels, delta.put, delta.removed),
        credential_keys=old.credential_keys if delta.credential_keys is None else delta.credential_keys,
        revoked_tokens=revoked,
        pool_rule=pool_rule,
    )


def replace_rules(
    tunnels: tuple[TunnelRule, ...], put: Iterable[TunnelRule], removed: Iterable[str]
) -> tuple[TunnelRule, ...]:
    """Tunnels with some rules put in and some taken out; sorted by id before and after."""
    put, removed = tuple(put), tuple(removed)
    if not put and not removed:
        return tunnels
    if len(put) + len(removed) > MANY:
        by_id = {rule.id: rule for rule in tunnels}
        for gone in removed:
            by_id.pop(gone, None)
        by_id.update((rule.id, rule) for rule in put)
        return tuple(sorted(by_id.values(), key=_id_of))
    after = list(tunnels)
    for gone in removed:
        at = bisect_left(after, gone, key=_id_of)
        if at < len(after) and after[at].id == gone:
            del after[at]
    for rule in put:
        at = bisect_left(after, rule.id, key=_id_of)
        if at < len(after) and after[at].id == rule.id:
            after[at] = rule
        else:
            after.insert(at, rule)
    return tuple(after)


def _id_of(rule: TunnelRule) -> str:
    return rule.id

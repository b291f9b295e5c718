"""The difference of two snapshots, and what comes of applying it: `apply_delta(a, diff_snapshots(a, b)) == b`. Pure.

Both cost what has changed, when it is known which tunnels may have: the rest of 10,000 is neither compared nor sorted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from edgetun_core.control_stream.messages import Delta
from edgetun_core.errors import ProtocolError
from edgetun_core.snapshot import PoolRule, Snapshot, TunnelRule, find_rule

MANY: Final = 256
"""With more changes than this, sorting all tunnels once is cheaper than moving them aside for each."""


class DeltaMismatch(ProtocolError):
    """The delta starts from another snapshot than the one that is there; only the whole helps."""


def diff_snapshots(
    old: Snapshot, new: Snapshot, *, base: str, digest: str, changed: Iterable[str] | None = None
) -> Delta:
    """What turns `old` (named `base`) into `new` (named `digest`). Both are of one pool and region.

    `changed` are the ids of at least all tunnels that differ; None when that is not known.
    """
    if (old.pool, old.region) != (new.pool, new.region):
        raise ValueError(f"{old.pool}/{old.region} cannot become {new.pool}/{new.region}")
    put, removed = _compare_all(old, new) if changed is None else _compare(old, new, changed)
    was_revoked, is_revoked = set(old.revoked_tokens), set(new.revoked_tokens)
    return Delta(
        base=base,
        digest=digest,
        version=new.version,
        put=tuple(put),
        removed=tuple(removed),
        credential_keys=None if new.credential_keys == old.credential_keys else new.credential_keys,
        revoked=tuple(sorted(is_revoked - was_revoked)),
        unrevoked=tuple(sorted(was_revoked - is_revoked)),
        pool_rule=None if new.pool_rule == old.pool_rule else new.pool_rule,
    )


def _compare_all(old: Snapshot, new: Snapshot) -> tuple[list[TunnelRule], list[str]]:
    before = {rule.id: rule for rule in old.tunnels}
    put: list[TunnelRule] = []
    for rule in new.tunnels:
        was = before.pop(rule.id, None)
        if was is not rule and was != rule:
            put.append(rule)
    return put, sorted(before)


def _compare(old: Snapshot, new: Snapshot, changed: Iterable[str]) -> tuple[list[TunnelRule], list[str]]:
    put: list[TunnelRule] = []
    removed: list[str] = []
    for tunnel_id in sorted(changed):
        was, rule = find_rule(old.tunnels, tunnel_id), find_rule(new.tunnels, tunnel_id)
        if rule is None:
            if was is not None:
                removed.append(tunnel_id)
        elif was is not rule and was != rule:
            put.append(rule)
    return put, removed


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

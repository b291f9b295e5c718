"""When the own CA is replaced by its successor, and how: nobody who trusts one of the two may meet the other unprepared. Pure.

1. *Introduce*: the next CA is made and told to all (exit nodes by their ConfigMap, agents with their next renewal); the present one signs.
2. *Switch*, when all have heard: the next one signs, and the present one vouches for it (a cross-signed certificate in what control
   shows), so tokens that pin the old CA stay good. New tokens pin the new one.
3. *Retire*: the old CA is forgotten when it has ended, or when somebody says so; tokens that pin it are worth nothing then.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

ROTATE: Final = "edgetun.dev/rotate-ca"
"""Annotation of `edgetun-ca`: `"true"` begins a rotation; `"now"` does not wait until all have heard."""
RETIRE: Final = "edgetun.dev/retire-old-ca"
"""Annotation of `edgetun-ca`: `"true"` forgets the old CA after a rotation."""
SINCE: Final = "edgetun.dev/ca-introduced"
"""Annotation that the operator writes: when the next CA was introduced, seconds since the epoch."""

HEARD_AFTER_S: Final = 2 * 3600.0
"""Agents renew within half an hour as a rule, and with an hour at most; exit nodes are rolled within minutes."""
RENEW_BEFORE_S: Final = 365 * 86400.0
"""A CA of edgetun's making (they last ten years) that ends within this time is rotated without being asked."""
MADE_TO_LAST_S: Final = 4 * RENEW_BEFORE_S

Step = Literal["introduce", "switch", "retire"]


class CaSeen(NamedTuple):
    """`edgetun-ca` as it stands. Times are seconds since the epoch."""

    ends: float
    lasts_s: float = 0.0
    rotate: str = ""
    retire: str = ""
    has_next: bool = False
    introduced: float = 0.0
    old_ends: tuple[float, ...] = ()
    """Of the CAs that were replaced and are trusted still."""


def decide_ca_step(seen: CaSeen, now: float) -> Step | None:
    """What to do now, if anything."""
    if seen.has_next:
        return "switch" if seen.rotate == "now" or now >= seen.introduced + HEARD_AFTER_S else None
    if seen.old_ends and (seen.retire == "true" or any(ends <= now for ends in seen.old_ends)):
        return "retire"
    is_old = seen.lasts_s > MADE_TO_LAST_S and seen.ends - now < RENEW_BEFORE_S
    return "introduce" if is_old or seen.rotate in ("true", "now") else None

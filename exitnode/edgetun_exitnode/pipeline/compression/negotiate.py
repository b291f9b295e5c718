"""Which content coding a visitor gets: `Accept-Encoding` with its quality values (RFC 9110 §12.5.3). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

MAX_MEMBERS: Final = 32
"""Members of a list beyond this are not looked at."""

_ALIASES: Final = {b"x-gzip": b"gzip"}
_WEIGHT: Final = re.compile(rb"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")


class Accepted(NamedTuple):
    """What a visitor accepts of what we offer.

    `codings` are the acceptable ones, the best first; `identity` tells whether the content may also come as it is, and
    `is_better_plain` that the visitor would rather have it so than in any of the codings.
    """

    codings: tuple[bytes, ...]
    identity: bool
    is_better_plain: bool


NOTHING_SAID: Final = Accepted((), True, True)


def decide_accepted(value: bytes | None, offered: Sequence[bytes]) -> Accepted:
    """Reads the (joined) field; `offered` in our order of preference, which decides among what the visitor likes equally.

    Without the field any coding is acceptable, and the one that needs no reader is the right one. A member that is not well
    formed counts as absent.
    """
    if value is None:
        return NOTHING_SAID
    weights: dict[bytes, float] = {}
    for member in value.split(b",", MAX_MEMBERS)[:MAX_MEMBERS]:
        name, _, parameters = member.partition(b";")
        coding = name.strip(b" \t").lower()
        weight = _weight(parameters)
        if coding and weight is not None:
            weights.setdefault(_ALIASES.get(coding, coding), weight)
    rest = weights.get(b"*", 0.0)
    found = [(weights.get(coding, rest), coding) for coding in offered]
    # Identity is acceptable unless excluded by itself or by `*;q=0`; unless it is named, anything else is preferred.
    identity = weights.get(b"identity", weights.get(b"*", 1.0)) > 0
    plain = weights.get(b"identity", 0.0)
    codings = [coding for weight, coding in sorted(found, key=lambda pair: -pair[0]) if weight > 0]
    best = max((weight for weight, _ in found), default=0.0)
    return Accepted(tuple(codings), identity, identity and plain > best)


def _weight(parameters: bytes) -> float | None:
    """The `q` of a member; 1 when there is none, None when it is not one."""
    for parameter in parameters.split(b";"):
        name, equals, value = parameter.strip(b" \t").partition(b"=")
        if name.strip(b" \t").lower() == b"q":
            value = value.strip(b" \t")
            return float(value) if equals and _WEIGHT.match(value) else None
    return 1.0

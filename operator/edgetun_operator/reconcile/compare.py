"""Whether an object is as it should be: everything that is wanted is there. What others added is theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_KEYS: Final = ("name", "mountPath", "type", "containerPort", "port", "topologyKey", "uid", "ip")
"""Fields by which Kubernetes tells the items of a list that is a map; the first that all wanted items have is taken."""


def covers(observed: Any, wanted: Any) -> bool:
    """Whether `observed` has every value of `wanted`.

    Maps may hold more, and so may lists whose items have names (others may add a sidecar). Other lists are compared whole.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(observed, Mapping):
            return not wanted and observed is None
        return all(
            covers(observed[name], value) if name in observed else _is_empty(value) for name, value in wanted.items()
        )
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        if not isinstance(observed, Sequence) or isinstance(observed, str):
            return not wanted and observed is None
        return _covers_list(observed, wanted)
    return bool(observed == wanted) and isinstance(observed, bool) == isinstance(wanted, bool)


def _covers_list(observed: Sequence[Any], wanted: Sequence[Any]) -> bool:
    if len(observed) == len(wanted):
        return all(covers(have, want) for have, want in zip(observed, wanted, strict=True))
    if len(observed) < len(wanted) or not all(isinstance(item, Mapping) for item in wanted):
        return False
    key = next((key for key in _KEYS if all(key in item for item in wanted)), None)
    if key is None:
        return False
    by_key = {item.get(key): item for item in observed if isinstance(item, Mapping)}
    return all(want[key] in by_key and covers(by_key[want[key]], want) for want in wanted)


def _is_empty(value: Any) -> bool:
    """The API server leaves out what is empty, and false where that is the default."""
    return value is None or value is False or (isinstance(value, (Mapping, Sequence)) and not value)

"""Our own resources as informers keep them: what their specs say, read once per generation, in as little memory as may be.

Ten thousand tunnels are held by every process that follows them; most say little, and most changes are of a status.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel

from edgetun_cluster.kinds import Kind, Object
from edgetun_core.api.load import AnyResource, parse_resource
from edgetun_core.problem import Problem

log = logging.getLogger("edgetun_cluster.reading")


def read_resource(kind: Kind, obj: Object, metadata: Iterable[str]) -> tuple[AnyResource | None, tuple[Problem, ...]]:
    """The resource, with these fields of its metadata. Never raises for what stands in it: that is in the problems."""
    plain = {
        # Items of a list come without their kind.
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {name: obj["metadata"][name] for name in metadata if name in obj["metadata"]},
        "spec": obj.get("spec") or {},
    }
    passed_over: set[str] = set()
    resource, problems = parse_resource(plain, passed_over=passed_over)
    for field in passed_over - _told.get(kind, set()):
        _told.setdefault(kind, set()).add(field)
        log.info("%s: %s is of definitions of a later version, and is passed over", kind.kind, field)
    if resource is not None:
        _blocks.slim(resource)
    return resource, problems


def is_same_spec(obj: Object, uid: str, generation: int) -> bool:
    """Whether an object says what the one of this uid said at this generation: then there is nothing to read again."""
    meta = obj["metadata"]
    return bool(generation) and meta.get("generation") == generation and meta.get("uid") == uid


def compact_status(obj: Object) -> Mapping[str, Any]:
    """The status of an object, with one instance of each condition for all objects of which the same is true."""
    status: Object = obj.get("status") or {}
    conditions = status.get("conditions")
    if not isinstance(conditions, list):
        return status
    return {**status, "conditions": [_conditions.same(one) for one in conditions]}


class _Conditions:
    """Conditions by what they say. Ten thousand tunnels that were made together say the same few hundred."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Any] = {}

    def same(self, condition: Any) -> Any:
        try:
            key = tuple(sorted(condition.items()))
            known = self._known.setdefault(key, condition)
        except (AttributeError, TypeError):
            return condition  # not as the schema has it: kept as it is
        if len(self._known) > MOST_SHARED:
            self._known.clear()
        return known


class _Blocks:
    """Blocks of specs by what they say: defaults that the API server fills in are the same in nearly every object.

    A block is shared only with one that was written with the same fields, since a route's policies are laid over its tunnel's by that.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[type[BaseModel], frozenset[str]], list[BaseModel]] = {}
        self._sets: dict[frozenset[str], set[str]] = {}

    def slim(self, model: BaseModel, *, is_shared: bool = False) -> BaseModel:
        """The same, in less memory. The model has just been read and nobody else holds it, so it is changed in place."""
        values = model.__dict__
        for name, value in values.items():
            if isinstance(value, BaseModel):
                values[name] = self.slim(value, is_shared=name not in ("metadata", "spec"))
        fields = frozenset(model.model_fields_set)
        # The set of a large block is larger than its values.
        object.__setattr__(model, "__pydantic_fields_set__", self._sets.setdefault(fields, model.model_fields_set))
        if len(self._sets) > MOST_SHARED:
            self._sets.clear()
        if not is_shared:
            return model
        known = self._known.setdefault((type(model), fields), [])
        for other in known:
            if other.__dict__ == values:
                return other
        if len(known) == MOST_ALIKE:
            known.pop(0)
        known.append(model)
        if len(self._known) > MOST_SHARED:
            self._known.clear()
        return model


MOST_SHARED: Final = 4096
"""Of each sort; then it is begun anew, and what is held already stays."""
MOST_ALIKE: Final = 8

_told: Final[dict[Kind, set[str]]] = {}
"""Fields that were spoken of; there are as many as definitions have."""
_conditions: Final = _Conditions()
_blocks: Final = _Blocks()

"""What every model of the API shares: camelCase names, no unknown fields, rules that can become CEL, names kept for later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from edgetun_core.quantities import quoted

Location = tuple[str | int, ...]


class Broken(NamedTuple):
    """Where a rule does not hold, relative to the model that has the rule, and what a person should do."""

    location: Location
    message: str


class Rule(NamedTuple):
    """A rule over several fields of one model.

    `cel` is what the CRD carries (`self` is the model; fields with defaults are always there), empty when the schema itself
    says it (a list's map keys); `message` is what it says then.
    `check` is the same rule here, which can also tell where it broke.
    """

    cel: str
    message: str
    check: Callable[[Any], Iterable[Broken]]


class ApiModel(BaseModel):
    """Base of all models.

    Strict: `"5"` is no number and `1` is no boolean, as in the CRDs. YAML is read by alias only (see `load.py`); Python
    code may use the snake_case names.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        strict=True,
        validate_by_name=True,
        validate_by_alias=True,
    )

    reserved: ClassVar[frozenset[str]] = frozenset()
    """Names of fields that are planned: asking for one says so, instead of calling it unknown."""
    value_hints: ClassVar[dict[str, dict[str, str]]] = {}
    """What to do instead, for values that people may try in a field (by its name in YAML)."""

    laid_over: ClassVar[frozenset[str]] = frozenset()
    """Fields (by their names in Python) whose block is laid over another one: what it leaves out stays, so the CRD fills in
    no defaults in there."""
    immutable: ClassVar[frozenset[str]] = frozenset()
    """Fields (by their names in Python) that cannot be changed once they are set."""


class StatusModel(BaseModel):
    """Base of what controllers write and read back. Unknown fields are ignored, so that one version behind still reads it."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="ignore",
        frozen=True,
        validate_by_name=True,
        validate_by_alias=True,
    )


class RuledModel(ApiModel):
    """A model with rules over several of its fields."""

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        broken = [found for rule in self.rules for found in rule.check(self)]
        if broken:
            # One error carries all of them: pydantic takes one per validator. `explain.py` takes it apart.
            text = "; ".join(found.message for found in broken)
            raise PydanticCustomError("broken_rules", "{text}", {"text": text, "broken": broken})
        return self


def repeated(values: Sequence[str], where: str, key: str = "") -> Iterator[Broken]:
    """Every value that stands in the list `where` before already (`key`: the field of its items that holds it)."""
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        first = seen.setdefault(value, index)
        if first != index:
            location: Location = (where, index, key) if key else (where, index)
            yield Broken(location, f"{quoted(value)} is there already as {where}[{first}]; remove one of them")


def told_above(_: object) -> Iterator[Broken]:
    """The check of a rule that CEL needs apart from another one, whose check looks at both."""
    return iter(())

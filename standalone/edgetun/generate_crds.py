"""crds/*.yaml from the models: structural OpenAPI v3 schemas (no `$ref`, no `anyOf`), defaults, CEL rules, columns.

The API server bounds what CEL may cost by the bounds of what it looks at, so everything has a `maxItems`, `maxProperties`
or `maxLength`; a field without one is an error here. What CEL cannot say within that cost (the names in a map) the operator
says, as a condition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from edgetun_core.api.load import KINDS
from edgetun_core.api.meta import GROUP, VERSION, Column, Resource
from edgetun_core.api.model import Rule
from edgetun_core.quantities import format_bytes, format_duration, format_rate

Schema = dict[str, Any]

CATEGORY: Final = "edgetun"
MAX_STATUS_TEXT: Final = 253

_FORMATS: Final[dict[str, Callable[[Any], str]]] = {
    "duration": format_duration,
    "size": format_bytes,
    "rate": format_rate,
}


def build_crds(note: str) -> dict[str, str]:
    """Every CRD: file name -> YAML, with `note` in its first line."""
    return {f"{kind.plural}.yaml": f"# {note}\n{_dump(build_crd(kind))}" for kind in KINDS.values() if kind.plural}


def build_crd(kind: type[Resource]) -> Schema:
    """One kind as a CustomResourceDefinition (apiextensions.k8s.io/v1)."""
    singular = kind.__name__.lower()
    names: Schema = {"kind": kind.__name__, "listKind": f"{kind.__name__}List", "plural": kind.plural}
    names |= {"singular": singular, "shortNames": list(kind.short_names), "categories": [CATEGORY]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "edgetun"}},
        "spec": {
            "group": GROUP,
            "names": names,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "preserveUnknownFields": False,
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in (*kind.columns, _AGE)],
                    "schema": {"openAPIV3Schema": _root(kind)},
                }
            ],
        },
    }


_AGE: Final = Column("Age", ".metadata.creationTimestamp", "date", "How long the resource is there.")


def _column(column: Column) -> Schema:
    shown: Schema = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        shown["description"] = column.description
    if column.wide:
        shown["priority"] = 1
    return shown


# --- schema ------------------------------------------------------------------------------------------------------------


class _Walk:
    """One kind's schema. `_rules` is the text of all its rules: what they speak of must have its default."""

    def __init__(self, kind: type[Resource]) -> None:
        self._rules = "\n".join(rule.cel for model in _models(kind) for rule in getattr(model, "rules", ()))

    def model(self, model: type[BaseModel], where: str, *, defaults: bool) -> Schema:
        properties: Schema = {}
        required = []
        laid_over: frozenset[str] = getattr(model, "laid_over", frozenset())
        immutable: frozenset[str] = getattr(model, "immutable", frozenset())
        for name, field in model.model_fields.items():
            alias = field.alias or name
            path = f"{where}.{alias}"
            below = defaults and name not in laid_over
            schema = self.field(field, path, defaults=below)
            if below and not field.is_required():
                self._add_default(schema, field, alias)
            if field.is_required():
                required.append(alias)
            if name in immutable:
                rules = schema.setdefault("x-kubernetes-validations", [])
                rules.append({"rule": "self == oldSelf", "message": f"{alias} cannot be changed"})
            properties[alias] = schema
        schema = {"type": "object", "properties": properties}
        if required:
            schema["required"] = required
        rules = _rules(model)
        if rules:
            schema["x-kubernetes-validations"] = rules
        return schema

    def field(self, field: FieldInfo, path: str, *, defaults: bool) -> Schema:
        schema: Schema = {"description": field.description} if field.description else {}
        schema |= self.value(field.annotation, field.metadata, path, defaults=defaults)
        if isinstance(field.json_schema_extra, dict):
            schema |= field.json_schema_extra
        if schema.get("type") == "object" and schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.pop("additionalProperties", None)
        return schema

    def value(self, annotation: Any, metadata: list[Any], path: str, *, defaults: bool) -> Schema:
        """The schema of a value of a type, within the bounds that stand beside the type."""
        given = next((dict(item.json_schema) for item in metadata if _is_schema(item)), None)
        bounds = dict(_bounds(metadata))
        if given is not None:
            quantity = given.pop("x-edgetun-type", "")
            # Reading a size costs more than the API server allows within a list; there the operator says it.
            rules = list(_quantity_rules(quantity, bounds)) if defaults or quantity != "size" else []
            return given | ({"x-kubernetes-validations": rules} if rules else {})
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin in (Union, UnionType):
            inner = [argument for argument in arguments if argument is not NoneType]
            assert len(inner) == 1, f"{path}: a union of types has no structural schema"
            return self.value(inner[0], metadata, path, defaults=defaults)
        if hasattr(annotation, "__metadata__"):
            return self.value(arguments[0], [*_flat(annotation.__metadata__), *metadata], path, defaults=defaults)
        if origin is Literal:
            return {"type": "string", "enum": list(arguments)}
        if origin is list:
            items = self.value(arguments[0], [], f"{path}[]", defaults=defaults)
            return _array(items, bounds, path)
        if origin is dict:
            if arguments[1] is Any:
                return {"type": "object"}
            assert "max_length" in bounds, f"{path} has no maxProperties"
            values = self.value(arguments[1], [], f"{path}{{}}", defaults=defaults)
            return {"type": "object", "maxProperties": bounds["max_length"], "additionalProperties": values}
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self.model(annotation, path, defaults=defaults)
        if annotation is bool:
            return {"type": "boolean"}
        if annotation is int:
            return _integer(bounds)
        assert annotation is str, f"{path}: {annotation} has no schema"
        return _string(bounds, path)

    def _add_default(self, schema: Schema, field: FieldInfo, alias: str) -> None:
        value = field.get_default(call_default_factory=True, validated_data={})
        is_needed = re.search(rf"\.{alias}\b", self._rules) is not None
        if isinstance(value, BaseModel):
            whole = _defaults(schema)
            if is_needed or whole:
                # Written out, because the API server tries a default against the rules before it fills in what is below.
                schema["default"] = whole
            return
        if isinstance(value, list) and value and isinstance(value[0], BaseModel):
            schema["default"] = [item.model_dump(by_alias=True, exclude_unset=True) for item in value]
            return
        quantity = next((item.json_schema.get("x-edgetun-type", "") for item in field.metadata if _is_schema(item)), "")
        if value is None or (value in ("", [], {}) and not is_needed) or (quantity == "rate" and not value):
            return
        schema["default"] = _FORMATS[quantity](value) if quantity in _FORMATS else value


def _root(kind: type[Resource]) -> Schema:
    walk = _Walk(kind)
    name: Schema = {"type": "string", "maxLength": 253}
    properties: Schema = {
        "apiVersion": {"type": "string", "description": f"Group and version: `{GROUP}/{VERSION}`."},
        "kind": {"type": "string", "description": f"`{kind.__name__}`."},
        "metadata": {"type": "object", "properties": {"name": name}},
    }
    spec = kind.model_fields["spec"]
    properties["spec"] = walk.field(spec, f"{kind.__name__}.spec", defaults=True)
    if not spec.is_required():
        properties["spec"]["default"] = _defaults(properties["spec"])
    status = kind.model_fields["status"]
    properties["status"] = walk.field(status, f"{kind.__name__}.status", defaults=False)
    schema: Schema = {
        "description": (kind.__doc__ or "").strip().partition("\n")[0],
        "type": "object",
        "properties": properties,
    }
    if spec.is_required():
        schema["required"] = ["spec"]
    rules = _rules(kind)
    if rules:
        schema["x-kubernetes-validations"] = rules
    return schema


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        yield from _models_in(field.annotation)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _models(annotation)
        return
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _defaults(schema: Schema) -> Schema:
    """What an empty object of this schema becomes."""
    properties: Schema = schema.get("properties", {})
    return {name: each["default"] for name, each in properties.items() if "default" in each}


def _rules(model: type[BaseModel]) -> list[Schema]:
    rules: tuple[Rule, ...] = getattr(model, "rules", ())
    return [{"rule": rule.cel, "message": rule.message} for rule in rules if rule.cel]


# --- values ------------------------------------------------------------------------------------------------------------


def _is_schema(item: Any) -> bool:
    return isinstance(item, WithJsonSchema) and item.json_schema is not None


def _flat(metadata: tuple[Any, ...]) -> Iterator[Any]:
    """`Annotated[int, Field(ge=1)]` keeps its bounds within the FieldInfo."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _bounds(metadata: list[Any]) -> Iterator[tuple[str, Any]]:
    for item in _flat(tuple(metadata)):
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
            found = getattr(item, name, None)
            if found is not None:
                yield name, found


def _array(items: Schema, bounds: Schema, path: str) -> Schema:
    assert "max_length" in bounds, f"{path} has no maxItems"
    schema: Schema = {"type": "array", "maxItems": bounds["max_length"]}
    if "min_length" in bounds:
        schema["minItems"] = bounds["min_length"]
    return schema | {"items": items}


def _integer(bounds: Schema) -> Schema:
    schema: Schema = {"type": "integer", "format": "int64"}
    if "ge" in bounds:
        schema["minimum"] = bounds["ge"]
    if "le" in bounds:
        schema["maximum"] = bounds["le"]
    return schema


def _string(bounds: Schema, path: str) -> Schema:
    assert "max_length" in bounds, f"{path} has no maxLength"
    schema: Schema = {"type": "string", "maxLength": bounds["max_length"]}
    if "min_length" in bounds:
        schema["minLength"] = bounds["min_length"]
    if "pattern" in bounds:
        schema["pattern"] = bounds["pattern"]
    return schema


_COMPARISONS: Final = {
    "ge": (">=", "the least is"),
    "gt": (">", "write more than"),
    "le": ("<=", "the most is"),
    "lt": ("<", "write less than"),
}


def _quantity_rules(quantity: str, bounds: Schema) -> Iterator[Schema]:
    """Bounds of durations and sizes, which are text to the schema, as CEL."""
    for name, (sign, words) in _COMPARISONS.items():
        limit = bounds.get(name)
        if limit is None or (name == "ge" and limit == 0):
            continue
        if quantity == "duration":
            text = format_duration(limit)
            yield {"rule": f"duration(self) {sign} duration('{text}')", "message": f"{words} {text}"}
        elif quantity == "size":
            yield {
                "rule": f"type(self) == int ? int(self) {sign} {limit} : {_SIZE}.compareTo(quantity('{limit}')) {sign} 0",
                "message": f"{words} {format_bytes(limit)}",
            }


_SIZE: Final = "quantity(string(self).replace('B', '').replace('K', 'k').replace('ki', 'Ki'))"
"""A size in our words (`10KB`, `8MiB`) as Kubernetes' own quantity."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)

"""pydantic's errors as messages for the person who wrote the resource: what is wrong there, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError, WithJsonSchema
from pydantic.fields import FieldInfo

from edgetun_core.api.model import ApiModel, Broken, Location
from edgetun_core.quantities import format_bytes, format_duration, format_rate, quoted

NOT_AVAILABLE = "is not available in this version"


class Explained(NamedTuple):
    """One thing that is wrong: where, the reason of a condition, the message."""

    location: Location
    reason: str
    message: str


def explain(error: ValidationError, model: type[ApiModel], data: Any) -> Iterator[Explained]:
    """Takes a `ValidationError` of `model.model_validate(data)` apart, one message per mistake."""
    for details in error.errors(include_url=False):
        location: Location = tuple(part for part in details["loc"] if part != "[key]")
        context: dict[str, Any] = details.get("ctx") or {}
        kind = details["type"]
        if kind == "broken_rules":
            broken: Sequence[Broken] = context["broken"]
            for where, message in broken:
                yield Explained((*location, *where), "InvalidSpec", message)
        elif kind == "missing":
            yield Explained(location, "FieldMissing", _missing(model, location))
        elif kind == "extra_forbidden":
            yield _unknown(model, location)
        elif kind == "value_error":
            yield Explained(location, "InvalidValue", str(context["error"]))
        elif kind == "literal_error":
            yield _not_a_choice(model, location, details["input"])
        else:
            text = _plain(kind, context, model, location, _written(data, location, details["input"]), details["msg"])
            yield Explained(location, "InvalidValue", text)


def field_text(location: Location) -> str:
    """`("spec", "routes", 0, "path")` as `spec.routes[0].path`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def location_of(field: str) -> Location:
    """The reverse of `field_text`, for names without dots and brackets."""
    parts = field.replace("]", "").replace("[", ".").split(".")
    return tuple(int(part) if part.isdigit() else part for part in parts if part)


def models_in(annotation: Any) -> Iterator[type[ApiModel]]:
    """The models an annotation speaks of: `list[Route]`, `Origin | None`, `Annotated[...]`."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation
        return
    for argument in get_args(annotation):
        yield from models_in(argument)


def field_named(model: type[ApiModel], name: str) -> FieldInfo | None:
    """A model's field by its name in YAML."""
    for field in model.model_fields.values():
        if field.alias == name:
            return field
    return None


def _model_and_field(model: type[ApiModel], location: Location) -> tuple[type[ApiModel] | None, FieldInfo | None]:
    """The model that has the field at `location`, and that field (of a list: for its items too)."""
    current: type[ApiModel] | None = model
    owner, field = current, None
    for part in location:
        if isinstance(part, int):
            continue
        owner = current
        if owner is None:
            break  # a name within a map; the map's own field tells what its values are
        field = field_named(owner, part)
        current = next(models_in(field.annotation), None) if field is not None else None
    return owner, field


def _written(data: Any, location: Location, fallback: Any) -> Any:
    """What the person wrote there, before it was converted."""
    for part in location:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return fallback
    return data


def _missing(model: type[ApiModel], location: Location) -> str:
    _, field = _model_and_field(model, location)
    if field is None or not field.examples:
        return "is missing; add it"
    return f"is missing; add {location[-1]}: {example_text(field.examples[0])}"


def example_text(example: Any) -> str:
    """An example value as YAML in one line."""
    if isinstance(example, list):
        return "[" + ", ".join(example_text(item) for item in example) + "]"
    if isinstance(example, dict):
        return "{" + ", ".join(f"{key}: {example_text(value)}" for key, value in example.items()) + "}"
    text = str(example)
    return f'"{text}"' if isinstance(example, str) and text[:1] in "*<&" else text


def _unknown(model: type[ApiModel], location: Location) -> Explained:
    owner, _ = _model_and_field(model, location)
    name = str(location[-1])
    if owner is None:
        return Explained(location, "UnknownField", "is not known here; remove it")
    if name in owner.reserved:
        return Explained(location, "NotAvailable", f"{NOT_AVAILABLE}; remove it")
    known = sorted(field.alias or "" for field in owner.model_fields.values())
    near = _closest(name, known)
    if near:
        return Explained(location, "UnknownField", f"is not a field; did you mean {near}?")
    if _closest(name, sorted(owner.reserved)) == name:
        return Explained(location, "NotAvailable", f"{NOT_AVAILABLE}; remove it")
    return Explained(location, "UnknownField", f"is not a field; there are {', '.join(known)}")


def _closest(word: str, known: Sequence[str]) -> str:
    """The known word that is meant: spelled alike, or the same without regard to case, `_` and `-`."""
    squeezed = {name.lower(): name for name in known}
    plain = word.lower().replace("_", "").replace("-", "")
    if plain in squeezed:
        return squeezed[plain]
    near = difflib.get_close_matches(plain[:64], list(squeezed), n=1, cutoff=0.7)
    return squeezed[near[0]] if near else ""


def _not_a_choice(model: type[ApiModel], location: Location, value: object) -> Explained:
    owner, field = _model_and_field(model, location)
    choices = [str(choice) for choice in get_args(field.annotation)] if field is not None else []
    remedy = f"write {or_list(choices)}"
    hints = owner.value_hints.get(str(location[-1]), {}) if owner is not None else {}
    if isinstance(value, str) and value in hints:
        remedy = hints[value]
    return Explained(location, "InvalidValue", f"{quoted(value)} is not a choice; {remedy}")


def or_list(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _plain(
    kind: str, context: dict[str, Any], model: type[ApiModel], location: Location, value: Any, fallback: str
) -> str:
    shown = quoted(value)
    _, field = _model_and_field(model, location)
    match kind:
        case "string_type":
            if isinstance(value, list | dict) or value is None:
                return f"is {shown} where text should be; write one value"
            return f"{shown} is not text; put it in quotes"
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return f"{shown} is not a whole number; write digits without quotes"
        case "bool_type" | "bool_parsing":
            return f"{shown} is neither true nor false; write true or false, without quotes"
        case "list_type":
            example = value if isinstance(value, str) and value.isprintable() and len(value) < 60 else "..."
            return f"is not a list; write [{example}], or one entry per line that begins with '- '"
        case "dict_type" | "model_type" | "model_attributes_type" | "dataclass_type":
            example = example_text(field.examples[0]) if field is not None and field.examples else ""
            such = f", such as {example}" if example else ""
            return f"is not a mapping; write fields below it{such}"
        case "too_long":
            return f"has {context['actual_length']} entries; write at most {context['max_length']}"
        case "too_short":
            example = example_text(field.examples[0]) if field is not None and field.examples else ""
            return f"has no entry; write at least one{', such as ' + example if example else ''}"
        case "string_too_long":
            return f"{shown} is too long; write at most {context['max_length']} characters"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"{shown} {_bound(kind, context, field)}"
    return f"{shown}: {fallback[:1].lower()}{fallback[1:]}"


def _bound(kind: str, context: dict[str, Any], field: FieldInfo | None) -> str:
    limit = next(context[key] for key in ("gt", "ge", "lt", "le") if key in context)
    quantity = ""
    for item in field.metadata if field is not None else ():
        if isinstance(item, WithJsonSchema) and item.json_schema:
            quantity = str(item.json_schema.get("x-edgetun-type", ""))
    formats = {"duration": format_duration, "size": lambda n: format_bytes(int(n)), "rate": format_rate}
    text = formats[quantity](limit) if quantity in formats else f"{limit}"
    match kind:
        case "greater_than":
            return f"is too small; write more than {text}"
        case "greater_than_equal":
            return f"is too small; the least is {text}"
        case "less_than":
            return f"is too large; write less than {text}"
    return f"is too large; the most is {text}"

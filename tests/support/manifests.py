"""edgetun's own manifests, as the project ships them, and what stands in a CRD's schema."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Object = dict[str, Any]

PROJECT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = sorted((PROJECT / "examples").glob("*.yaml"))


def read_crds() -> list[Object]:
    """Every CustomResourceDefinition of `crds/`, by file name."""
    return [yaml.safe_load(path.read_text()) for path in sorted((PROJECT / "crds").glob("*.yaml"))]


class Site(NamedTuple):
    """Where in a CRD a CEL rule stands. The path is as `.spec.routes[].path`."""

    kind: str
    path: str
    message: str


def rule_sites(crd: Object) -> Iterator[tuple[Site, str]]:
    """Every CEL rule of every served version, with its text."""
    for version in crd["spec"]["versions"]:
        for path, schema in schemas(version["schema"]["openAPIV3Schema"]):
            for rule in schema.get("x-kubernetes-validations", ()):
                yield Site(crd["spec"]["names"]["kind"], path, rule["message"]), rule["rule"]


def schemas(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """A schema and all below it, with their paths."""
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from schemas(below, f"{path}.{name}")
    if "items" in schema:
        yield from schemas(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from schemas(schema["additionalProperties"], f"{path}{{}}")


def put(obj: Object, path: str, value: object) -> Any:
    """A copy of the object with a value at `.spec.routes[].path`, in the first element of every list on the way."""
    steps = re.findall(r"\w+|\[\]", path)
    return _put(obj, steps, value)


def _put(into: Any, steps: list[str], value: object) -> Any:
    if not steps:
        return value
    if steps[0] == "[]":
        elements = list(into or [{}])
        return [_put(elements[0], steps[1:], value), *elements[1:]]
    return {**(into or {}), steps[0]: _put((into or {}).get(steps[0]), steps[1:], value)}


def as_it_was_before(crd: Object) -> Object:
    """The definition as a version might have had it before this one: no rule yet, fewer fields, fewer columns."""
    before = copy.deepcopy(crd)
    for version in before["spec"]["versions"]:
        _forget_rules(version["schema"]["openAPIV3Schema"])
        version["additionalPrinterColumns"] = version["additionalPrinterColumns"][:1]
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        for newer in ("collapse", "drain", "reclaimPolicy"):
            spec.pop(newer, None)
    return before


def as_it_will_be(crd: Object) -> Object:
    """The definition as a later version might have it: with more fields, which the API server fills in everywhere."""
    after = copy.deepcopy(crd)
    for version in after["spec"]["versions"]:
        for path, schema in list(schemas(version["schema"]["openAPIV3Schema"])):
            if path in {".spec", ".spec.origin", ".spec.cache", ".spec.service", ".spec.podTemplate", ".spec.limits"}:
                mood = {"type": "string", "default": "fine"}
                schema["properties"]["later"] = {"type": "object", "default": {}, "properties": {"mood": mood}}
    return after


def _forget_rules(schema: Object) -> None:
    schema.pop("x-kubernetes-validations", None)
    for below in schema.get("properties", {}).values():
        _forget_rules(below)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _forget_rules(schema[key])

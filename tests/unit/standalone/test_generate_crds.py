"""The generated CRDs: structural, bounded, with defaults where they do no harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetun.generate_crds import build_crd, build_crds
from edgetun_core.api.load import KINDS, parse_resource
from edgetun_core.api.meta import Resource

ROOT = Path(__file__).parents[3]
Schema = dict[str, Any]

kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.__name__)


def schema_of(kind: type[Resource]) -> Schema:
    schema: Schema = build_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from walk(below, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from walk(schema[name], f"{path}[]")


@kinds
def test_nothing_in_a_schema_is_without_a_type_or_without_a_bound(kind: type[Resource]) -> None:
    for path, schema in walk(schema_of(kind)):
        assert not {"$ref", "anyOf", "oneOf", "allOf", "x-edgetun-type"} & set(schema), path
        if schema.get("x-kubernetes-int-or-string"):
            continue
        assert schema["type"] in ("object", "array", "string", "integer", "boolean"), path
        if schema["type"] == "array":
            assert schema["maxItems"], path
        if schema["type"] == "string" and path not in (".apiVersion", ".kind"):
            assert "maxLength" in schema or "enum" in schema, path
        if schema["type"] == "object":
            assert (
                "properties" in schema or "maxProperties" in schema or "x-kubernetes-preserve-unknown-fields" in schema
            )


@kinds
def test_every_field_of_a_spec_tells_what_it_is_for(kind: type[Resource]) -> None:
    for path, schema in walk(schema_of(kind)["properties"]["spec"], ".spec"):
        assert path.endswith("[]") or schema["description"], path


def test_there_is_no_default_where_one_block_is_laid_over_another() -> None:
    for kind, parents in (("Tunnel", (".spec.routes[].cache", ".spec.routes[].limits", ".spec.routes[].headers")),
                          ("ExitPool", (".spec.regions[].service", ".spec.regions[].podTemplate"))):  # fmt: skip
        seen = 0
        for path, schema in walk(schema_of(KINDS[kind])):
            if path.startswith(parents):
                seen += 1
                assert "default" not in schema, path
        assert seen > 20


@kinds
def test_no_status_has_defaults(kind: type[Resource]) -> None:
    assert not [path for path, schema in walk(schema_of(kind)["properties"]["status"]) if "default" in schema]


@kinds
def test_people_see_the_columns_short_names_and_category(kind: type[Resource]) -> None:
    spec = build_crd(kind)["spec"]
    assert spec["names"]["categories"] == ["edgetun"]
    assert spec["names"]["shortNames"]
    version = spec["versions"][0]
    columns = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert (
        columns
        == {
            "Tunnel": ["Host", "Port", "Pool", "Transport", "Agents", "Ready", "Age"],
            "ExitPool": ["Regions", "Desired", "Available", "Sessions", "Ready", "Age"],
            "Agent": ["Pool", "Region", "Transport", "RTT", "Since", "Age"],
            "AgentToken": ["Expires", "Last-Used", "Ready", "Age"],
            "HostnameReservation": ["Host", "Namespace", "Tunnel", "Policy", "Age"],
        }[kind.__name__]
    )
    assert version["subresources"] == {"status": {}}


def filled_in(value: Any, schema: Schema) -> Any:
    """What the API server stores: the defaults of the schema, level by level."""
    if isinstance(value, dict):
        properties: Schema = schema.get("properties", {})
        whole = {name: each["default"] for name, each in properties.items() if "default" in each} | value
        return {name: filled_in(each, properties.get(name, {})) for name, each in whole.items()}
    if isinstance(value, list):
        return [filled_in(each, schema.get("items", {})) for each in value]
    return value


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_resource_means_the_same_with_the_defaults_written_out(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        given, problems = parse_resource(document)
        assert given is not None, problems
        stored = {**document, "spec": filled_in(document["spec"], schema_of(type(given))["properties"]["spec"])}
        again, problems = parse_resource(stored)
        assert problems == ()
        assert again == given


def test_each_file_says_what_made_it() -> None:
    for name, text in build_crds("Made by this").items():
        assert text.startswith("# Made by this\napiVersion: apiextensions.k8s.io/v1\n"), name
        assert yaml.safe_load(text)["metadata"]["name"] == f"{name.removesuffix('.yaml')}.edgetun.dev"

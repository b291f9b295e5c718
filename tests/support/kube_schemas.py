"""JSON schemas of everything that an API server serves, for kubeconform: the internet's copies know no resources of ours.

Made from `/openapi/v3`, made strict: a field that the server does not know is an error.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from support.kube_client import ApiError, KubeClient, Object

LOCATION = "{{ .ResourceKind }}{{ .KindSuffix }}.json"
"""kubeconform's template: kind in lower case, then `-group-version` with the group's first part."""
_REF = "#/components/schemas/"


def write_schemas(client: KubeClient, folder: Path) -> set[tuple[str, str]]:
    """Writes a file for every kind; (apiVersion, kind) of each."""
    written: set[tuple[str, str]] = set()
    paths: Object = client.request("GET", "/openapi/v3")["paths"]
    for path, where in sorted(paths.items()):
        if path.count("/") < (1 if path.startswith("api/") else 2):
            continue
        try:
            document = client.request("GET", where["serverRelativeURL"])
        except ApiError as error:
            if error.status == 404:  # its last definition was deleted meanwhile: another test's
                continue
            raise
        schemas = document.get("components", {}).get("schemas", {})
        for name, schema in schemas.items():
            for kind in schema.get("x-kubernetes-group-version-kind", ()):
                if "apiVersion" not in schema.get("properties", {}):
                    continue
                file = folder / f"{_file_name(kind)}.json"
                definitions = {one: _strict(schemas[one]) for one in _needed(name, schemas)}
                file.write_text(json.dumps({"$ref": f"#/definitions/{name}", "definitions": definitions}))
                written.add((f"{kind['group']}/{kind['version']}".lstrip("/"), kind["kind"]))
    return written


def _file_name(kind: Object) -> str:
    group = str(kind["group"]).partition(".")[0]
    return "-".join(filter(None, (str(kind["kind"]).lower(), group, str(kind["version"]))))


def _strict(schema: Any) -> Any:
    """The schema, with references as JSON Schema has them, and closed to fields that it does not name."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: schema[key] for key in schema if key not in ("default", "properties")}
    found = {key: _strict(value) for key, value in found.items()}
    if "properties" in schema:
        found["properties"] = {name: _strict(below) for name, below in schema["properties"].items()}
    if "$ref" in found:
        found["$ref"] = found["$ref"].replace(_REF, "#/definitions/")
    is_open = found.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in found
    if "properties" in found and not is_open:
        found["additionalProperties"] = False
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found


def _needed(name: str, schemas: Object) -> set[str]:
    """The names of all schemas that one refers to, and its own."""
    found, waiting = {name}, [name]
    while waiting:
        refers = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schemas[waiting.pop()])))
        waiting += refers - found
        found |= refers
    return found

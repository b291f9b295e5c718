"""Files, folders and standard input to resources, with the line of everything that is wrong in them.

Everything is read before anything is reported, so a person mends a set of files in one go. Bounded: see `yaml_nodes.py`.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import ValidationError

from edgetun_core.api.agent import Agent
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.explain import Explained, explain, field_text, location_of, or_list
from edgetun_core.api.meta import API_VERSION, GROUP
from edgetun_core.api.model import Location
from edgetun_core.api.quantities import FROM_TEXT
from edgetun_core.api.reservation import HostnameReservation
from edgetun_core.api.token import AgentToken
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.api.yaml_nodes import MAX_TEXT_BYTES, Node, YamlError, read_documents
from edgetun_core.problem import Problem, Severity, sort_problems
from edgetun_core.quantities import one_line, quoted

AnyResource = Tunnel | ExitPool | AgentToken | Agent | HostnameReservation

KINDS: Final[dict[str, type[AnyResource]]] = {
    kind.__name__: kind for kind in (Tunnel, ExitPool, AgentToken, Agent, HostnameReservation)
}
MAX_FILES: Final = 10_000
MAX_PROBLEMS: Final = 1_000
"""What is kept of the problems of one set of files; nobody reads more."""
_SUFFIXES: Final = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Sourced:
    """A resource and the text it came from."""

    resource: AnyResource
    file: str
    node: Node

    def line_of(self, field_path: str) -> int:
        """The line of `spec.routes[0].origin`, or of what is nearest above it."""
        return self.node.line_of(location_of(field_path))


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a set of files holds: resources in the order of the files, and problems sorted by file and line."""

    resources: tuple[AnyResource, ...] = ()
    problems: tuple[Problem, ...] = ()
    sources: Mapping[str, Sourced] = field(default_factory=dict)
    """By `resource.ref`."""

    def place(self, problem: Problem) -> Problem:
        """The problem with file and line, when it is about a resource from here."""
        source = self.sources.get(problem.resource)
        if source is None or problem.file:
            return problem
        return replace(problem, file=source.file, line=source.line_of(problem.field))


def load_files(paths: Iterable[str | Path], stdin: BinaryIO | None = None) -> Loaded:
    """Reads files, folders (their `.yaml`, `.yml` and `.json` files, not deeper) and `-` (standard input).

    Never raises for what stands in them: everything wrong is in `problems`.
    """
    reader = _Reader()
    for path in paths:
        if str(path) == "-":
            stream = stdin if stdin is not None else sys.stdin.buffer
            reader.read(stream.read(MAX_TEXT_BYTES + 1), "stdin")
        else:
            reader.read_path(Path(path))
    return reader.loaded()


def load_text(data: bytes, name: str) -> Loaded:
    """Reads one text; `name` stands for it in messages."""
    reader = _Reader()
    reader.read(data, name)
    return reader.loaded()


def parse_resource(
    data: Mapping[str, Any], *, passed_over: set[str] | None = None
) -> tuple[AnyResource | None, tuple[Problem, ...]]:
    """Reads one object as an API server or a JSON body gives it; problems have no file.

    With `passed_over`, fields that this version does not know are left out, and named there: an API server lets through only what
    its definitions know, and those may be a version ahead.
    """
    reader = _Reader()
    resource = reader.resource_of(dict(data), "", None)
    if resource is None and passed_over is not None:
        known = _known_part(dict(data), passed_over)
        if known is not None:
            reader = _Reader()
            resource = reader.resource_of(known, "", None)
    return resource, sort_problems(reader.problems)


def _known_part(value: dict[str, Any], passed_over: set[str]) -> dict[str, Any] | None:
    """The object without fields that its model does not know; None when it knows them all."""
    model = KINDS.get(str(value.get("kind")))
    if model is None:
        return None
    try:
        model.model_validate(_as_written(value), by_alias=True, by_name=False, context=FROM_TEXT)
    except ValidationError as error:
        unknown = [one["loc"] for one in error.errors(include_url=False) if one["type"] == "extra_forbidden"]
        if not unknown:
            return None
        known = copy.deepcopy(value)
        for *above, name in unknown:
            if _drop(known, above, name):
                passed_over.add(field_text(tuple(part for part in (*above, name) if not isinstance(part, int))))
        return known
    return None


def _drop(into: Any, above: list[int | str], name: int | str) -> bool:
    for part in above:
        try:
            into = into[part]
        except (KeyError, IndexError, TypeError):
            return False
    return isinstance(into, dict) and into.pop(name, None) is not None


class _Reader:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._resources: list[AnyResource] = []
        self._sources: dict[str, Sourced] = {}

    def loaded(self) -> Loaded:
        return Loaded(tuple(self._resources), sort_problems(self.problems), self._sources)

    def read_path(self, path: Path) -> None:
        name = str(path)
        try:
            files = (
                sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file()) if path.is_dir() else [path]
            )
            if not files:
                self._file_problem(name, f"holds no {or_list(_SUFFIXES)} file; name the files, or another folder")
            if len(files) > MAX_FILES:
                self._file_problem(name, f"holds more than {MAX_FILES} files; split the folder")
                return
            for file in files:
                with open(file, "rb") as opened:
                    data = opened.read(MAX_TEXT_BYTES + 1)
                self.read(data, str(file))
        except OSError as error:
            what = (error.strerror or os.strerror(error.errno or 0)).lower()
            self._file_problem(
                str(error.filename or name), f"cannot be read ({what}); check the path and its permissions"
            )

    def read(self, data: bytes, name: str) -> None:
        found = False
        for document in read_documents(data):
            found = True
            if isinstance(document, YamlError):
                self._add("error", "", "InvalidYAML", str(document), name, document.line)
            elif document.value is not None:
                self._read_node(document, name)
            else:
                found = False
        if not found and not any(problem.file == name for problem in self.problems) and not self._read_from(name):
            message = f"holds no resource; write one that begins with apiVersion: {API_VERSION}"
            self._add("error", "", "NoResource", message, name, 0)

    def _read_from(self, name: str) -> bool:
        return any(source.file == name for source in self._sources.values())

    def _read_node(self, node: Node, name: str) -> None:
        value = node.value
        if isinstance(value, dict) and value.get("kind") == "List" and value.get("apiVersion") == "v1":
            # What `kubectl get -o yaml` prints for more than one object.
            items = node.fields["items"][1].items if node.fields is not None and "items" in node.fields else None
            for item in items or ():
                self._read_node(item, name)
            return
        if not isinstance(value, dict):
            message = f"{quoted(value)} stands where a resource should; begin with apiVersion: {API_VERSION}"
            self._add("error", "", "InvalidYAML", message, name, node.line)
            return
        resource = self.resource_of(value, name, node)
        if resource is None:
            return
        if resource.ref in self._sources:
            first = self._sources[resource.ref]
            message = (
                f"{resource.ref} is there already, at {first.file}:{first.node.line}; rename or remove one of them"
            )
            self._add(
                "error", "metadata.name", "Duplicate", message, name, node.line_of(("metadata", "name")), resource.ref
            )
            return
        self._resources.append(resource)
        self._sources[resource.ref] = Sourced(resource, name, node)

    def resource_of(self, value: dict[str, Any], name: str, node: Node | None) -> AnyResource | None:
        """The resource a mapping describes; what is wrong with it goes to `problems`."""
        kind, api_version = value.get("kind"), value.get("apiVersion")
        ref = _ref_of(value)
        wrong: list[Explained] = []
        if not isinstance(api_version, str):
            wrong.append(Explained(("apiVersion",), "FieldMissing", f"is missing; add apiVersion: {API_VERSION}"))
        elif api_version.partition("/")[0] != GROUP:
            message = f"{quoted(api_version)} is not of {GROUP}; the resource is ignored"
            line = node.line_of(("apiVersion",)) if node is not None else 0
            self._add("warning", "apiVersion", "Ignored", message, name, line, ref)
            return None
        elif api_version != API_VERSION:
            message = f"{quoted(api_version)} is not a version this edgetun reads; write {API_VERSION}"
            wrong.append(Explained(("apiVersion",), "NotAvailable", message))
        if not isinstance(kind, str):
            wrong.append(Explained(("kind",), "FieldMissing", f"is missing; add kind: {or_list(list(KINDS))}"))
        elif kind not in KINDS:
            wrong.append(
                Explained(("kind",), "InvalidValue", f"{quoted(kind)} is not a kind; write {or_list(list(KINDS))}")
            )
        resource = None
        if not wrong:
            model = KINDS[str(kind)]
            try:
                resource = model.model_validate(_as_written(value), by_alias=True, by_name=False, context=FROM_TEXT)
            except ValidationError as error:
                wrong.extend(explain(error, model, value))
        for location, reason, message in wrong:
            line = node.line_of(location) if node is not None else 0
            self._add("error", field_text(_shortened(location)), reason, message, name, line, ref)
        return resource

    def _file_problem(self, name: str, message: str) -> None:
        self._add("error", "", "Unreadable", message, name, 0)

    def _add(
        self, severity: Severity, field_path: str, reason: str, message: str, file: str, line: int, ref: str = ""
    ) -> None:
        if len(self.problems) > MAX_PROBLEMS:
            return
        if len(self.problems) == MAX_PROBLEMS:
            severity, field_path, reason, message = "error", "", "TooManyProblems", "and more; mend the others first"
        self.problems.append(Problem(severity, ref, field_path, reason, message, file, line))


def _as_written(value: dict[str, Any]) -> dict[str, Any]:
    """The object without what only a cluster writes and people never mean: status and bookkeeping."""
    metadata = value.get("metadata")
    if isinstance(metadata, dict):
        kept = {name: item for name, item in metadata.items() if name not in _BOOKKEEPING}
        value = {**value, "metadata": kept}
    return {name: item for name, item in value.items() if name != "status"}


_BOOKKEEPING: Final = frozenset({"managedFields", "ownerReferences", "selfLink", "deletionGracePeriodSeconds"})


def _ref_of(value: Mapping[str, Any]) -> str:
    """How messages name the object, as far as it can be told."""
    metadata = value.get("metadata")
    kind = value.get("kind")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(kind, str) or not isinstance(name, str) or len(kind) > 63 or len(name) > 253:
        return ""
    namespace = metadata.get("namespace", "default") if isinstance(metadata, dict) else "default"
    namespaced = KINDS[kind].namespaced if kind in KINDS else False
    return one_line(
        f"{kind} {namespace}/{name}" if namespaced and isinstance(namespace, str) else f"{kind} {name}", 400
    )


def _shortened(location: Location) -> Location:
    """Names people wrote may hold anything; a message stays one line that a terminal can show."""
    return tuple(part if isinstance(part, int) else one_line(part) for part in location)

"""`python -m edgetun.generate [--check]`: the pages that are made from code, so that they cannot tell something else.

Writes docs/reference/resources.md from the models, docs/reference/settings.md and commands.md from the settings classes, examples/README.md
from the examples' first lines, crds/*.yaml (and the chart's copies) from the models. `--check` writes nothing and fails with the name of each file that differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from pydantic import WithJsonSchema
from pydantic.fields import FieldInfo

from edgetun.cli import COMMANDS, GROUPS
from edgetun.generate_crds import build_crds
from edgetun_core.api.explain import example_text, models_in
from edgetun_core.api.load import KINDS
from edgetun_core.api.meta import Resource
from edgetun_core.api.model import ApiModel
from edgetun_core.api.tunnel import NamedOrigin, Origin
from edgetun_core.exits import MEANINGS
from edgetun_core.quantities import format_bytes, format_duration, format_rate
from edgetun_core.settings import REQUIRED, SettingInfo, describe_settings

COMMAND: Final = "python -m edgetun.generate"
NOTE: Final = f"<!-- Made by `make generate` ({COMMAND}); change the code it is made from instead. -->"
CRD_NOTE: Final = f"Made by `make generate` ({COMMAND}); change edgetun_core/api instead."

CRD_FOLDERS: Final = ("crds", "charts/edgetun/crds")
"""Helm installs what stands in a chart's `crds/`, and follows no link out of it."""

PROCESSES: Final[tuple[tuple[str, str], ...]] = (
    ("edgetun-agent", "edgetun_agent.settings:AgentSettings"),
    ("edgetun-exitnode", "edgetun_exitnode.settings:ExitNodeSettings"),
    ("edgetun-operator", "edgetun_operator.settings:OperatorSettings"),
    ("edgetun-control", "edgetun_control.settings:ControlServiceSettings"),
)
"""Processes beside the `edgetun` command, and where their settings stand."""


# --- resources ---------------------------------------------------------------------------------------------------------


def build_resources_page() -> str:
    """docs/reference/resources.md."""
    lines = [
        "# Resources",
        "",
        NOTE,
        "",
        "Group and version: `edgetun.dev/v1alpha1`. The same files serve `edgetun up -f`, `edgetun validate -f` and",
        "`kubectl apply -f`. A field that is not listed is refused; one that is planned says that it is not available yet.",
        "",
        "| kind of value | written as |",
        "| --- | --- |",
        "| duration | `500ms`, `2s`, `1m30s`, `1h` |",
        "| size | `8Mi`, `512Ki` (1024s), `10MB`, `1G` (1000s), `65536` |",
        "| rate | `100/s`, `600/m`, `10/h` |",
        "| hostname | lower case, no port, `xn--` for other scripts; a leading `*.` stands for exactly one more label |",
        "",
    ]
    for kind in KINDS.values():
        lines += _kind_section(kind)
    return "\n".join(lines).rstrip() + "\n"


def _kind_section(kind: type[Resource]) -> list[str]:
    scope = "in a namespace" if kind.namespaced else "for the whole cluster"
    lines = [f"## {kind.__name__}", "", f"{_first_line(kind)} Stands {scope}.", ""]
    lines += ["| field | type | default | what it says |", "| --- | --- | --- | --- |"]
    lines += [_row(path, field) for path, field in _fields(kind, "")]
    rules = list(
        dict.fromkeys((path, rule.message) for path, model in _models(kind, "") for rule in getattr(model, "rules", ()))
    )
    lines += ["", "Rules over several fields:", "", "| where | rule |", "| --- | --- |"]
    lines += [f"| `{path or 'the resource'}` | {message} |" for path, message in rules]
    return [*lines, ""]


def _fields(model: type[ApiModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if prefix == "metadata." and field.description and field.description.startswith("Written by"):
            continue
        # What stands elsewhere already is listed once: an origin's fields, and the blocks that a route lays over the tunnel's.
        if model is NamedOrigin and field.alias in {inherited.alias for inherited in Origin.model_fields.values()}:
            continue
        path = f"{prefix}{field.alias}"
        yield path, field
        inner = next(models_in(field.annotation), None)
        if inner is not None and name not in model.laid_over:
            yield from _fields(inner, f"{path}[]." if _is_list(field.annotation) else f"{path}.")


def _models(model: type[ApiModel], path: str) -> Iterator[tuple[str, type[ApiModel]]]:
    yield path, model
    for field in model.model_fields.values():
        for inner in models_in(field.annotation):
            suffix = "[]" if _is_list(field.annotation) else ""
            yield from _models(inner, f"{path}.{field.alias}{suffix}" if path else f"{field.alias}{suffix}")


def _row(path: str, field: FieldInfo) -> str:
    text = field.description or ""
    if field.examples:
        text += f" Example: `{example_text(field.examples[0])}`."
    return f"| `{path}` | {_type(field)} | {_default(field)} | {_cell(text)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ("", [], {}) or isinstance(value, ApiModel):
        return ""
    quantity = _quantity(field)
    if quantity in _FORMATS:
        return f"`{_FORMATS[quantity](value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


_FORMATS: Final[dict[str, Callable[[Any], str]]] = {
    "duration": format_duration,
    "size": format_bytes,
    "rate": format_rate,
}


def _quantity(field: FieldInfo) -> str:
    for item in field.metadata:
        if isinstance(item, WithJsonSchema) and item.json_schema:
            return str(item.json_schema.get("x-edgetun-type", ""))
    return ""


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list


def _type(field: FieldInfo) -> str:
    name = _quantity(field) or _type_name(field.annotation)
    bounds = _bounds(field, name)
    return f"{name}, {bounds}" if bounds else name


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"list of {_type_name(arguments[0])}s"
    if origin is dict:
        return "names and values"
    if origin in (Union, UnionType):
        return next(_type_name(argument) for argument in arguments if argument is not NoneType)
    if origin is not None and hasattr(annotation, "__metadata__"):
        return _type_name(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        return "mapping"
    return {str: "text", int: "whole number", bool: "true \\| false", float: "number"}.get(annotation, "text")


def _bounds(field: FieldInfo, name: str) -> str:
    form = _FORMATS.get(name, str)
    words = []
    for item in field.metadata:
        for attribute, word in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below")):
            limit = getattr(item, attribute, None)
            if limit is not None:
                words.append(f"{word} `{form(limit)}`")
    return " ".join(words)


# --- settings ----------------------------------------------------------------------------------------------------------


def build_settings_page() -> str:
    """docs/reference/settings.md. Commands whose code is not there are left out."""
    lines = [
        "# Settings",
        "",
        NOTE,
        "",
        "Every process reads its settings once, at its start: flags win over the environment, the environment over the file, the",
        "file over the defaults. The file is TOML; its keys are the flags without the dashes in front, at the top level or in the",
        "table of the command (which wins). It is named by `--config` or `EDGETUN_CONFIG`. Durations are written `500ms`, `2s`, `1m`;",
        "sizes `8Mi`, `10MB`. A list is a flag given several times, joined by commas in the environment, a list in the file.",
        "",
    ]
    commands = [(f"edgetun {name}", command.settings) for name, command in COMMANDS.items()]
    for group, (_, members) in GROUPS.items():
        commands += [(f"edgetun {group} {name}", command.settings) for name, command in members.items()]
    for command, where in (*commands, *PROCESSES):
        cls = _import(where)
        if cls is not None:
            lines += _command_section(command, cls)
    return "\n".join(lines).rstrip() + "\n"


def _import(where: str) -> type[Any] | None:
    module, _, name = where.partition(":")
    try:
        found: type[Any] | None = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return None
        raise
    return found


def _command_section(command: str, cls: type[Any]) -> list[str]:
    section = getattr(cls, "section", "")
    lines = [f"## {command}", "", _first_line(cls), ""]
    if section:
        lines += [f"Table in the file: `[{section}]`.", ""]
    lines += ["| flag | environment | default | what it says |", "| --- | --- | --- | --- |"]
    return [*lines, *(_setting_row(info) for info in describe_settings(cls)), ""]


def _setting_row(info: SettingInfo) -> str:
    flag = f"`{info.flag}`" if info.flag else f"`{info.metavar}`"
    if info.kind == "flag":
        flag = f"`{info.flag}`, `--no-{info.flag[2:]}`"
    elif info.flag and info.choices:
        flag = f"`{info.flag} {'|'.join(info.choices)}`"
    elif info.flag:
        flag = f"`{info.flag} {info.metavar}`"
    if info.short:
        flag = f"`{info.short}`, {flag}"
    env = ", ".join(f"`{name}`" for name in (info.env, *info.also_env))
    if info.secret:
        flag += f", `{info.flag}-file PATH`"
        env += f", `{info.env}_FILE`"
    default = "required" if info.default is REQUIRED else f"`{info.default_text}`" if info.default_text else ""
    return f"| {_cell(flag)} | {env} | {_cell(default)} | {_cell(info.help)} |"


# --- commands ----------------------------------------------------------------------------------------------------------


def build_commands_page() -> str:
    """docs/reference/commands.md."""
    lines = [
        "# Commands",
        "",
        NOTE,
        "",
        "`COMMAND --help` lists the flags of a command; [settings.md](settings.md) has all of them with their environment names.",
        "Errors go to standard error, begin with `error:` and say what to do; [troubleshooting](../troubleshooting.md) says more.",
        "",
        "| command | what it does |",
        "| --- | --- |",
    ]
    lines += [
        f"| [`edgetun {name}`]({_anchor(f'edgetun {name}')}) | {command.help} |" for name, command in COMMANDS.items()
    ]
    for group, (_, members) in GROUPS.items():
        lines += [
            f"| [`edgetun {group} {name}`]({_anchor(f'edgetun {group} {name}')}) | {command.help} |"
            for name, command in members.items()
        ]
    for process, where in PROCESSES:
        cls = _import(where)
        if cls is not None:
            lines.append(f"| [`{process}`]({_anchor(process)}) | {_cell(_first_sentence(cls))} |")
    lines += ["", "## Exit codes", "", "| code | what it means |", "| --- | --- |"]
    lines += [f"| {int(code)} | {meaning} |" for code, meaning in MEANINGS.items()]
    lines += [
        "",
        "## Signals",
        "",
        "Ctrl-C (SIGINT) and SIGTERM ask a long-running command to stop: it takes no new visitors, lets requests in flight end for",
        "as long as `--drain` says, and exits 0. The second signal ends it at once.",
        "",
        "## Output",
        "",
        "On a terminal `edgetun http`, `up` and `serve` show a live display; otherwise log lines go to standard error. `--json` makes",
        "each of them a JSON object, `--quiet` leaves warnings and errors. Tokens and credentials are masked wherever they would show.",
        "`--metrics HOST:PORT` serves `/metrics` (OpenMetrics), `/healthz` and `/readyz`, without authentication: keep it to loopback.",
    ]
    return "\n".join(lines) + "\n"


def _anchor(command: str) -> str:
    return "settings.md#" + command.replace(" ", "-")


def _first_sentence(cls: type[Any]) -> str:
    """Of the docstring, which may run over several lines."""
    return " ".join((cls.__doc__ or "").split()).partition(". ")[0].rstrip(".") + "."


# --- examples ----------------------------------------------------------------------------------------------------------


def build_examples_page(folder: Path) -> str:
    """examples/README.md: the first comment of each example, as an index."""
    lines = [
        "# Examples",
        "",
        NOTE,
        "",
        "One small file per feature. Try one with `edgetun up -f examples/cache.yaml`, check your own with `edgetun validate -f`.",
        "All fields: [docs/reference/resources.md](../docs/reference/resources.md).",
        "",
        "| file | what it shows |",
        "| --- | --- |",
    ]
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"| [{path.name}]({path.name}) | {_cell(first.removeprefix('#').strip())} |")
    return "\n".join(lines) + "\n"


# --- writing -----------------------------------------------------------------------------------------------------------


def _first_line(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|")


def build_pages(root: Path) -> dict[str, str]:
    """Every generated file: path below the repository's root -> text."""
    crds = build_crds(CRD_NOTE)
    return {
        "docs/reference/resources.md": build_resources_page(),
        "docs/reference/settings.md": build_settings_page(),
        "docs/reference/commands.md": build_commands_page(),
        **{f"{folder}/{name}": text for folder in CRD_FOLDERS for name, text in crds.items()},
        "examples/README.md": build_examples_page(root / "examples"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks; 1 when a file differs."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Writes the files that are made from code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file differs")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository (default: here)")
    options = parser.parse_args(argv)
    root: Path = options.root
    if not (root / "pyproject.toml").exists():
        sys.stderr.write(f"error: {root} is not the repository; run this at its root, or name it with --root\n")
        return 2
    differing = 0
    for name, text in build_pages(root).items():
        path = root / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            differing += 1
            sys.stderr.write(f"error: {name} is not what the code says; run make generate and commit it\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {name}\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())

"""Settings of a process: one frozen dataclass, read once, from flags > environment > file (TOML) > defaults.

A process declares its settings as fields and gets its flags, environment names, file keys, `--help` and its page in
`docs/reference/settings.md` from them:

    @dataclass(frozen=True, slots=True)
    class ExitNodeSettings:
        "Serves visitors of one region."

        section: ClassVar[str] = "exitnode"          # table in the file; also names the process in the reference

        http_port: int = setting(8080, "Port for plain HTTP; 0 takes a free one.", minimum=0, maximum=65535)
        drain_s: float = setting(30.0, "How long requests in flight may take to end when the process stops.")
        cluster_token: str = setting("", "Token to register with.", secret=True)

`http_port` is `--http-port`, `EDGETUN_HTTP_PORT` and `http-port = 8080`. The type decides how text is read:

| annotation | written as |
| --- | --- |
| `str`, `int`, `float`, `Path` | itself |
| `bool` | `--flag` / `--no-flag`; `true`, `false`, `1`, `0`, `yes`, `no`, `on`, `off` in the environment |
| `float`, name ends in `_s` | a duration (`2s`, `500ms`) or a plain number of seconds; the flag drops the `_s` |
| `int`, name ends in `_bytes` | a size (`8Mi`, `10MB`) or a plain number |
| `tuple[str, ...]` | flag given several times; joined by commas in the environment; a list in the file |
| `Literal["a", "b"]` | one of them |
| `X \\| None` | as `X`; `None` when nobody says anything |

A secret also has `--NAME-file`, `EDGETUN_NAME_FILE` and `NAME-file`, and never shows in `repr` or in a message.
Startup budget: this module imports argparse and nothing heavier.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from edgetun_core.errors import ConfigError
from edgetun_core.quantities import format_bytes, format_duration, parse_bytes, parse_duration, quoted

S = TypeVar("S")
T = TypeVar("T")

_KEY: Final = "edgetun.setting"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_SECRET_BYTES: Final = 64 * 1024


class _Required:
    """Stands for "no default": somebody has to say it."""


REQUIRED: Final[Any] = _Required()


class _Declared(NamedTuple):
    help: str
    secret: bool
    flag: str
    env: str
    short: str
    positional: bool
    several: bool
    metavar: str
    minimum: float | None
    maximum: float | None
    parse: Callable[[str], Any] | None
    also_env: tuple[str, ...]


def setting(
    default: T,
    help: str,  # noqa: A002 - the word argparse taught everybody
    *,
    secret: bool = False,
    flag: str = "",
    env: str = "",
    short: str = "",
    positional: bool = False,
    several: bool = False,
    metavar: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    parse: Callable[[str], Any] | None = None,
    also_env: tuple[str, ...] = (),
) -> T:
    """Declares one setting: its default (`REQUIRED`: none), help for people, and how it differs from the rules above.

    `flag` and `env` override the derived names, `short` adds a one-letter flag (`"-f"`), `positional` makes it an argument
    without a flag, `several` lets the flag of a list take more than one value at once (`-f a b`). `parse` reads text where
    the type alone does not say how; it raises `ValueError` with a message for a person. `also_env` names variables that other
    programs heed too (`HTTPS_PROXY`); they come after the setting's own and before the file.
    """
    declared = _Declared(
        help, secret, flag, env, short, positional, several, metavar, minimum, maximum, parse, also_env
    )
    # REQUIRED is a default to the dataclass only: `from_namespace` refuses before it could be seen.
    return dataclasses.field(default=default, metadata={_KEY: declared}, repr=not secret)


class SettingInfo(NamedTuple):
    """One setting as the parser, the help and the reference page see it.

    A named tuple, because making a frozen dataclass of this size costs an exit node a millisecond of its start.
    """

    name: str
    help: str
    kind: str
    """`text`, `integer`, `number`, `flag`, `duration`, `size`, `path`, `list` or `choice`."""
    choices: tuple[str, ...]
    optional: bool
    default: Any
    secret: bool
    flag: str
    """`--http-port`; empty for a positional argument."""
    short: str
    env: str
    key: str
    """The key in the file."""
    several: bool
    metavar: str
    minimum: float | None
    maximum: float | None
    parse: Callable[[str], Any] | None
    also_env: tuple[str, ...] = ()

    @property
    def env_text(self) -> str:
        """Its environment variables, the strongest first."""
        return ", ".join((self.env, *self.also_env))

    @property
    def default_text(self) -> str:
        """The default as a person would write it; empty when there is none, and always for a secret."""
        value = self.default
        if self.secret or value is REQUIRED or value is None or value in ("", ()):
            return ""
        if self.kind == "flag":
            return "on" if value else "off"
        if self.kind == "duration":
            return format_duration(value)
        if self.kind == "size":
            return format_bytes(value)
        if self.kind == "list":
            return ",".join(str(item) for item in value)
        return str(value)


def describe_settings(cls: type[Any]) -> tuple[SettingInfo, ...]:
    """Every setting of a settings class, in the order of declaration. Raises `TypeError` for a type it cannot read."""
    hints = get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        declared: _Declared | None = field.metadata.get(_KEY)
        if declared is None:
            raise TypeError(f"{cls.__name__}.{field.name} is not declared with setting(...)")
        kind, choices, optional = _kind_of(field.name, hints[field.name], declared)
        stem = field.name.removesuffix("_s") if kind == "duration" else field.name
        dashed = stem.replace("_", "-")
        found.append(
            SettingInfo(
                name=field.name,
                help=declared.help,
                kind=kind,
                choices=choices,
                optional=optional,
                default=field.default,
                secret=declared.secret,
                flag="" if declared.positional else declared.flag or f"--{dashed}",
                short=declared.short,
                env=declared.env or f"EDGETUN_{stem.upper()}",
                key=dashed,
                several=declared.several,
                metavar=declared.metavar or _METAVARS.get(kind, "") or dashed.upper(),
                minimum=declared.minimum,
                maximum=declared.maximum,
                parse=declared.parse,
                also_env=declared.also_env,
            )
        )
    return tuple(found)


_METAVARS: Final = {"duration": "DURATION", "size": "SIZE", "path": "PATH", "integer": "N", "number": "N"}


def _kind_of(name: str, hint: Any, declared: _Declared) -> tuple[str, tuple[str, ...], bool]:
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        inner = [arm for arm in get_args(hint) if arm is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"setting {name}: only `X | None` is supported, not {hint}")
        hint, optional = inner[0], True
    if get_origin(hint) is Literal:
        return "choice", tuple(str(arm) for arm in get_args(hint)), optional
    if get_origin(hint) is tuple:
        if get_args(hint) != (str, ...) and declared.parse is None:
            raise TypeError(f"setting {name}: a list is tuple[str, ...]")
        return "list", (), optional
    if hint is bool:
        return "flag", (), optional
    if hint is float:
        return ("duration" if name.endswith("_s") else "number"), (), optional
    if hint is int:
        return ("size" if name.endswith("_bytes") else "integer"), (), optional
    if hint is Path:
        return "path", (), optional
    if hint is str or declared.parse is not None:
        return "text", (), optional
    raise TypeError(f"setting {name}: {hint} needs parse=")


class SettingsParser(argparse.ArgumentParser):
    """`argparse` without guessing of abbreviated flags, which would make every new flag a breaking change.

    Subparsers made from it are of this class too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def add_arguments(parser: argparse.ArgumentParser, cls: type[Any], *, config_flag: bool = True) -> None:
    """Adds a flag (or positional argument) per setting of `cls` to `parser`, and `--config` once.

    Flags nobody gave stay out of the namespace, so `from_namespace` can tell them from defaults. Several classes may share one
    parser as long as their names differ.
    """
    taken = parser._option_string_actions  # argparse has no public question for this
    if config_flag and "--config" not in taken:
        parser.add_argument(
            "--config",
            metavar="PATH",
            default=argparse.SUPPRESS,
            help="TOML file with settings; flags and environment win over it (env EDGETUN_CONFIG)",
        )
    for info in describe_settings(cls):
        help_text = _help_of(info).replace("%", "%%")
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_text}
        if info.kind == "flag":
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = "{" + ",".join(info.choices) + "}" if info.choices else info.metavar
            if info.kind == "list" and info.flag:
                options["action"] = "extend" if info.several else "append"
                if info.several:
                    options["nargs"] = "+"
        if not info.flag:
            parser.add_argument(info.name, nargs="*" if info.kind == "list" else "?", **options)
            continue
        names = [info.short, info.flag] if info.short else [info.flag]
        parser.add_argument(*names, dest=info.name, **options)
        if info.secret:
            parser.add_argument(
                f"{info.flag}-file",
                dest=f"{info.name}_file",
                metavar="PATH",
                default=argparse.SUPPRESS,
                help=f"file that holds what {info.flag} would say (env {info.env}_FILE)",
            )


def _help_of(info: SettingInfo) -> str:
    facts = []
    if info.default is REQUIRED:
        facts.append("required")
    elif info.default_text:
        facts.append(f"default {info.default_text}")
    if info.kind == "list" and info.flag:
        facts.append("may be given several times")
    facts.append(f"env {info.env_text}")
    return f"{info.help} ({'; '.join(facts)})"


def load_settings(
    cls: type[S],
    argv: Sequence[str],
    environ: Mapping[str, str],
    config_file: Path | None = None,
    *,
    prog: str | None = None,
) -> S:
    """Reads the settings of a process that has no subcommands.

    `argv` is without the program's name. `config_file` is where to look when neither `--config` nor `EDGETUN_CONFIG` names
    one; there it may be absent. Raises `ConfigError` that tells every wrong setting at once, and exits as argparse does on
    `--help` (0) and on flags that do not exist (2).
    """
    parser = SettingsParser(prog=prog, description=_description(cls))
    add_arguments(parser, cls)
    return from_namespace(cls, parser.parse_args(argv), environ, config_file)


def _description(cls: type[Any]) -> str:
    """The class's own docstring; dataclasses put a signature where there is none."""
    doc = cls.__doc__ or ""
    return "" if doc.startswith(f"{cls.__name__}(") else doc.strip()


def from_namespace(
    cls: type[S],
    namespace: argparse.Namespace,
    environ: Mapping[str, str],
    config_file: Path | None = None,
) -> S:
    """Builds the settings from flags that `add_arguments` made a parser read. Raises `ConfigError`."""
    flags: Mapping[str, Any] = vars(namespace)
    problems: list[str] = []
    infos = describe_settings(cls)
    table, file_name = _file_table(cls, infos, flags, environ, config_file, problems)
    values: dict[str, Any] = {}
    for info in infos:
        given = _given(info, flags, environ, table, file_name, problems)
        if given is not None:
            source, raw = given
            try:
                values[info.name] = _read(info, raw)
            except ValueError as error:
                problems.append(f"{source}: {error}")
        elif info.default is REQUIRED:
            problems.append(f"{_missing(info)}")
    if problems:
        raise ConfigError("\n".join(problems))
    return cls(**values)


def _missing(info: SettingInfo) -> str:
    if not info.flag:
        return f"{info.metavar} is missing; give it as an argument or as {info.env}"
    return f"{info.flag} is missing; give it as a flag, as {info.env}, or as {info.key} in a file named by --config"


def _given(
    info: SettingInfo,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    table: Mapping[str, Any],
    file_name: str,
    problems: list[str],
) -> tuple[str, Any] | None:
    """The first source that says something about a setting: where, and what it says."""
    in_flags = flags.get(info.name)
    file_flag = flags.get(f"{info.name}_file") if info.secret else None
    if in_flags is not None and file_flag is not None:
        problems.append(f"{info.flag}: given twice, also as {info.flag}-file; give one of them")
        return None
    if in_flags not in (None, []):
        return (info.flag or info.metavar), in_flags
    if file_flag is not None:
        return _secret_from_file(f"{info.flag}-file", file_flag, problems)
    # An empty variable is how shells and pod templates say "not set".
    if environ.get(info.env):
        return info.env, environ[info.env]
    if info.secret and environ.get(f"{info.env}_FILE"):
        return _secret_from_file(f"{info.env}_FILE", environ[f"{info.env}_FILE"], problems)
    for name in info.also_env:
        if environ.get(name):
            return name, environ[name]
    if info.key in table:
        return f"{file_name}: {info.key}", table[info.key]
    if info.secret and f"{info.key}-file" in table:
        return _secret_from_file(f"{file_name}: {info.key}-file", table[f"{info.key}-file"], problems)
    return None


def _secret_from_file(source: str, path: object, problems: list[str]) -> tuple[str, str] | None:
    if not isinstance(path, str):
        problems.append(f"{source}: {quoted(path)} is not a path; write it in quotes")
        return None
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_SECRET_BYTES + 1)
        if len(raw) > _MAX_SECRET_BYTES:
            problems.append(f"{source}: {path} is larger than {_MAX_SECRET_BYTES} bytes; is it the right file?")
            return None
        text = raw.decode().strip()
    except (OSError, ValueError) as error:
        problems.append(f"{source}: cannot read {path} ({_why(error)}); check the path and its permissions")
        return None
    if not text:
        problems.append(f"{source}: {path} is empty; write the secret into it")
        return None
    return source, text


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"


def _file_table(
    cls: type[Any],
    infos: Sequence[SettingInfo],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config_file: Path | None,
    problems: list[str],
) -> tuple[dict[str, Any], str]:
    """The file's settings for this process: its top level, then the table named for the process over it."""
    named = flags.get("config") or environ.get("EDGETUN_CONFIG")
    path = Path(named) if named else config_file
    if path is None or (not named and not path.exists()):
        return {}, ""
    name = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        problems.append(f"{name}: cannot read the settings ({error.strerror}); check the path and its permissions")
        return {}, name
    if len(raw) > _MAX_FILE_BYTES:
        problems.append(f"{name}: larger than 1 MiB; a settings file is small, is it the right one?")
        return {}, name
    import tomllib  # only who has a file pays for it

    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        problems.append(f"{name}: not TOML: {error}; write lines like http-port = 8080")
        return {}, name
    section = getattr(cls, "section", "")
    mine = document.pop(section, {}) if section else {}
    table: dict[str, Any] = {}
    known = {info.key for info in infos} | {f"{info.key}-file" for info in infos if info.secret}
    if not isinstance(mine, dict):
        problems.append(f"{name}: {section}: is a table; write [{section}] on a line of its own")
        mine = {}
    for place, source in (("", document), (f"{section}.", mine)):
        for written, value in source.items():
            key = written.replace("_", "-")
            if key in known:
                table[key] = value
            elif place or not isinstance(value, dict):  # other tables are other processes'
                problems.append(f"{name}: {place}{written}: no such setting{_closest(key, known)}")
    return table, name


def _closest(word: str, known: set[str]) -> str:
    import difflib  # only a mistake pays for it

    near = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; see --help for those there are"


def _read(info: SettingInfo, raw: Any) -> Any:
    """Turns what a source said into the setting's value. Raises `ValueError` for a person; never shows a secret."""
    try:
        value = _convert(info, raw)
    except ValueError as error:
        if info.secret:
            raise ValueError("not readable as it stands; check it for missing or extra characters") from error
        raise
    if isinstance(value, int | float) and not isinstance(value, bool):
        minimum = 0.0 if info.minimum is None and info.kind == "duration" else info.minimum
        if minimum is not None and value < minimum:
            raise ValueError(f"{quoted(raw)} is too small; the least is {_bound(info, minimum)}")
        if info.maximum is not None and value > info.maximum:
            raise ValueError(f"{quoted(raw)} is too large; the most is {_bound(info, info.maximum)}")
    return value


def _bound(info: SettingInfo, value: float) -> str:
    if info.kind == "duration":
        return format_duration(value)
    return format_bytes(int(value)) if info.kind == "size" else f"{value:g}"


def _convert(info: SettingInfo, raw: Any) -> Any:
    if info.parse is not None and isinstance(raw, str) and info.kind != "list":
        return info.parse(raw)
    match info.kind:
        case "flag":
            return _read_flag(raw)
        case "integer":
            return _read_integer(raw)
        case "number":
            return _read_number(raw)
        case "duration":
            return _read_seconds(raw)
        case "size":
            return parse_bytes(raw)
        case "list":
            return _read_list(info, raw)
    if not isinstance(raw, str):
        raise ValueError(f"{quoted(raw)} is not text; write it in quotes")  # noqa: TRY004
    if info.kind == "choice" and raw not in info.choices:
        raise ValueError(f"{quoted(raw)} is not a choice; write {_or(info.choices)}")
    return Path(raw).expanduser() if info.kind == "path" else raw


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _read_flag(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, str) and raw.lower() in _TRUE | _FALSE:
        return raw.lower() in _TRUE
    raise ValueError(f"{quoted(raw)} is neither yes nor no; write true or false")


def _read_integer(raw: Any) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    text = raw if isinstance(raw, str) else ""
    if text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 18:
        return int(text)
    raise ValueError(f"{quoted(raw)} is not a whole number; write something like 8080")


def _read_number(raw: Any) -> float:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        number = float(raw)
    else:
        try:
            number = float(raw) if isinstance(raw, str) else float("nan")
        except ValueError:
            number = float("nan")
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(f"{quoted(raw)} is not a number; write something like 1.5")
    return number


def _read_seconds(raw: Any) -> float:
    try:
        return _read_number(raw)
    except ValueError:
        return parse_duration(raw)


def _read_list(info: SettingInfo, raw: Any) -> tuple[Any, ...]:
    pieces = [raw] if isinstance(raw, str) else raw
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise ValueError(f'{quoted(raw)} is not a list of texts; write ["one", "two"]')
    if isinstance(raw, str):
        # The environment has no lists. A flag's value stays whole: a field or a path may hold a comma.
        pieces = [word.strip() for word in raw.split(",")]
    parse = info.parse or str
    return tuple(parse(piece) for piece in pieces if piece)

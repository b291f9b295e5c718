"""Settings: where a value comes from, how it is read, what people are told."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from edgetun_core.errors import ConfigError
from edgetun_core.settings import (
    REQUIRED,
    SettingsParser,
    add_arguments,
    describe_settings,
    from_namespace,
    load_settings,
    setting,
)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Serves visitors of one region."""

    section: ClassVar[str] = "node"

    http_port: int = setting(8080, "Port; 100% free.", minimum=0, maximum=65535)
    drain_s: float = setting(30.0, "How long to drain.")
    ratio: float = setting(0.5, "A ratio.", maximum=1)
    cache_bytes: int = setting(1 << 20, "Memory.", minimum=1024)
    token: str = setting("", "Token to register with.", secret=True)
    engine: Literal["qh3", "tls"] = setting("qh3", "Engine.")
    host: tuple[str, ...] = setting((), "Hosts.")
    state: Path | None = setting(None, "Folder.")
    quiet: bool = setting(False, "Say less.", short="-q")


@dataclass(frozen=True, slots=True)
class NeedySettings:
    """Needs to be told."""

    url: str = setting(REQUIRED, "What to ask.", positional=True)
    name: str = setting(REQUIRED, "Who asks.")
    file: tuple[str, ...] = setting((), "Files.", short="-f", several=True)


def read(*argv: str, environ: dict[str, str] | None = None, config: Path | None = None) -> NodeSettings:
    return load_settings(NodeSettings, argv, environ or {}, config)


def problems(*argv: str, environ: dict[str, str] | None = None, config: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*argv, environ=environ, config=config)
    return str(caught.value).splitlines()


def test_nobody_says_anything_and_the_defaults_hold() -> None:
    assert read() == NodeSettings()


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "edgetun.toml"
    file.write_text("http-port = 1\ndrain = '1s'\nratio = 0.1\n")
    environ = {"EDGETUN_HTTP_PORT": "2", "EDGETUN_DRAIN": "2s"}
    settings = read("--http-port", "3", environ=environ, config=file)
    assert (settings.http_port, settings.drain_s, settings.ratio) == (3, 2.0, 0.1)
    assert settings.cache_bytes == 1 << 20


def test_every_kind_of_setting_is_read_from_the_environment() -> None:
    environ = {
        "EDGETUN_HTTP_PORT": "80",
        "EDGETUN_DRAIN": "1m30s",
        "EDGETUN_RATIO": "0.25",
        "EDGETUN_CACHE_BYTES": "8Mi",
        "EDGETUN_TOKEN": "s3cret",
        "EDGETUN_ENGINE": "tls",
        "EDGETUN_HOST": "a, b,",
        "EDGETUN_STATE": "/var/lib/edgetun",
        "EDGETUN_QUIET": "Yes",
    }
    assert read(environ=environ) == NodeSettings(
        80, 90.0, 0.25, 8 << 20, "s3cret", "tls", ("a", "b"), Path("/var/lib/edgetun"), True
    )


def test_every_kind_of_setting_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "edgetun.toml"
    file.write_text(
        "http_port = 80\ndrain = 2.5\ncache-bytes = 4096\nengine = 'tls'\nhost = ['a', 'b,c']\nstate = '/s'\nquiet = true\n"
    )
    assert read(config=file) == NodeSettings(80, 2.5, 0.5, 4096, "", "tls", ("a", "b,c"), Path("/s"), True)


def test_an_empty_variable_says_nothing() -> None:
    assert read(environ={"EDGETUN_HTTP_PORT": "", "EDGETUN_TOKEN": ""}) == NodeSettings()


def test_a_flag_given_several_times_is_a_list_whose_commas_stay() -> None:
    assert read("--host", "a", "--host", "b, c").host == ("a", "b, c")


def test_a_flag_can_be_turned_off_over_the_environment() -> None:
    assert read("--no-quiet", environ={"EDGETUN_QUIET": "1"}).quiet is False
    assert read("-q").quiet is True


def test_the_commands_own_table_wins_over_the_top_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "edgetun.toml"
    file.write_text("http-port = 1\nquiet = true\n[node]\nhttp-port = 2\n[somebody-else]\nwhatever = 3\n")
    settings = read(config=file)
    assert (settings.http_port, settings.quiet) == (2, True)


def test_the_file_can_be_named_by_flag_and_by_environment(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("http-port = 1\n")
    two.write_text("http-port = 2\n")
    environ = {"EDGETUN_CONFIG": str(one)}
    assert read(environ=environ).http_port == 1
    assert read("--config", str(two), environ=environ).http_port == 2


def test_only_a_file_that_somebody_named_must_exist(tmp_path: Path) -> None:
    missing = tmp_path / "edgetun.toml"
    assert read(config=missing) == NodeSettings()
    assert problems("--config", str(missing)) == [
        f"{missing}: cannot read the settings (No such file or directory); check the path and its permissions"
    ]


def test_everything_wrong_is_told_at_once_and_where_it_was_said(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text("engin = 'tls'\nquiet = 'maybe'\n[node]\nratio = 2\nnothing-like-it = 1\n")
    environ = {"EDGETUN_DRAIN": "2 seconds", "EDGETUN_ENGINE": "quic"}
    assert problems("--http-port", "99999", environ=environ, config=file) == [
        f"{file}: engin: no such setting; did you mean engine?",
        f"{file}: node.nothing-like-it: no such setting; see --help for those there are",
        '--http-port: "99999" is too large; the most is 65535',
        'EDGETUN_DRAIN: "2 seconds" is not a duration; write 2s, 500ms or 1m',
        f"{file}: ratio: 2 is too large; the most is 1",
        'EDGETUN_ENGINE: "quic" is not a choice; write qh3 or tls',
        f'{file}: quiet: "maybe" is neither yes nor no; write true or false',
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--http-port", "abc"], '--http-port: "abc" is not a whole number; write something like 8080'),
        (["--http-port", "1_0"], '--http-port: "1_0" is not a whole number; write something like 8080'),
        (["--http-port", "-1"], '--http-port: "-1" is too small; the least is 0'),
        (["--drain=-1"], '--drain: "-1" is too small; the least is 0s'),
        (["--drain", "nan"], '--drain: "nan" is not a duration; write 2s, 500ms or 1m'),
        (["--ratio", "x"], '--ratio: "x" is not a number; write something like 1.5'),
        (["--ratio", "inf"], '--ratio: "inf" is not a number; write something like 1.5'),
        (["--cache-bytes", "1"], '--cache-bytes: "1" is too small; the least is 1Ki'),
    ],
)
def test_a_wrong_value_is_told_with_its_remedy(argv: list[str], message: str) -> None:
    assert problems(*argv) == [message]


@pytest.mark.parametrize("text", ["http-port 80", "http-port = ", "a = 1\na = 2", "x = " + "[" * 5000])
def test_a_file_that_is_not_toml_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "e.toml"
    file.write_text(text)
    (line,) = problems(config=file)
    assert line.startswith(f"{file}: not TOML: ")


def test_a_secret_comes_from_a_file_by_flag_environment_and_settings_file(tmp_path: Path) -> None:
    secret, config = tmp_path / "token", tmp_path / "e.toml"
    secret.write_text("  s3cret\n")
    config.write_text(f"token-file = '{secret}'\n")
    assert read("--token-file", str(secret)).token == "s3cret"
    assert read(environ={"EDGETUN_TOKEN_FILE": str(secret)}).token == "s3cret"
    assert read(config=config).token == "s3cret"
    assert read("--token-file", str(secret), environ={"EDGETUN_TOKEN": "other"}).token == "s3cret"


def test_a_secret_given_twice_or_from_a_bad_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert problems("--token", "a", "--token-file", "b") == [
        "--token: given twice, also as --token-file; give one of them"
    ]
    assert problems("--token-file", str(empty)) == [f"--token-file: {empty} is empty; write the secret into it"]
    (line,) = problems(environ={"EDGETUN_TOKEN_FILE": str(tmp_path / "no")})
    assert line.startswith("EDGETUN_TOKEN_FILE: cannot read ")


def test_a_secret_never_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert "s3cret" not in repr(read("--token", "s3cret"))

    def picky(text: str) -> str:
        raise ValueError(f"{text} is bad")

    @dataclass(frozen=True)
    class Secretive:
        key: str = setting("hunter2", "A key.", secret=True, parse=picky)

    with pytest.raises(ConfigError) as caught:
        load_settings(Secretive, ["--key", "s3cret"], {})
    assert "s3cret" not in str(caught.value)
    with pytest.raises(SystemExit):
        load_settings(Secretive, ["--help"], {"EDGETUN_KEY": "s3cret"})
    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert "s3cret" not in shown


def test_help_lists_every_setting_with_default_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Serves visitors of one region." in text
    for info in describe_settings(NodeSettings):
        assert info.flag in text
        assert info.env in text
    assert "Port; 100% free. (default 8080; env EDGETUN_HTTP_PORT)" in text
    assert "(default 30s; env EDGETUN_DRAIN)" in text
    assert "(default 1Mi; env EDGETUN_CACHE_BYTES)" in text


def test_an_unknown_flag_ends_with_two_and_flags_are_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--nope"], ["--http-po", "1"]):
        with pytest.raises(SystemExit) as caught:
            read(*argv)
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith("error: unrecognized arguments")


def test_what_is_required_and_missing_is_told_with_every_way_to_say_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(NeedySettings, [], {})
    assert str(caught.value).splitlines() == [
        "URL is missing; give it as an argument or as EDGETUN_URL",
        "--name is missing; give it as a flag, as EDGETUN_NAME, or as name in a file named by --config",
    ]
    assert load_settings(NeedySettings, ["u"], {"EDGETUN_NAME": "n"}) == NeedySettings("u", "n")


def test_a_flag_may_take_several_values_at_once() -> None:
    assert load_settings(NeedySettings, ["u", "--name", "n", "-f", "a", "b", "-f", "c"], {}).file == ("a", "b", "c")


def test_subcommands_share_one_tree_and_read_only_their_own() -> None:
    parser = SettingsParser(prog="edgetun")
    commands = parser.add_subparsers(dest="command", required=True)
    add_arguments(commands.add_parser("node"), NodeSettings)
    add_arguments(commands.add_parser("ask"), NeedySettings)
    node = parser.parse_args(["node", "--http-port", "1", "-q"])
    assert from_namespace(NodeSettings, node, {}) == NodeSettings(http_port=1, quiet=True)
    ask = parser.parse_args(["ask", "u", "--name", "n"])
    assert from_namespace(NeedySettings, ask, {"EDGETUN_HTTP_PORT": "x"}) == NeedySettings("u", "n")


def test_two_settings_classes_may_share_one_parser() -> None:
    parser = SettingsParser(prog="x")
    add_arguments(parser, NodeSettings)
    add_arguments(parser, NeedySettings)
    namespace = parser.parse_args(["u", "--name", "n", "--http-port", "1"])
    assert from_namespace(NodeSettings, namespace, {}).http_port == 1
    assert from_namespace(NeedySettings, namespace, {}).name == "n"


def test_a_field_that_is_no_setting_or_has_no_readable_type_is_the_programmers_mistake() -> None:
    @dataclass(frozen=True)
    class Bare:
        port: int = 1

    @dataclass(frozen=True)
    class Odd:
        port: bytes = setting(b"", "x")

    with pytest.raises(TypeError, match=r"Bare\.port is not declared"):
        describe_settings(Bare)
    with pytest.raises(TypeError, match="needs parse="):
        describe_settings(Odd)


def test_required_never_reaches_the_settings_object() -> None:
    with pytest.raises(ConfigError):
        from_namespace(NeedySettings, Namespace(), {})


def test_reading_settings_imports_neither_pydantic_nor_yaml_nor_asyncio() -> None:
    code = "import sys, edgetun_core.settings; print(*(m for m in ('pydantic', 'yaml', 'asyncio', 'tomllib') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

"""The `edgetun` command: reads the settings of one subcommand, hands them to the code behind it, turns errors into exits.

Each command's code is imported when it is chosen: `edgetun http` must be ready within a second of its start.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from edgetun_core import __version__
from edgetun_core.errors import EdgetunError
from edgetun_core.exits import ExitCode, exit_code_of
from edgetun_core.settings import SettingsParser, add_arguments, from_namespace


class Command(NamedTuple):
    """A subcommand: where its settings class and its `run(settings) -> int` are found."""

    help: str
    settings: str
    run: str


COMMANDS: dict[str, Command] = {
    "http": Command(
        "put a local HTTP server behind an exit node, here and now", "edgetun.settings:HttpSettings", "edgetun.http:run"
    ),
    "tcp": Command(
        "put a local TCP service behind an exit node, here and now",
        "edgetun.settings:TcpSettings",
        "edgetun.streams:run_tcp",
    ),
    "udp": Command(
        "put a local UDP service behind an exit node, here and now",
        "edgetun.settings:UdpSettings",
        "edgetun.streams:run_udp",
    ),
    "up": Command("run the tunnels of manifest files, here and now", "edgetun.settings:UpSettings", "edgetun.up:run"),
    "serve": Command(
        "be a public exit node that agents connect to", "edgetun.settings:ServeSettings", "edgetun.serve:run"
    ),
    "demo": Command(
        "put a real local server behind a crowd and print what reached it",
        "edgetun.settings:DemoSettings",
        "edgetun.demo:run",
    ),
    "load": Command(
        "send visitors to a server of yours and measure",
        "edgetun.load_settings:LoadSettings",
        "edgetun.load_command:run",
    ),
    "compile": Command(
        "write the snapshot that an exit node obeys",
        "edgetun.compile_command:CompileSettings",
        "edgetun.compile_command:run",
    ),
    "purge": Command(
        "take responses out of the cache of a running exit node",
        "edgetun.purge_command:PurgeSettings",
        "edgetun.purge_command:run",
    ),
    "validate": Command("check manifest files", "edgetun.validate:ValidateSettings", "edgetun.validate:run"),
}

TOKEN_COMMANDS: dict[str, Command] = {
    "create": Command(
        "make a cluster token and print it, once",
        "edgetun.token_commands:CreateSettings",
        "edgetun.token_commands:run_create",
    ),
    "list": Command("list the tokens", "edgetun.token_commands:ListSettings", "edgetun.token_commands:run_list"),
    "revoke": Command(
        "revoke a token and close its sessions",
        "edgetun.token_commands:RevokeSettings",
        "edgetun.token_commands:run_revoke",
    ),
}


HOST_COMMANDS: dict[str, Command] = {
    "list": Command(
        "list the hostnames that tokens have claimed",
        "edgetun.token_commands:HostListSettings",
        "edgetun.token_commands:run_host_list",
    ),
    "release": Command(
        "give a claimed hostname back",
        "edgetun.token_commands:HostReleaseSettings",
        "edgetun.token_commands:run_host_release",
    ),
}

GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "token": ("make, list and revoke the tokens that agents register with", TOKEN_COMMANDS),
    "host": ("list and release the hostnames that tokens have claimed", HOST_COMMANDS),
}


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def build_parser(chosen: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The argument parser; only the chosen command's settings are imported (None: everybody's, for the reference pages)."""
    parser = SettingsParser(prog="edgetun", description="A tunnel whose edge computes.")
    parser.add_argument("--version", action="version", version=f"edgetun {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        _add(commands, name, command, chosen is None or chosen[:1] == [name])
    for group, (help_text, members) in GROUPS.items():
        actions = commands.add_parser(group, help=help_text).add_subparsers(
            dest="action", metavar="ACTION", required=True
        )
        for name, command in members.items():
            _add(actions, name, command, chosen is None or chosen[:2] == [group, name])
    return parser


def _add(commands: Any, name: str, command: Command, full: bool) -> None:
    if not full:
        commands.add_parser(name, help=command.help, add_help=False)
        return
    settings = _load(command.settings)
    sub = commands.add_parser(name, help=command.help, description=(settings.__doc__ or "").strip())
    add_arguments(sub, settings)
    sub.set_defaults(_settings=settings, _run=command.run)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code is one of `ExitCode`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    namespace = build_parser(arguments).parse_args(arguments)
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "edgetun" / "edgetun.toml"
    return guard(lambda: int(_load(namespace._run)(from_namespace(namespace._settings, namespace, os.environ, config))))


def guard(run: Callable[[], int]) -> int:
    """Calls a command; errors for people go to standard error without a traceback."""
    try:
        return run()
    except EdgetunError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output left; what was done is done.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILURE


if __name__ == "__main__":
    sys.exit(main())

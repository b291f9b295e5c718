"""`edgetun token create|list|revoke` and `edgetun host list|release`: what is typed and printed; `tokens.py` does the work."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from edgetun.settings import default_state_dir
from edgetun.tokens import create_token, list_claims, list_tokens, release_host, revoke_token
from edgetun_core.exits import ExitCode
from edgetun_core.settings import REQUIRED, setting

STATE_HELP = "State folder of the server. Default: ~/.local/share/edgetun."


@dataclass(frozen=True, slots=True)
class CreateSettings:
    """Makes a cluster token and prints it. It is shown this once; only a hash of it is kept."""

    section: ClassVar[str] = "token create"

    state: Path | None = setting(None, STATE_HELP)
    name: str = setting("", "What the token is for, such as whose laptop.")
    tunnel: tuple[str, ...] = setting(
        (), "Tunnels of manifests that it may serve, NAMESPACE/NAME or a pattern such as team-a/*."
    )
    host: tuple[str, ...] = setting(
        (),
        "Hostnames that its agents may ask for: one label, a hostname, or *.NAME. Default: any label under the domain.",
    )
    expires: str = setting("", "When it ends, such as 30d. Default: never.", metavar="DURATION")
    url: tuple[str, ...] = setting(
        (), "How agents reach the server, https://HOST:PORT. Default: as it was started last."
    )
    json: bool = setting(False, "Print JSON.")


@dataclass(frozen=True, slots=True)
class ListSettings:
    """Lists the cluster tokens, without their secrets."""

    section: ClassVar[str] = "token list"

    state: Path | None = setting(None, STATE_HELP)
    json: bool = setting(False, "Print JSON.")


@dataclass(frozen=True, slots=True)
class RevokeSettings:
    """Ends a token; a running server closes its sessions within two seconds, and no others."""

    section: ClassVar[str] = "token revoke"

    token: str = setting(REQUIRED, "Id of the token, the beginning of it, or its name.", positional=True)
    state: Path | None = setting(None, STATE_HELP)
    delete: bool = setting(False, "Remove its record too.")


@dataclass(frozen=True, slots=True)
class HostListSettings:
    """Lists the hostnames that tokens have claimed."""

    section: ClassVar[str] = "host list"

    state: Path | None = setting(None, STATE_HELP)
    json: bool = setting(False, "Print JSON.")


@dataclass(frozen=True, slots=True)
class HostReleaseSettings:
    """Gives a claimed hostname back, so that another token may claim it."""

    section: ClassVar[str] = "host release"

    host: str = setting(REQUIRED, "The hostname.", positional=True)
    state: Path | None = setting(None, STATE_HELP)


def _state(settings: CreateSettings | ListSettings | RevokeSettings | HostListSettings | HostReleaseSettings) -> Path:
    return settings.state or default_state_dir()


def run_create(settings: CreateSettings) -> int:
    """The token goes to standard output alone, so that it can be piped; what is to be known of it to standard error."""
    record, text = create_token(
        _state(settings),
        label=settings.name,
        tunnels=settings.tunnel,
        hostnames=settings.host,
        expires=settings.expires,
        control_urls=settings.url,
    )
    if settings.json:
        print(json.dumps({"id": record.id, "token": text, "expires": record.expires or None}))
    else:
        print(text)
        sys.stderr.write(f"token {record.id} is made; it is not shown again. On the laptop:\n")
        sys.stderr.write("  edgetun-agent --cluster-token TOKEN --origin http://localhost:3000\n")
    return ExitCode.OK


def run_list(settings: ListSettings) -> int:
    lines, problems = list_tokens(_state(settings))
    for problem in problems:
        sys.stderr.write(f"warning: {problem}\n")
    if settings.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
        return ExitCode.OK
    if not lines:
        print("no tokens; make one with: edgetun token create")
        return ExitCode.OK
    table = Table(box=None, pad_edge=False)
    for column in ("ID", "NAME", "STATE", "CREATED", "EXPIRES", "LAST USED", "MAY SERVE", "CLAIMED"):
        table.add_column(column, overflow="fold")
    for line in lines:
        may = ", ".join((*line.tunnels, *line.hostnames)) or "any label of the domain"
        row = (line.id, line.label, line.state, _date(line.created), _date(line.expires), _date(line.last_used))
        table.add_row(*row, may, ", ".join(line.claimed))
    Console(soft_wrap=False).print(table)
    return ExitCode.OK


def run_revoke(settings: RevokeSettings) -> int:
    record = revoke_token(_state(settings), settings.token, delete=settings.delete)
    print(f"token {record.id} is revoked; a running server closes its sessions within two seconds")
    return ExitCode.OK


def run_host_list(settings: HostListSettings) -> int:
    claims = list_claims(_state(settings))
    if settings.json:
        print(json.dumps([{"host": claim.hostname, "token": claim.token_id} for claim in claims], indent=2))
        return ExitCode.OK
    for claim in claims:
        print(f"{claim.hostname}  claimed by token {claim.token_id}")
    if not claims:
        print("no hostname is claimed")
    return ExitCode.OK


def run_host_release(settings: HostReleaseSettings) -> int:
    release_host(_state(settings), settings.host)
    print(f"{settings.host} is free again; a running server knows it within two seconds")
    return ExitCode.OK


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else "never"

"""`edgetun purge`: takes responses out of the cache of a running exit node."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import msgspec

from edgetun.settings import default_state_dir
from edgetun_core.errors import ConfigError, UpstreamError
from edgetun_core.exits import ExitCode
from edgetun_core.purge import (
    ADMIN_FILE,
    MAX_ORDER_BYTES,
    PURGE_PATH,
    AdminAccess,
    PurgeOrder,
    PurgeReport,
    check_order,
)
from edgetun_core.settings import setting

TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class PurgeSettings:
    """Takes stored responses out of the cache of a running exit node (one that was started with --metrics)."""

    section: ClassVar[str] = "purge"

    url: tuple[str, ...] = setting((), "Purge this very URL, with its query.", metavar="URL")
    prefix: tuple[str, ...] = setting((), "Purge every URL that begins so.", metavar="URL")
    tag: tuple[str, ...] = setting(
        (), "Purge what the origin gave this tag in Surrogate-Key or Cache-Tag; with --tunnel.", metavar="TAG"
    )
    tunnel: str = setting("", "The tunnel whose cache is meant.", metavar="NAMESPACE/NAME")
    everything: bool = setting(False, "Purge all that is stored of --tunnel.")
    state: Path | None = setting(None, "State folder of the exit node. Default: ~/.local/share/edgetun.")
    admin: str = setting("", "Admin listener, http://HOST:PORT, where it is not the one the state folder names.")
    json: bool = setting(False, "Print JSON.")


def run(settings: PurgeSettings) -> int:
    """Exit code 0 when all was carried out, 1 when part of it was not."""
    order = PurgeOrder(settings.tunnel, settings.url, settings.prefix, settings.tag, settings.everything)
    check_order(order)
    report = send(order, read_access(settings.state or default_state_dir()), settings.admin)
    if settings.json:
        print(msgspec.json.encode(report).decode())
    else:
        where = f" on {report.nodes} exit nodes" if report.nodes > 1 else ""
        print(f"purged {report.purged} stored response{'' if report.purged == 1 else 's'}{where}")
        for problem in report.problems:
            print(f"warning: {problem}", file=sys.stderr)
    return ExitCode.FAILURE if report.problems else ExitCode.OK


def read_access(state: Path) -> AdminAccess:
    """What a running exit node left in its state folder. Raises ConfigError that says what to do."""
    path = state / ADMIN_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=AdminAccess)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is not there: no exit node with an admin listener has run from this state folder",
            remedy="start it with --metrics 127.0.0.1:9090, or name its --state",
        ) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", remedy="ask as the user that runs the exit node"
        ) from error


def send(order: PurgeOrder, access: AdminAccess, admin: str = "") -> PurgeReport:
    """Sends an order. Raises AuthError, ConfigError or UpstreamError when the node refuses or is out of reach."""
    base = (admin or access.url).rstrip("/")
    if not base.startswith("http://"):
        raise ConfigError(f'--admin: "{base}" is no admin listener', remedy="write it as http://127.0.0.1:9090")
    data = msgspec.json.encode(order)
    if len(data) > MAX_ORDER_BYTES:
        raise ConfigError(
            f"the order has more than {MAX_ORDER_BYTES} bytes", remedy="purge in several goes, or a prefix"
        )
    request = urllib.request.Request(  # noqa: S310 - http:// only, see above
        base + PURGE_PATH,
        data=data,
        headers={"Authorization": f"Bearer {access.token}", "Content-Type": "application/json"},
        method="POST",
    )
    # No proxy: the listener is on this machine or inside the cluster.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            return msgspec.json.decode(response.read(), type=PurgeReport)
    except urllib.error.HTTPError as error:
        try:
            said = msgspec.json.decode(error.read(), type=dict[str, str]).get("error", "")
        except (OSError, msgspec.MsgspecError):
            said = ""
        raise ConfigError(
            f"the exit node refused ({error.code}): {said}",
            remedy="it may have been started anew with another --state"
            if error.code == 401
            else "see edgetun purge --help",
        ) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise UpstreamError(
            f"no exit node answers at {base}: {getattr(error, 'reason', error)}", remedy="is it still running?"
        ) from error

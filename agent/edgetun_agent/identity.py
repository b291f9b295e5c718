"""The agent's lasting name: control generates the same hostname for it again, and people recognise it in lists."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from pathlib import Path

from edgetun_core.errors import ConfigError

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")


def default_state_dir() -> Path:
    """XDG Base Directory for what is worth keeping."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "edgetun"


def read_agent_id(name: str, folder: Path) -> str:
    """The name that was asked for, or the one kept in `folder`, made at first use. Raises `ConfigError` for what is no name."""
    if name:
        if _NAME.match(name) is None:
            raise ConfigError(
                f'--name "{name}" is not a name', remedy="use 1 to 63 letters, digits, '-', '_' or '.', e.g. laptop-1"
            )
        return name
    file = folder / "agent-id"
    try:
        kept = file.read_text("utf-8").strip()
        if _NAME.match(kept):
            return kept
    except (OSError, ValueError):
        pass
    made = f"{_host_label()}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text(made + "\n", "utf-8")
    except OSError as error:
        log.warning("%s cannot be written (%s): a generated hostname will differ next time", file, error.strerror)
    return made


def _host_label() -> str:
    label = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return label[:40].strip("-") or "agent"

"""The peers and holders on disk, beside the last good snapshot: whom a node that starts while control is away may ask. Blocking."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Final

log = logging.getLogger("edgetun.exitnode.mesh")

FILE_NAME: Final = "last-peers"


def read_peers(folder: Path) -> bytes | None:
    """What `Holders.encode` made, or None."""
    try:
        return (folder / FILE_NAME).read_bytes()
    except OSError:
        return None


def write_peers(folder: Path, data: bytes) -> None:
    """Replaces the file; a reader sees the old one or the new. One that cannot be written is told, and is no reason to stop."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=folder, prefix=f".{FILE_NAME}.")
        try:
            with os.fdopen(fd, "wb") as handle:
                handle.write(data)
            os.replace(name, folder / FILE_NAME)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        log.warning("the list of peers cannot be kept in %s: %s", folder, error.strerror)

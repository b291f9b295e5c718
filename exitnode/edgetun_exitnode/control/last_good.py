"""The last good snapshot on disk, so that a node that starts while control is away serves all the same.

One file, replaced atomically; its digest tells a damaged one, which counts as none. Blocking: call it on a thread.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from edgetun_core.control_stream import snapshot_digest
from edgetun_core.errors import ConfigError
from edgetun_core.snapshot import Snapshot, decode_snapshot, encode_snapshot

log = logging.getLogger("edgetun.exitnode.control")

FILE_NAME: Final = "last-snapshot"


class LastGood:
    """The file in a folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    def read(self, pool: str, region: str) -> tuple[Snapshot, str] | None:
        """The snapshot and its digest; None when there is none for this pool's region, or it is damaged."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the last snapshot %s cannot be read: %s", self.path, error.strerror)
            return None
        digest, _, body = data.partition(b"\n")
        try:
            snapshot = decode_snapshot(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            log.warning("the last snapshot %s is damaged; waiting for control", self.path)
            return None
        if (snapshot.pool, snapshot.region) != (pool, region):
            log.info("the last snapshot %s is for %s/%s", self.path, snapshot.pool, snapshot.region)
            return None
        # A newer version of this program may read less or more out of it: then it is another content to control too.
        return snapshot, snapshot_digest(snapshot) if digest != b"" else ""

    def written_at(self) -> float | None:
        """When the file was written, in seconds since the epoch: control was heard of then."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return None

    def write(self, snapshot: Snapshot, digest: str) -> None:
        """Replaces the file; a reader sees the old one or the new. Raises `ConfigError`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{FILE_NAME}.")
            try:
                with os.fdopen(fd, "wb") as handle:
                    handle.write(digest.encode("ascii") + b"\n" + encode_snapshot(snapshot))
                    handle.flush()
                    os.fsync(handle.fileno())
                os.replace(name, self.path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            raise ConfigError(f"the last snapshot cannot be kept in {self.path.parent}: {error.strerror}") from error

"""Files that several processes share: written whole or not at all, changed under one lock, readable by their owner only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgetun_core.errors import ConfigError

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600


def make_private_folder(folder: Path) -> None:
    """Makes the folder and what is missing above it. Raises `ConfigError`."""
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(folder, error) from error


def write_whole(file: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replaces the file so that a reader, or a crash, finds the old content or the new. Raises `ConfigError`."""
    try:
        fd, name = tempfile.mkstemp(dir=file.parent, prefix=".new-")
        try:
            with os.fdopen(fd, "wb") as handle:
                os.fchmod(handle.fileno(), mode)
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(name, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(file.parent)
    except OSError as error:
        raise unusable(file, error) from error


def remove(file: Path) -> bool:
    """Removes the file for good; False when it was not there. Raises `ConfigError`."""
    try:
        file.unlink()
        _sync_folder(file.parent)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unusable(file, error) from error
    return True


@contextlib.contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds an exclusive lock. With `wait=False` raises `BlockingIOError` when another holds it; otherwise `ConfigError`."""
    try:
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    except OSError as error:
        raise unusable(file, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            raise unusable(file, error) from error
        yield
    finally:
        os.close(fd)


def unusable(path: Path, error: OSError) -> ConfigError:
    """An I/O error in words for the person who runs the server."""
    return ConfigError(
        f"state folder: {path} cannot be used ({error.strerror})", remedy="check who owns it and the space left"
    )


def _sync_folder(folder: Path) -> None:
    """Makes a rename or a removal durable; a file system that cannot is left to itself."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)

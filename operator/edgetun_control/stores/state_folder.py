"""The state folder of a server: what lies where, and every way it is read and changed. Synchronous; used by the command line
and, on a thread, by the running server at the same time.

    ca/                 the server's own CA and certificates (see edgetun_core.pki)
    keys/ID.json        Ed25519 seeds that session credentials are signed with
    tokens/ID.json      one `TokenRecord` each: a hash, never a secret
    tunnels/*.yaml      manifests that the administrator puts here
    claimed/HOST.json   hostnames claimed by ad-hoc tunnels, with what they serve
    known-tokens.json   which tokens were here, so that a deleted file still ends its sessions after a restart
    used-tokens.json    when each token was last used, about once a minute
    lock, serve.lock    one writer at a time; one server at a time

Files appear whole, so readers take no lock; a writer who must look before it writes holds `lock`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from edgetun_control.store import Claim, StoreProblem
from edgetun_control.stores.files import (
    locked,
    make_private_folder,
    remove,
    unusable,
    write_whole,
)
from edgetun_core.api.load import Loaded, load_files
from edgetun_core.credentials import SigningKey, TokenRecord
from edgetun_core.enrollment import UNREADABLE
from edgetun_core.errors import ConfigError, LimitExceeded

MAX_RECORD_BYTES: Final = 64 * 1024
KEY_LIFETIME_S: Final = 30 * 86400.0
"""After this a new signing key is made."""
OLD_KEY_KEPT_S: Final = 2 * 3600.0
"""How long a key is still published after its successor came into use: longer than any credential lives."""
MANIFEST_SUFFIXES: Final = (".yaml", ".yml", ".json")

T = TypeVar("T", bound=Struct)
FileMark = tuple[str, int, int, int]
"""Name, time of change, size and inode: what tells that a file may be another one than before."""


class KeyFile(Struct, frozen=True):
    """A signing key as it lies on disk; `seed` is base64 there."""

    key_id: str
    seed: bytes
    created: float


class KnownTokens(Struct, frozen=True):
    """`known`: every token id seen here and not ended; `ended`: deleted ones, with when that was noticed."""

    known: tuple[str, ...] = ()
    ended: dict[str, float] = {}


class StateFolder:
    """One server's state. Every method may raise `ConfigError` when the folder cannot be used."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.ca = self.path / "ca"
        self._keys = self.path / "keys"
        self._tokens = self.path / "tokens"
        self._tunnels = self.path / "tunnels"
        self._claimed = self.path / "claimed"
        self._known = self.path / "known-tokens.json"
        self._used = self.path / "used-tokens.json"

    @property
    def exists(self) -> bool:
        """Whether a server has been set up here."""
        return self._tokens.is_dir()

    def create(self) -> None:
        """Makes whatever of the folder is missing."""
        for folder in (self.path, self.ca, self._keys, self._tokens, self._tunnels, self._claimed):
            make_private_folder(folder)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """One writer at a time, across processes; held for milliseconds."""
        return locked(self.path / "lock")

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Held by a server for its whole life. Raises `ConfigError` when another one runs on this folder."""
        try:
            with locked(self.path / "serve.lock", wait=False):
                yield
        except BlockingIOError:
            raise ConfigError(
                f"another edgetun server runs on the state folder {self.path}",
                remedy="stop that one, or give this one a folder of its own",
            ) from None

    # ---- tokens

    def read_tokens(self, problems: list[StoreProblem]) -> dict[str, TokenRecord]:
        return self._read_records(self._tokens, TokenRecord, lambda record: record.id, problems)

    def put_token(self, record: TokenRecord) -> None:
        """Adds or replaces a token."""
        write_whole(self._tokens / f"{record.id}.json", _to_json(record))

    def delete_token(self, token_id: str) -> bool:
        """Removes every trace but the id in the list of ended ones; False when there was no such token."""
        return remove(self._tokens / f"{token_id}.json")

    def read_known_tokens(self) -> KnownTokens:
        return _read_one(self._known, KnownTokens) or KnownTokens()

    def write_known_tokens(self, known: KnownTokens) -> None:
        write_whole(self._known, _to_json(known))

    def read_used_tokens(self) -> dict[str, float]:
        try:
            return msgspec.json.decode(self._used.read_bytes(), type=dict[str, float])
        except (OSError, *UNREADABLE):
            return {}  # only a convenience for `token list`

    def write_used_tokens(self, used: Mapping[str, float]) -> None:
        write_whole(self._used, _to_json(dict(used)))

    # ---- signing keys

    def read_signing_keys(self, problems: list[StoreProblem]) -> tuple[SigningKey, ...]:
        """From old to new."""
        files = self._read_records(self._keys, KeyFile, lambda key: key.key_id, problems)
        keys: list[SigningKey] = []
        for key in files.values():
            try:
                keys.append(SigningKey(key.key_id, key.seed, key.created))
            except ConfigError as error:
                problems.append(StoreProblem(f"keys/{key.key_id}.json", str(error)))
        return tuple(sorted(keys, key=lambda key: (key.created, key.key_id)))

    def rotate_signing_keys(self, now: float) -> bool:
        """Makes the first key, or the next when the newest has grown old, and drops those long replaced; True on a change."""
        with self.locked():
            keys = self.read_signing_keys([])
            changed = False
            for key, successor in itertools.pairwise(keys):
                if successor.created + OLD_KEY_KEPT_S < now:
                    changed |= remove(self._keys / f"{key.key_id}.json")
            if not keys or keys[-1].created + KEY_LIFETIME_S < now:
                fresh = KeyFile(secrets.token_hex(4), secrets.token_bytes(32), now)
                write_whole(self._keys / f"{fresh.key_id}.json", _to_json(fresh))
                changed = True
            return changed

    # ---- claims

    def read_claims(self, problems: list[StoreProblem]) -> dict[str, Claim]:
        return self._read_records(self._claimed, Claim, lambda claim: claim.hostname, problems)

    def claim(self, claim: Claim, most_per_token: int) -> Claim:
        """See `Store.claim`."""
        file = self._claimed / f"{claim.hostname}.json"
        with self.locked():
            standing = _read_one(file, Claim)
            if standing is None and file.exists():
                # Better to refuse than to give away a name whose owner cannot be read.
                raise ConfigError(f"{file} cannot be read", remedy="mend or remove it")
            if standing is not None:
                if standing.token_id != claim.token_id:
                    return standing
                claim = msgspec.structs.replace(claim, created=standing.created)
                if claim == standing:
                    return standing
            else:
                held = sum(1 for other in self.read_claims([]).values() if other.token_id == claim.token_id)
                if held >= most_per_token:
                    raise LimitExceeded(
                        f"the token holds {held} hostnames already, and more are not given",
                        remedy='use one of them with --host, or let the administrator free some ("edgetun host release")',
                    )
            write_whole(file, _to_json(claim))
            return claim

    def release(self, hostname: str) -> bool:
        """Frees a claimed hostname for any token; False when it was not claimed."""
        with self.locked():
            return remove(self._claimed / f"{hostname}.json")

    # ---- manifests

    def load_manifests(self) -> Loaded:
        """The administrator's resources; whatever is wrong in one file keeps no other from being used."""
        return load_files(self._tunnels / name for name in _names(self._tunnels, MANIFEST_SUFFIXES))

    # ---- noticing changes

    def marks(self) -> tuple[tuple[FileMark, ...], ...]:
        """Changes whenever a token, a key, a claim or a manifest may have; costs a stat per file."""
        return (
            _marks(self._tokens, (".json",)),
            _marks(self._keys, (".json",)),
            _marks(self._claimed, (".json",)),
            _marks(self._tunnels, MANIFEST_SUFFIXES),
        )

    def _read_records(
        self, folder: Path, kind: type[T], name_of: Callable[[T], str], problems: list[StoreProblem]
    ) -> dict[str, T]:
        records: dict[str, T] = {}
        for name in _names(folder, (".json",)):
            source = f"{folder.name}/{name}"
            try:
                record = msgspec.json.decode(_read_bounded(folder / name, MAX_RECORD_BYTES), type=kind)
            except FileNotFoundError:
                continue
            except OSError as error:
                problems.append(StoreProblem(source, f"cannot be read: {error.strerror}"))
                continue
            except UNREADABLE as error:
                problems.append(StoreProblem(source, f"is not what edgetun wrote: {error}"))
                continue
            if f"{name_of(record)}.json" != name:
                problems.append(StoreProblem(source, "has another name than what is in it; rename or remove it"))
                continue
            records[name_of(record)] = record
        return records


def _to_json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _read_one(file: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(_read_bounded(file, MAX_RECORD_BYTES), type=kind)
    except (OSError, *UNREADABLE):
        return None


def _read_bounded(file: Path, most_bytes: int) -> bytes:
    with file.open("rb") as handle:
        raw = handle.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise ValueError(f"is larger than {most_bytes} bytes; split it")
    return raw


def _names(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(suffixes) and not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unusable(folder, error) from error


def _marks(folder: Path, suffixes: tuple[str, ...]) -> tuple[FileMark, ...]:
    marks: list[FileMark] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffixes) and not entry.name.startswith("."):
                    try:
                        # Through symbolic links: mounted ConfigMaps swap what a link points to.
                        status = entry.stat()
                    except OSError:
                        continue
                    marks.append((entry.name, status.st_mtime_ns, status.st_size, status.st_ino))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise unusable(folder, error) from error
    return tuple(sorted(marks))

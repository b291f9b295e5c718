"""The disk tier: stored responses as files, so that a restart does not begin with an empty cache.

The event loop holds an index (key, secondary key, tags, size) and asks it on a miss in memory; one worker thread reads and writes the
files. What is removed is unlinked at once, so that nothing purged comes back after a crash.

A file is written beside its place and renamed into it, and ends with a checksum over all of it: one that was half written, or that
rotted, is taken for absent and deleted. It says when its response came by the wall clock; after a clock that went back it is not used.

Bounds. Files are at most `max_bytes` together, `MAX_ENTRIES` in number; bytes waiting to be written at most `MAX_PENDING_BYTES`, what
comes while there are more is not written. When it is full, the tunnel that holds most loses its oldest files first.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.freshness import Timing
from edgetun_exitnode.cache.key import Secondary

log = logging.getLogger("edgetun.exitnode.cache")

MAX_ENTRIES: Final = 500_000
MAX_PENDING_BYTES: Final = 32 * 1024 * 1024
LEAST_LIFETIME_S: Final = 10.0
"""What is fresh for less, and cannot be validated, is not worth a file."""
REWRITE_S: Final = 10.0
"""A file is not written anew for a later lifetime of the same body more often than this."""
FILE_OVERHEAD_BYTES: Final = 4096
"""A file takes whole blocks."""
_MAGIC: Final = b"edgetun-cache-1\n"
_SIZES: Final = struct.Struct(">IQ")
_CHECKSUM_BYTES: Final = 32
_MAX_HEAD_BYTES: Final = 1 << 20


class StoredHead(Struct, frozen=True):
    """What a file says of its response before the body. Moments are seconds since 1970."""

    tenant: str
    key: bytes
    names: tuple[bytes, ...]
    secondary: Secondary
    rule: CacheRule
    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    length: int
    answers_authorized: bool
    tags: tuple[bytes, ...]
    received_wall_s: float
    age_on_arrival_s: float
    lifetime_s: float
    counts_from_arrival: bool
    stale_while_revalidate_s: float
    stale_if_error_s: float
    may_be_stale: bool
    is_immutable: bool

    def timing(self, now: float, wall_s: float) -> Timing | None:
        """The timing by this process's clock; None when the wall clock went back, so that nobody knows how old it is."""
        rested_s = wall_s - self.received_wall_s
        if rested_s < 0:
            return None
        return Timing(
            now - rested_s,
            self.age_on_arrival_s,
            self.lifetime_s,
            self.counts_from_arrival,
            self.stale_while_revalidate_s,
            self.stale_if_error_s,
            self.may_be_stale,
            self.is_immutable,
        )


class Loaded(Struct, frozen=True):
    """A file that was read whole."""

    head: StoredHead
    pieces: list[bytes]


class DiskEntry:
    """One file in the index."""

    __slots__ = ("key", "names", "path", "secondary", "size_bytes", "tags", "tenant", "written_at")

    def __init__(self, head: StoredHead, path: Path, size_bytes: int, written_at: float = float("-inf")) -> None:
        self.tenant = head.tenant
        self.key = head.key
        self.names = head.names
        self.secondary = head.secondary
        self.tags = head.tags
        self.path = path
        self.size_bytes = size_bytes
        self.written_at = written_at
        """By the monotonic clock; long ago for a file of an earlier run."""


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(StoredHead)


def file_name(key: bytes, secondary: Secondary) -> str:
    """Where a variant lies below the folder."""
    digest = hashlib.blake2b(_encoder.encode((key, secondary)), digest_size=20).hexdigest()
    return f"{digest[:2]}/{digest[2:]}"


def encode_file(head: StoredHead, pieces: list[bytes]) -> list[bytes]:
    """The file in pieces, checksum last."""
    encoded = _encoder.encode(head)
    opening = _MAGIC + _SIZES.pack(len(encoded), sum(map(len, pieces))) + encoded
    checksum = hashlib.blake2b(opening, digest_size=_CHECKSUM_BYTES)
    for piece in pieces:
        checksum.update(piece)
    return [opening, *pieces, checksum.digest()]


def decode_head(data: bytes) -> tuple[StoredHead, int, int] | None:
    """Head, where the body begins, and its length, from the first bytes of a file; None when it is no such file."""
    start = len(_MAGIC) + _SIZES.size
    if len(data) < start or not data.startswith(_MAGIC):
        return None
    head_bytes, body_bytes = _SIZES.unpack_from(data, len(_MAGIC))
    if head_bytes > _MAX_HEAD_BYTES or len(data) < start + head_bytes:
        return None
    try:
        return _decoder.decode(data[start : start + head_bytes]), start + head_bytes, body_bytes
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def decode_file(data: bytes, piece_bytes: int) -> Loaded | None:
    """Reads a file; None when it is not whole or not what was written."""
    found = decode_head(data)
    if found is None:
        return None
    head, start, body_bytes = found
    if len(data) != start + body_bytes + _CHECKSUM_BYTES:
        return None
    if hashlib.blake2b(data[:-_CHECKSUM_BYTES], digest_size=_CHECKSUM_BYTES).digest() != data[-_CHECKSUM_BYTES:]:
        return None
    stop = start + body_bytes
    return Loaded(head, [data[at : min(at + piece_bytes, stop)] for at in range(start, stop, piece_bytes)])


class DiskTier:
    """See the top of the file. All methods are called on the event loop; `call_soon` brings the worker's results back to it."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        call_soon: Callable[..., object],
        *,
        piece_bytes: int = 64 * 1024,
        worker: Executor | None = None,
    ) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.stored_bytes = 0
        self.pending_bytes = 0
        self.entry_count = 0
        self.reads = 0
        self.refused = 0
        self.is_ready = False
        """The files of an earlier run are in the index."""
        self._piece_bytes = piece_bytes
        self._call_soon = call_soon
        self._worker = worker or ThreadPoolExecutor(max_workers=1, thread_name_prefix="cache-disk")
        self._is_closing = threading.Event()
        self._by_key: dict[bytes, dict[Secondary, DiskEntry]] = {}
        self._by_tenant: dict[str, dict[DiskEntry, None]] = {}
        self._bytes_of: dict[str, int] = {}

    # -- life -------------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Makes the folder and begins to read the index of what is there. Raises OSError when the folder cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
        self._worker.submit(self._scan)

    def close(self) -> None:
        """Ends the worker when what it is doing is done; what waits to be written is dropped."""
        self._is_closing.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _scan(self) -> None:
        """On the worker: deletes what is no whole file and tells the loop of the rest, the oldest first."""
        found: list[tuple[float, StoredHead, Path, int]] = []
        try:
            for path in self._files():
                if self._is_closing.is_set():
                    return
                entry = self._look_at(path)
                if entry is not None:
                    found.append(entry)
        except OSError as error:
            log.warning("the cache on disk could not be read: %s", error)
        found.sort(key=lambda item: item[0])
        self._call_soon(self._take_over, [item[1:] for item in found])

    def _files(self) -> Iterator[Path]:
        for folder in self.folder.iterdir():
            if folder.is_dir() and len(folder.name) == 2:
                yield from folder.iterdir()

    @staticmethod
    def _look_at(path: Path) -> tuple[float, StoredHead, Path, int] | None:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                found = decode_head(file.read(64 * 1024))
                if found is None and status.st_size > 64 * 1024:
                    file.seek(0)
                    found = decode_head(file.read(_MAX_HEAD_BYTES + 64))
            if (
                found is None
                or status.st_size != found[1] + found[2] + _CHECKSUM_BYTES
                or not str(path).endswith(file_name(found[0].key, found[0].secondary))
            ):
                path.unlink(missing_ok=True)
                return None
        except OSError:
            return None
        return status.st_mtime, found[0], path, status.st_size

    def _take_over(self, found: list[tuple[StoredHead, Path, int]]) -> None:
        for head, path, size in found:
            if head.secondary in self._by_key.get(head.key, {}):
                continue  # stored anew meanwhile, in the same place
            self._add(DiskEntry(head, path, size + FILE_OVERHEAD_BYTES))
        self._make_room(0)
        self.is_ready = True

    # -- asking -----------------------------------------------------------------------------------------------------------

    def find(self, key: bytes, secondary: Callable[[tuple[bytes, ...]], Secondary]) -> DiskEntry | None:
        """The file that fits a request; `secondary` makes the request's secondary key for names."""
        variants = self._by_key.get(key)
        if variants is None:
            return None
        names = next(iter(variants.values())).names
        return variants.get(secondary(names))

    def get(self, key: bytes, secondary: Secondary) -> DiskEntry | None:
        """The file of this very variant."""
        return self._by_key.get(key, {}).get(secondary)

    def read(self, entry: DiskEntry, done: Callable[[Loaded | None], None]) -> None:
        """Reads a file; `done` is called on the loop, with None when it is not there or not whole, and is then forgotten."""
        self.reads += 1

        def work() -> None:
            try:
                loaded = decode_file(entry.path.read_bytes(), self._piece_bytes)
            except OSError:
                loaded = None
            if not self._is_closing.is_set():
                self._call_soon(finish, loaded)

        def finish(loaded: Loaded | None) -> None:
            is_current = self._by_key.get(entry.key, {}).get(entry.secondary) is entry
            if not is_current:
                loaded = None  # purged or invalidated meanwhile
            elif loaded is None or (loaded.head.key, loaded.head.secondary) != (entry.key, entry.secondary):
                loaded = None
                self.remove(entry)
            done(loaded)

        self._worker.submit(work)

    # -- changing ---------------------------------------------------------------------------------------------------------

    def write(self, head: StoredHead, pieces: list[bytes], now: float) -> None:
        """Stores a response in the place of what is there for the same key and variant; drops it when too much waits."""
        size = (
            sum(map(len, pieces)) + len(head.key) + sum(len(n) + len(v) for n, v in head.fields) + FILE_OVERHEAD_BYTES
        )
        present = self._by_key.get(head.key, {})
        for entry in list(present.values()):
            if entry.secondary == head.secondary or entry.names != head.names:
                self.remove(entry)
        if self.pending_bytes + size > MAX_PENDING_BYTES or size > self.max_bytes // 4:
            self.refused += 1
            return
        self._make_room(size, head.tenant)
        path = self.folder / file_name(head.key, head.secondary)
        entry = DiskEntry(head, path, size, now)
        self._add(entry)
        self.pending_bytes += size

        def work() -> None:
            is_written = False
            try:
                if not self._is_closing.is_set():
                    self._write_file(path, encode_file(head, pieces))
                    is_written = True
            except OSError as error:
                log.warning("a response could not be stored on disk: %s", error)
            self._call_soon(finish, is_written)

        def finish(is_written: bool) -> None:
            self.pending_bytes -= size
            current = self._by_key.get(entry.key, {}).get(entry.secondary)
            if current is entry and not is_written:
                self.remove(entry)
            elif current is None and is_written:
                _unlink(path)  # removed while it was being written

        self._worker.submit(work)

    @staticmethod
    def _write_file(path: Path, chunks: list[bytes]) -> None:
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            file.writelines(chunks)
        part.replace(path)

    def remove(self, entry: DiskEntry) -> None:
        """Takes a file out, now."""
        variants = self._by_key.get(entry.key)
        if variants is None or variants.get(entry.secondary) is not entry:
            return
        del variants[entry.secondary]
        if not variants:
            del self._by_key[entry.key]
        mine = self._by_tenant[entry.tenant]
        del mine[entry]
        self._bytes_of[entry.tenant] -= entry.size_bytes
        if not mine:
            del self._by_tenant[entry.tenant]
            del self._bytes_of[entry.tenant]
        self.stored_bytes -= entry.size_bytes
        self.entry_count -= 1
        _unlink(entry.path)

    def remove_key(self, key: bytes) -> None:
        """Takes out all variants of a key."""
        for entry in list(self._by_key.get(key, {}).values()):
            self.remove(entry)

    def remove_of(self, tenant: str, is_meant: Callable[[DiskEntry], bool]) -> int:
        """Takes out what is meant of a tenant; returns how many files went."""
        meant = [entry for entry in self._by_tenant.get(tenant, ()) if is_meant(entry)]
        for entry in meant:
            self.remove(entry)
        return len(meant)

    def _add(self, entry: DiskEntry) -> None:
        self._by_key.setdefault(entry.key, {})[entry.secondary] = entry
        self._by_tenant.setdefault(entry.tenant, {})[entry] = None
        self._bytes_of[entry.tenant] = self._bytes_of.get(entry.tenant, 0) + entry.size_bytes
        self.stored_bytes += entry.size_bytes
        self.entry_count += 1

    def _make_room(self, need: int, tenant: str = "") -> None:
        """Whoever brings more than an equal share takes the room from their own; otherwise who holds most gives it."""
        while self._by_tenant and (self.stored_bytes + need > self.max_bytes or self.entry_count >= MAX_ENTRIES):
            mine = self._bytes_of.get(tenant, 0)
            if not mine or mine + need <= self.max_bytes // len(self._bytes_of):
                tenant = max(self._bytes_of, key=self._bytes_of.__getitem__)
            self.remove(next(iter(self._by_tenant[tenant])))


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be deleted: %s", path, error)

"""A local copy of one kind's objects, kept up to date by list and watch, with a callback per change.

Each object is always as the API server once had it; after a break the copy is behind, never wrong. A kind that is not served
gives an empty copy and `is_absent`, and is asked for again now and then. Callbacks run on the event loop, are quick and do
not raise. Everything here is on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from edgetun_cluster.backoff import Backoff
from edgetun_cluster.client import Cluster, WatchEvent
from edgetun_cluster.errors import ApiAbsent, ClusterError, ResourceVersionGone
from edgetun_cluster.kinds import Key, Kind, Object, key_of

log = logging.getLogger(__name__)

T = TypeVar("T")

ABSENT_RETRY_S: Final = (30.0, 120.0)
"""First and longest wait for a kind that is not served: whoever installs it just now need not wait, and whoever never does is asked rarely."""
BREAK_S: Final = (0.2, 5.0)
"""First and longest wait after a watch broke. Short: as long as a copy is behind, nothing that people write takes effect."""
HEALTHY_AFTER_S: Final = 5.0
"""A watch that lived this long starts the waits anew."""


class Change(NamedTuple, Generic[T]):
    """One object was added, modified or deleted; `old` and `new` are None where there was or is none."""

    type: Literal["added", "modified", "deleted"]
    key: Key
    old: T | None
    new: T | None


def without_managed_fields(obj: Object) -> Object:
    """The object without the part that is as large as the rest and that nobody here reads."""
    obj["metadata"].pop("managedFields", None)
    return obj


class Informer(Generic[T]):
    """Lists and watches one kind. `parse` makes what is kept of each object; it must not raise.

    `parse_again` does so for one of which something is kept already; it may take over what has not changed.

    `start()`, then `await synced()`; `close()` at the end.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        parse: Callable[[Object], T] = without_managed_fields,  # type: ignore[assignment]
        parse_again: Callable[[Object, T], T] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.is_absent = False
        """The API server does not serve the kind."""
        self.last_error: ClusterError | None = None
        """Why the copy may be behind; None while the watch is well."""
        self.lists = 0
        self.events = 0
        self._cluster = cluster
        self._namespace = namespace
        self._labels = label_selector
        self._fields = field_selector
        self._parse = parse
        self._parse_again = parse_again
        self._clock = clock
        self._store: dict[Key, T] = {}
        self._versions: dict[Key, str] = {}
        self._callbacks: list[Callable[[Change[T]], None]] = []
        self._synced = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._seen = ""
        """Resource version after which a watch goes on."""

    # ---- the copy

    @property
    def store(self) -> Mapping[Key, T]:
        """Everything there is, by key. The very dict that changes: do not keep it over an await."""
        return self._store

    def get(self, name: str, namespace: str = "") -> T | None:
        return self._store.get(Key(namespace, name))

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._store.values()))

    def __len__(self) -> int:
        return len(self._store)

    @property
    def is_synced(self) -> bool:
        """Whether the first list is in (or the kind is absent)."""
        return self._synced.is_set()

    def on_change(self, callback: Callable[[Change[T]], None]) -> Callable[[], None]:
        """Calls `callback` for every change from now on; returns what ends that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    # ---- running

    def start(self) -> asyncio.Task[None]:
        """Begins to list and watch; the task never ends by itself."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"informer {self.kind.plural}")
        return self._task

    async def synced(self, timeout_s: float = 60.0) -> None:
        """Returns when the first list is in. Raises `ClusterError` with the reason when that takes too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._synced.wait()
        except TimeoutError:
            raise self.last_error or ClusterError(
                f"{self.kind.plural} could not be listed in {timeout_s:g} s"
            ) from None

    async def close(self) -> None:
        """Stops. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        backoff = Backoff(*BREAK_S)
        absent_s = ABSENT_RETRY_S[0]
        while True:
            began = self._clock()
            try:
                if not self._seen:
                    await self._list()
                    began = self._clock()
                    absent_s = ABSENT_RETRY_S[0]
                await self._watch()
                backoff.reset()
                continue
            except ResourceVersionGone:
                log.info("%s: the watch is too far behind; listing again", self.kind.plural)
                self._seen = ""
            except ApiAbsent as error:
                self._absent(error)
                await asyncio.sleep(absent_s + backoff.next_s())
                absent_s = min(ABSENT_RETRY_S[1], 2 * absent_s)
                continue
            except ClusterError as error:
                if self.last_error is None:
                    log.warning("%s: %s; trying again", self.kind.plural, error)
                self.last_error = error
            except Exception:
                # The edge of a task: without it, a copy would silently never change again.
                log.exception("%s: the informer failed; listing again", self.kind.plural)
                self._seen = ""
            if self._clock() - began > HEALTHY_AFTER_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _list(self) -> None:
        """Takes page by page, so that no more than a page of whole objects is in memory; what is gone goes after the last."""
        gone = set(self._store)
        version = ""
        async for page in self._cluster.pages(
            self.kind, self._namespace, label_selector=self._labels, field_selector=self._fields
        ):
            for obj in page.items:
                gone.discard(key_of(obj))
                self._put(obj)
            version = page.resource_version
        self.lists += 1
        self.is_absent = False
        self.last_error = None
        for key in gone:
            self._remove(key)
        self._seen = version
        self._synced.set()

    async def _watch(self) -> None:
        async for event in self._cluster.watch(
            self.kind,
            self._namespace,
            resource_version=self._seen,
            label_selector=self._labels,
            field_selector=self._fields,
        ):
            self.last_error = None
            self._take(event)
        self.last_error = None

    def _take(self, event: WatchEvent) -> None:
        self.events += 1
        if event.type == "DELETED":
            self._remove(key_of(event.object))
        elif event.type != "BOOKMARK":
            self._put(event.object)
        self._seen = event.object["metadata"]["resourceVersion"]

    def _put(self, obj: Object) -> None:
        key, version = key_of(obj), obj["metadata"].get("resourceVersion", "")
        if self._versions.get(key) == version:
            return
        old = self._store.get(key)
        new = self._parse(obj) if old is None or self._parse_again is None else self._parse_again(obj, old)
        self._store[key] = new
        self._versions[key] = version
        self._tell(Change("added" if old is None else "modified", key, old, new))

    def _remove(self, key: Key) -> None:
        self._versions.pop(key, None)
        old = self._store.pop(key, None)
        if old is not None:
            self._tell(Change("deleted", key, old, None))

    def _absent(self, error: ApiAbsent) -> None:
        if not self.is_absent:
            level = logging.INFO if self.kind.optional else logging.WARNING
            log.log(level, "the API server does not serve %s (%s)", self.kind.plural, self.kind.api_version)
        self.is_absent = True
        self.last_error = error
        self._seen = ""
        for key in tuple(self._store):
            self._remove(key)
        if self.kind.optional:
            self._synced.set()

    def _tell(self, change: Change[T]) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(change)
            except Exception:
                # One listener's mistake must not keep the copy, or the others, from the next change.
                log.exception("%s %s: a listener failed", self.kind, change.key)


__all__ = ["Change", "Informer", "without_managed_fields"]

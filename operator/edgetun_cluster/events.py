"""Events on the objects that people wrote: what `kubectl describe` shows at its end.

Written in the background, a bounded number at a time; an event that cannot be written is dropped, since the condition says the
same. The same event again within ten minutes counts the first one up instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from edgetun_cluster.client import Cluster
from edgetun_cluster.errors import ClusterError
from edgetun_cluster.kinds import EVENT, Kind, Object
from edgetun_core.api.conditions import timestamp
from edgetun_core.logs import redact

log = logging.getLogger(__name__)

QUEUED_MOST: Final = 500
REMEMBERED_S: Final = 600.0
REMEMBERED_MOST: Final = 5000
MESSAGE_MOST: Final = 1024

EventKind = Literal["Normal", "Warning"]


class _Written(NamedTuple):
    name: str
    times: int
    at: float


class EventRecorder:
    """`note(...)` never waits and never raises; `close` writes out what is left, for some seconds at most."""

    def __init__(
        self,
        cluster: Cluster,
        component: str,
        *,
        manager: str,
        instance: str = "",
        default_namespace: str = "default",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.dropped = 0
        self._cluster = cluster
        self._component = component
        self._manager = manager
        self._instance = instance
        self._default_namespace = default_namespace
        self._clock = clock
        self._queue: asyncio.Queue[tuple[Kind, Object, EventKind, str, str]] = asyncio.Queue(QUEUED_MOST)
        self._written: dict[str, _Written] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="events")

    def note(self, kind: Kind, obj: Object, type_: EventKind, reason: str, message: str) -> None:
        """Notes an event on `obj` (its metadata is enough)."""
        try:
            self._queue.put_nowait((kind, {"metadata": dict(obj["metadata"])}, type_, reason, message))
        except asyncio.QueueFull:
            self.dropped += 1

    async def close(self, timeout_s: float = 3.0) -> None:
        """Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
        except TimeoutError:
            self.dropped += self._queue.qsize()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            item = await self._queue.get()
            try:
                await self._write(*item)
            except ClusterError as error:
                self.dropped += 1
                log.debug("an event could not be written: %s", error)
            finally:
                self._queue.task_done()

    async def _write(self, kind: Kind, obj: Object, type_: EventKind, reason: str, message: str) -> None:
        now = self._clock()
        event = build_event(
            kind, obj, type_, reason, message, self._component, self._instance, self._default_namespace, now
        )
        namespace, name = event["metadata"]["namespace"], event["metadata"]["name"]
        before = self._written.get(name)
        if before is not None and now - before.at < REMEMBERED_S:
            again = {"count": before.times + 1, "lastTimestamp": event["lastTimestamp"]}
            if await self._cluster.patch(EVENT, before.name, namespace, again, manager=self._manager) is not None:
                self._remember(name, _Written(before.name, before.times + 1, now))
                return
        unique = f"{name}.{int(now * 1000):x}"
        event["metadata"]["name"] = unique
        await self._cluster.create(EVENT, event, manager=self._manager)
        self._remember(name, _Written(unique, 1, now))

    def _remember(self, name: str, written: _Written) -> None:
        self._written.pop(name, None)
        self._written[name] = written
        if len(self._written) > REMEMBERED_MOST:
            del self._written[next(iter(self._written))]


def build_event(
    kind: Kind,
    obj: Object,
    type_: EventKind,
    reason: str,
    message: str,
    component: str,
    instance: str,
    default_namespace: str,
    now: float,
) -> dict[str, Any]:
    """The Event object. Its name is the same for the same object, reason and message."""
    meta = obj["metadata"]
    message = redact(message)[:MESSAGE_MOST]
    digest = hashlib.sha256(f"{meta.get('uid', '')}\0{type_}\0{reason}\0{message}".encode()).hexdigest()[:10]
    at = timestamp(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            # events of objects without a namespace stand in "default", as the API server demands
            "namespace": meta.get("namespace") or default_namespace,
            "name": f"{meta['name'][:200]}.{digest}",
        },
        "involvedObject": {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "name": meta["name"],
            **({"namespace": meta["namespace"]} if meta.get("namespace") else {}),
            **({"uid": meta["uid"]} if meta.get("uid") else {}),
            **({"resourceVersion": meta["resourceVersion"]} if meta.get("resourceVersion") else {}),
        },
        "type": type_,
        "reason": reason,
        "message": message,
        "source": {"component": component},
        "reportingComponent": f"edgetun.dev/{component}",
        "reportingInstance": instance or component,
        "action": reason,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "eventTime": None,
        "count": 1,
    }

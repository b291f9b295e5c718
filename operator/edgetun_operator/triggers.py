"""kopf's part: it watches pools and tokens and wakes the queue. It writes nothing.

Tunnels and reservations wake the queue through informers alone: kopf holds every object of a first list at one time, with a task for
each, and ten thousand of them would not fit (docs/decisions).

No handler of a kind that needs a finalizer or an annotation is registered, so kopf leaves no trace on any object, and nothing waits
for us when it is deleted. Leader election is ours (a Lease), hence `standalone`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import kopf

from edgetun_cluster.connection import Connection
from edgetun_cluster.kinds import AGENT_TOKEN, EXIT_POOL, Key
from edgetun_core.api.meta import GROUP, VERSION
from edgetun_core.errors import EdgetunError
from edgetun_operator.work import Item, ItemKind

KINDS: Final[dict[str, ItemKind]] = {
    EXIT_POOL.plural: "ExitPool",
    AGENT_TOKEN.plural: "AgentToken",
}


def build_registry(add: Callable[[Item], None], connection: Connection) -> kopf.OperatorRegistry:
    """Handlers that call `add`, for every event of `KINDS`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        scheme, _space, token = (await connection.authorization()).partition(" ")
        return kopf.ConnectionInfo(
            server=connection.server,
            ca_path=connection.ca_file,
            certificate_path=connection.certificate_file,
            private_key_path=connection.key_file,
            scheme=scheme or None,
            token=token or None,
            default_namespace=connection.namespace,
        )

    def trigger(kind: ItemKind) -> Callable[..., None]:
        def changed(name: str, namespace: str | None, **_: Any) -> None:
            add(Item(kind, Key(namespace or "", name)))

        return changed

    for plural, kind in KINDS.items():
        kopf.on.event(GROUP, VERSION, plural, id=f"{kind}-changed", registry=registry)(trigger(kind))
    return registry


def build_settings() -> kopf.OperatorSettings:
    """kopf without anything that it would write."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = False
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 630
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.execution.max_workers = 1
    return settings


async def run_triggers(add: Callable[[Item], None], connection: Connection) -> None:
    """Runs until it is cancelled. On a thread and an event loop of its own: on the main one, kopf would take the signals."""
    logging.getLogger("kopf").setLevel(logging.ERROR)  # what it misses, the informers say
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    failure: list[BaseException] = []
    stop = threading.Event()

    def add_from_thread(item: Item) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has everybody who would listen
            loop.call_soon_threadsafe(add, item)

    def run() -> None:
        try:
            kopf.run(
                registry=build_registry(add_from_thread, connection),
                settings=build_settings(),
                standalone=True,
                clusterwide=True,
                stop_flag=stop,
            )
        except Exception as error:  # noqa: BLE001 - the edge of a thread; raised again where it is waited for
            failure.append(error)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="kopf", daemon=True).start()
    try:
        await ended.wait()
    finally:
        stop.set()
    raise EdgetunError("kopf ended by itself") from (failure[0] if failure else None)

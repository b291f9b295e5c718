"""The API server's verbs, typed, with a deadline on every call, bounded concurrency and retries of what may be repeated.

One `Cluster` per process and event loop. A missing object is `None` or `False`, a kind that is not served raises `ApiAbsent`,
what was refused raises the `ApiRefused` that says why, and no answer in time raises `ClusterUnreachable`.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import aiohttp
import msgspec

from edgetun_cluster.backoff import Backoff
from edgetun_cluster.connection import Connection
from edgetun_cluster.errors import (
    ApiAbsent,
    ApiRefused,
    ClusterUnreachable,
    Conflict,
    ObjectNotFound,
    ResourceVersionGone,
    refused,
)
from edgetun_cluster.kinds import Kind, Object

MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"

CALL_TIMEOUT_S: Final = 10.0
LIST_TIMEOUT_S: Final = 60.0
PAGE: Final = 500
MAX_CONCURRENT: Final = 16
"""Calls under way at one time, watches apart; the rest wait for their turn within their deadline."""
WATCH_S: Final = (300.0, 600.0)
"""A watch ends by itself after a time in this range. One whose connection is silently dead is noticed before, by TCP's keep-alive."""
MAX_EVENT_BYTES: Final = 8 * 1024 * 1024
"""Longest line of a watch; etcd holds no object of more than 1.5 MiB by default."""
RETRIED: Final = frozenset({429, 500, 502, 503, 504})
RETRY_AFTER_MOST_S: Final = 5.0

EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]


class Listing(NamedTuple):
    """A whole collection, and the resource version from which a watch goes on."""

    items: list[Object]
    resource_version: str


class WatchEvent(NamedTuple):
    """One change. A `BOOKMARK` carries only a resource version."""

    type: EventType
    object: Object


class TokenIdentity(NamedTuple):
    """What a TokenReview says of a token that is good. `extra` holds the pod's name and UID of a projected token."""

    username: str
    uid: str
    groups: tuple[str, ...]
    audiences: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]]


class Counters:
    """Plain numbers for metrics."""

    __slots__ = ("calls", "failures", "retries")

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        """By verb."""
        self.failures = 0
        self.retries = 0


class Cluster:
    """One API server, as one identity. Use it as an async context manager, or `close` it."""

    def __init__(
        self,
        connection: Connection,
        *,
        user_agent: str = "edgetun",
        timeout_s: float = CALL_TIMEOUT_S,
        max_concurrent: int = MAX_CONCURRENT,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.connection = connection
        self.counters = Counters()
        self._timeout_s = timeout_s
        self._turn = asyncio.Semaphore(max_concurrent)
        self._random = rng
        connector = aiohttp.TCPConnector(
            ssl=connection.tls if connection.tls is not None else True,
            limit=0,  # the semaphore bounds calls; watches are bounded by their number
            keepalive_timeout=60,
            socket_factory=_socket,
        )
        self._http = aiohttp.ClientSession(
            connection.server,
            connector=connector,
            headers={"User-Agent": user_agent, "Accept": "application/json"},
            auto_decompress=True,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call and watch. Idempotent."""
        await self._http.close()

    # ---- reading

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Object | None:
        """The object, or None when there is none of this name. Raises `ApiAbsent` when the kind is not served."""
        try:
            return await self._call("GET", kind.path(namespace, name))
        except ObjectNotFound:
            return None

    async def list(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        timeout_s: float = LIST_TIMEOUT_S,
    ) -> Listing:
        """The whole collection, read page by page from one state of it; `timeout_s` is for all pages together."""
        items: list[Object] = []
        version = ""
        pages = self.pages(
            kind, namespace, label_selector=label_selector, field_selector=field_selector, timeout_s=timeout_s
        )
        async for page in pages:
            items.extend(page.items)
            version = page.resource_version
        return Listing(items, version)

    async def pages(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        label_selector: str = "",
        field_selector: str = "",
        timeout_s: float = LIST_TIMEOUT_S,
    ) -> AsyncIterator[Listing]:
        """The same page by page, for whoever keeps less of each object than there is: never more than `PAGE` are held whole.

        Raises `ResourceVersionGone` when the state that the first page was of is forgotten meanwhile.
        """
        query = {"limit": str(PAGE), **_selectors(label_selector, field_selector)}
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.001, deadline - time.monotonic())
            page = await self._call("GET", kind.path(namespace), query=query, timeout_s=left_s)
            meta = page["metadata"]
            yield Listing(page.get("items") or [], meta.get("resourceVersion", ""))
            if not meta.get("continue"):
                return
            query["continue"] = meta["continue"]
            page = {}

    async def watch(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
        seconds: float | None = None,
    ) -> AsyncIterator[WatchEvent]:
        """Changes after `resource_version`, bookmarks too, until the server ends it (some minutes): then watch on from the last.

        Raises `ResourceVersionGone` when that is too old, `ClusterUnreachable` when the connection breaks.
        """
        low, high = WATCH_S
        seconds = low + (high - low) * self._random() if seconds is None else seconds
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(seconds))),
            **_selectors(label_selector, field_selector),
        }
        self._count("watch")
        timeout = aiohttp.ClientTimeout(total=seconds + 30, sock_connect=self._timeout_s)
        try:
            async with self._http.get(
                kind.path(namespace), params=query, headers=await self._headers(), timeout=timeout
            ) as answer:
                if answer.status != 200:
                    raise refused(answer.status, _status_body(await answer.read()))
                async for line in _lines(answer.content):
                    yield _event(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.counters.failures += 1
            raise ClusterUnreachable(f"watch of {kind.plural} at {self.connection.server}: {_said(error)}") from error

    async def has_api(self, kind: Kind) -> bool:
        """Whether the API server serves this kind now. An aggregated API whose server is down is not served."""
        try:
            answer = await self._call("GET", kind.root, retry=False)
        except ApiRefused:
            return False
        return any(resource["name"] == kind.plural for resource in answer.get("resources", ())) or not kind.plural

    async def version(self) -> str:
        """`gitVersion` of the API server, such as "v1.34.4"."""
        return str((await self._call("GET", "/version")).get("gitVersion", ""))

    # ---- writing

    async def create(self, kind: Kind, obj: Object, *, manager: str) -> Object:
        """Creates an object. Raises `AlreadyExists`. Not repeated when its answer is lost."""
        path = kind.path(obj["metadata"].get("namespace", ""))
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **obj}
        return await self._call("POST", path, body, query={"fieldManager": manager}, retry=False)

    async def apply(
        self, kind: Kind, obj: Object, *, manager: str, subresource: str = "", force: bool = True, dry_run: bool = False
    ) -> Object:
        """Server-side apply: makes the object, or makes the fields that `manager` cares about as in `obj`.

        With `metadata.uid` in `obj` nothing is made: an object that is gone, or another one by now, raises `Conflict`.
        """
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **obj}
        return await self._call("PATCH", kind.path_of(obj, subresource), body, APPLY_PATCH, query)

    async def apply_status(self, kind: Kind, obj: Object, status: Object, *, manager: str) -> Object | None:
        """Server-side apply of `obj`'s status; None when the object is gone (or is another one of that name)."""
        meta = {name: obj["metadata"][name] for name in ("name", "namespace", "uid") if obj["metadata"].get(name)}
        try:
            return await self.apply(
                kind, {"metadata": meta, "status": status}, manager=manager, subresource="status", force=True
            )
        except (Conflict, ObjectNotFound):
            return None

    async def patch(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        patch: Object,
        *,
        manager: str,
        subresource: str = "",
    ) -> Object | None:
        """A JSON merge patch; None when there is no such object. With `metadata.resourceVersion` in it, `Conflict` may be raised."""
        try:
            return await self._call(
                "PATCH", kind.path(namespace, name, subresource), patch, MERGE_PATCH, {"fieldManager": manager}
            )
        except ObjectNotFound:
            return None

    async def patch_status(
        self, kind: Kind, name: str, namespace: str, status: Object, *, manager: str
    ) -> Object | None:
        """A JSON merge patch of the status alone."""
        return await self.patch(kind, name, namespace, {"status": status}, manager=manager, subresource="status")

    async def replace(self, kind: Kind, obj: Object, *, manager: str, subresource: str = "") -> Object:
        """Puts a whole object in place of the one with the same `metadata.resourceVersion`; raises `Conflict`."""
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **obj}
        # A lost answer must not be repeated: the second try would see the first one's version as a conflict.
        return await self._call(
            "PUT", kind.path_of(obj, subresource), body, query={"fieldManager": manager}, retry=False
        )

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
    ) -> bool:
        """Deletes an object; False when it is gone already. With `uid` or `resource_version`, raises `Conflict` when it is another."""
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid or resource_version:
            options["preconditions"] = {name: value for name, value in preconditions.items() if value}
        try:
            await self._call("DELETE", kind.path(namespace, name), options)
        except ObjectNotFound:
            return False
        return True

    async def review_token(self, token: str, audiences: tuple[str, ...]) -> TokenIdentity | None:
        """Whom a ServiceAccount token belongs to, or None when it is no good for all of these audiences."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": list(audiences)},
        }
        status = (await self._call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body)).get("status", {})
        granted = tuple(status.get("audiences") or ())
        if status.get("authenticated") is not True or not set(audiences) <= set(granted):
            return None
        user = status.get("user", {})
        extra = {name: tuple(values) for name, values in (user.get("extra") or {}).items()}
        return TokenIdentity(
            user.get("username", ""), user.get("uid", ""), tuple(user.get("groups") or ()), granted, extra
        )

    # ---- one call

    async def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        *,
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> Object:
        """One request and its answer, repeated within the deadline when it may be. `retry=False`: once, but for 429."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        backoff = Backoff(0.1, 2.0, self._random)
        data = None if body is None else msgspec.json.encode(body)
        self._count(method.lower())
        try:
            async with asyncio.timeout(timeout_s) as deadline, self._turn:
                while True:
                    wait_s = 0.0
                    try:
                        status, raw, wait_s = await self._send(method, path, data, content_type, query)
                        if status < 300:
                            return _object(raw)
                        failure: ApiRefused | ClusterUnreachable = refused(status, _status_body(raw))
                        if not (status == 429 or (retry and status in RETRIED)):
                            raise failure
                    except (aiohttp.ClientError, OSError) as error:
                        failure = ClusterUnreachable(f"{method} {self.connection.server}{path}: {_said(error)}")
                        if not retry:
                            raise failure from error
                    wait_s = max(min(wait_s, RETRY_AFTER_MOST_S), backoff.next_s())
                    end = deadline.when()
                    if end is not None and asyncio.get_running_loop().time() + wait_s > end:
                        raise failure
                    self.counters.retries += 1
                    await asyncio.sleep(wait_s)
        except TimeoutError as error:
            self.counters.failures += 1
            raise ClusterUnreachable(
                f"{method} {self.connection.server}{path}: no answer within {timeout_s:g} s"
            ) from error
        except ObjectNotFound:
            raise
        except (ClusterUnreachable, ApiRefused):
            self.counters.failures += 1
            raise

    async def _send(
        self, method: str, path: str, data: bytes | None, content_type: str, query: Mapping[str, str] | None
    ) -> tuple[int, bytes, float]:
        headers = await self._headers()
        if data is not None:
            headers["Content-Type"] = content_type
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._http.request(
            method, path, params=query, data=data, headers=headers, timeout=timeout
        ) as answer:
            return answer.status, await answer.read(), _retry_after_s(answer.headers.get("Retry-After", ""))

    async def _headers(self) -> dict[str, str]:
        authorization = await self.connection.authorization()
        return {"Authorization": authorization} if authorization else {}

    def _count(self, verb: str) -> None:
        self.counters.calls[verb] = self.counters.calls.get(verb, 0) + 1


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    chosen = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in chosen.items() if value}


def _object(raw: bytes) -> Object:
    try:
        parsed = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise ClusterUnreachable(f"the API server's answer is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise ClusterUnreachable("the API server's answer is no object")
    return parsed


def _status_body(raw: bytes) -> Mapping[str, Any] | None:
    try:
        parsed = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _event(line: bytes) -> WatchEvent:
    event = _object(line)
    kind, obj = event.get("type"), event.get("object") or {}
    match kind:
        case "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK":
            return WatchEvent(kind, obj)
        case "ERROR":
            code = int(obj.get("code") or 500)
            if code == 410:
                raise ResourceVersionGone(410, str(obj.get("reason", "Expired")), str(obj.get("message", "")))
            raise refused(code, obj)
    raise ClusterUnreachable(f"the API server sent a watch event of unknown type {kind!r}")


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of a stream. aiohttp's own reader bounds a line by its buffer, which is too small for large objects."""
    rest = bytearray()
    async for chunk in stream.iter_any():
        if b"\n" not in chunk:
            rest += chunk
            if len(rest) > MAX_EVENT_BYTES:
                raise ClusterUnreachable(f"a watch event is larger than {MAX_EVENT_BYTES} bytes")
            continue
        first, *others = chunk.split(b"\n")
        rest += first
        if rest.strip():
            yield bytes(rest)
        for line in others[:-1]:
            if line.strip():
                yield line
        rest = bytearray(others[-1])


def _retry_after_s(value: str) -> float:
    return float(value) if value.isdecimal() and len(value) < 6 else 0.0


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _socket(address: Any) -> socket.socket:
    """A socket that notices within a minute that its peer is gone without a word."""
    family, kind, proto = address[0], address[1], address[2]
    sock = socket.socket(family=family, type=kind, proto=proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return sock


__all__ = ["ApiAbsent", "Cluster", "Counters", "Listing", "TokenIdentity", "WatchEvent"]

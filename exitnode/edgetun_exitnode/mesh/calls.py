"""What exit nodes say to each other beside visitors' requests: small exchanges without a tunnel, on the same sessions.

    GET  /v1/holders?tunnel=NS/NAME   who holds a session of the tunnel, as far as the answering node knows: `HoldersAnswer`
    POST /v1/tell                     what changed at the asking node: `Told`
    POST /v1/purge                    takes responses out of the answering node's cache: `Purging` -> `PurgeReport`
    POST /v1/invalidate               keys that an unsafe request made stale: `Invalidated`
    POST /v1/stored                   which of these keys the answering node could answer by itself: `Wanted` -> `Fresh`
    POST /v1/spend                    what visitors used of their rates: `Spending` -> `Levels`
    GET  /v1/alive                    nothing; that it is answered says enough

Bodies are JSON and bounded; names that the reader does not know are ignored, so either side may be one version behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, TypeVar
from urllib.parse import parse_qs, quote

import msgspec
from msgspec import Struct

from edgetun_core.enrollment import UNREADABLE, Endpoint
from edgetun_core.errors import (
    Cancelled,
    EdgetunError,
    LimitExceeded,
    NotFound,
    ProtocolError,
    SessionLost,
    UpstreamTimeout,
)
from edgetun_core.http.exchange import CLOSED, Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.purge import PurgeOrder, PurgeReport

AUTHORITY: Final = b"mesh.edgetun.internal"
HOLDERS: Final = b"/v1/holders"
TELL: Final = b"/v1/tell"
PURGE: Final = b"/v1/purge"
INVALIDATE: Final = b"/v1/invalidate"
STORED: Final = b"/v1/stored"
SPEND: Final = b"/v1/spend"
ALIVE: Final = b"/v1/alive"
MAX_BODY_BYTES: Final = 2 * 1024 * 1024
"""A purge order is the largest, with up to 1 MiB."""
MOST_HOLDERS: Final = 16
CALL_TIMEOUT_S: Final = 1.5

_PEER: Final = Peer("", 0, b"https", b"2")


class Holder(Struct, frozen=True, omit_defaults=True):
    """An exit node that holds a session, and where it is reached."""

    node: str
    relay: Endpoint
    share: int = 1
    """See `PeerChange.shares`, here as below."""


class HoldersAnswer(Struct, frozen=True, omit_defaults=True):
    """`is_held`: by the answering node itself."""

    is_held: bool = False
    others: tuple[Holder, ...] = ()
    share: int = 1
    """The answering node's own, if it holds one."""


class Told(Struct, frozen=True, omit_defaults=True):
    """What a node says of itself. `relay` is where it is reached; None: nowhere."""

    relay: Endpoint | None = None
    is_draining: bool = False
    opened: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    shares: dict[str, int] = {}
    """Of those opened, where it is not 1."""


_T = TypeVar("_T", bound=Struct)


class Purging(Struct, frozen=True, omit_defaults=True):
    """An order on its way through the fleet. `known` are the nodes that have it from others: the reader passes it on to the rest."""

    order: PurgeOrder
    number: str
    """Names this purge, so that it is carried out once however often it comes."""
    known: tuple[str, ...] = ()


class Invalidated(Struct, frozen=True, omit_defaults=True):
    """Cache keys (as this version builds them; another version's are no harm)."""

    keys: tuple[bytes, ...] = ()


class Wanted(Struct, frozen=True, omit_defaults=True):
    """Cache keys of which a node looks for copies."""

    keys: tuple[bytes, ...] = ()


class Fresh(Struct, frozen=True, omit_defaults=True):
    """For each of the keys asked for, in their order, for how many seconds the answering node may use what it has stored; 0: nothing."""

    fresh_s: tuple[float, ...] = ()


class Spending(Struct, frozen=True, omit_defaults=True):
    """By limit (tunnel and route) and visitor: how many requests since the last report."""

    spent: dict[str, dict[str, float]] = {}


class Levels(Struct, frozen=True, omit_defaults=True):
    """What is left of the visitors' budgets in the whole fleet; below 0 when all nodes together gave too much."""

    left: dict[str, dict[str, float]] = {}


class Answering:
    """The answering side of calls: `answer` says what, given the path, the query's tunnel and the body."""

    def __init__(self, answer: Callable[[bytes, str, bytes], bytes]) -> None:
        self._answer = answer

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        call = _Incoming(self._answer, head, client)
        if end:
            call.answer()
            return CLOSED
        return call


class _Incoming:
    """Gathers a call's body, then answers."""

    __slots__ = ("_answer", "_body", "_client", "_head", "_is_over")

    def __init__(self, answer: Callable[[bytes, str, bytes], bytes], head: RequestHead, client: ResponseSink) -> None:
        self._answer = answer
        self._head = head
        self._client = client
        self._body = bytearray()
        self._is_over = False

    def answer(self) -> None:
        self._is_over = True
        path, _, query = self._head.target.partition(b"?")
        tunnel = parse_qs(query.decode("ascii", "replace")).get("tunnel", [""])[0]
        try:
            body = self._answer(path, tunnel, bytes(self._body))
        except EdgetunError as error:
            self._client.on_reset(error)
            return
        head = ResponseHead(200, ((b"content-length", str(len(body)).encode()),))
        self._client.on_head(head, not body)
        if body:
            self._client.on_data(body, True)

    def send_data(self, data: bytes, end: bool) -> None:
        if self._is_over:
            return
        self._body += data
        if len(self._body) > MAX_BODY_BYTES:
            self._is_over = True
            self._client.on_reset(LimitExceeded(f"a call's body is larger than {MAX_BODY_BYTES} bytes"))
        elif end:
            self.answer()

    def send_trailers(self, fields: Fields) -> None:
        if not self._is_over:
            self.answer()

    def reset(self, error: EdgetunError) -> None:
        self._is_over = True

    def pause_response(self) -> None: ...
    def resume_response(self) -> None: ...


class _Ignored:
    """Takes an answer that nobody waits for."""

    def on_interim(self, head: ResponseHead) -> None: ...
    def on_head(self, head: ResponseHead, end: bool) -> None: ...
    def on_data(self, data: bytes, end: bool) -> None: ...
    def on_trailers(self, fields: Fields) -> None: ...
    def on_reset(self, error: EdgetunError) -> None: ...
    def pause_request(self) -> None: ...
    def resume_request(self) -> None: ...


_ignored: Final = _Ignored()


class _Call:
    """The asking side: gathers the answer."""

    __slots__ = ("_body", "future")

    def __init__(self) -> None:
        self._body = bytearray()
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_interim(self, head: ResponseHead) -> None: ...

    def on_head(self, head: ResponseHead, end: bool) -> None:
        if head.status != 200:
            self._fail(ProtocolError(f"a peer answered {head.status}"))
        elif end:
            self._done()

    def on_data(self, data: bytes, end: bool) -> None:
        self._body += data
        if len(self._body) > MAX_BODY_BYTES:
            self._fail(ProtocolError("a peer's answer is too large"))
        elif end:
            self._done()

    def on_trailers(self, fields: Fields) -> None:
        self._done()

    def on_reset(self, error: EdgetunError) -> None:
        self._fail(error)

    def pause_request(self) -> None: ...
    def resume_request(self) -> None: ...

    def _done(self) -> None:
        if not self.future.done():
            self.future.set_result(bytes(self._body))

    def _fail(self, error: EdgetunError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


async def call(session: Handler, method: bytes, target: bytes, body: bytes = b"") -> bytes:
    """Asks a peer, within `CALL_TIMEOUT_S`. Raises `EdgetunError`."""
    fields = ((b"content-length", str(len(body)).encode()),) if body else ()
    asked = _Call()
    sink = session.open(RequestHead(method, b"https", AUTHORITY, target, fields), _PEER, not body, asked)
    if body:
        sink.send_data(body, True)
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await asked.future
    except TimeoutError:
        sink.reset(SessionLost("no answer in time"))
        raise UpstreamTimeout("the exit node did not answer in time") from None
    except asyncio.CancelledError:
        sink.reset(Cancelled("nobody waits for the answer any more"))
        raise


async def ask_holders(session: Handler, tunnel: str) -> HoldersAnswer:
    """Asks a peer who holds a session of the tunnel. Raises `EdgetunError`."""
    return read(await call(session, b"GET", HOLDERS + b"?tunnel=" + quote(tunnel).encode()), HoldersAnswer)


async def tell(session: Handler, told: Told) -> None:
    """Tells a peer what changed here. Raises `EdgetunError`."""
    await call(session, b"POST", TELL, msgspec.json.encode(told))


async def send_purge(session: Handler, purging: Purging) -> PurgeReport:
    """Has a peer purge. Raises `EdgetunError`."""
    return read(await call(session, b"POST", PURGE, msgspec.json.encode(purging)), PurgeReport)


async def send_spending(session: Handler, spending: Spending) -> Levels:
    """Tells what visitors used here, and hears what is left. Raises `EdgetunError`."""
    return read(await call(session, b"POST", SPEND, msgspec.json.encode(spending)), Levels)


async def ask_stored(session: Handler, wanted: Wanted) -> Fresh:
    """Asks a peer what it has stored. Raises `EdgetunError`."""
    return read(await call(session, b"POST", STORED, msgspec.json.encode(wanted)), Fresh)


def send_invalidated(session: Handler, keys: Iterable[bytes]) -> None:
    """Tells a peer, and waits for nothing: what is asked over the same lane afterwards finds it done."""
    body = msgspec.json.encode(Invalidated(tuple(keys)))
    fields = ((b"content-length", str(len(body)).encode()),)
    head = RequestHead(b"POST", b"https", AUTHORITY, INVALIDATE, fields)
    session.open(head, _PEER, False, _ignored).send_data(body, True)


def read(body: bytes, shape: type[_T]) -> _T:
    """Raises `ProtocolError` for what has not the shape."""
    try:
        return msgspec.json.decode(body, type=shape)
    except UNREADABLE as error:
        raise ProtocolError(f"what a peer says cannot be read: {error}") from None


def unknown_call(path: bytes) -> NotFound:
    return NotFound(f"exit nodes have no call {path.decode('latin-1')[:64]}")

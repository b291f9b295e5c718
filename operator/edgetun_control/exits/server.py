"""Control's listener of exit nodes: identity over TLS, the stream over mTLS. A port of its own, inside the cluster.

    POST /v1/exitnode/identity   Authorization: Bearer <ServiceAccount token>, `IdentityRequest` -> `IdentityAnswer`
    GET  /v1/exitnode/stream     WebSocket; the client's certificate says which node it is

No token reaches a log: there is no access log, and failures are told without what was sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from edgetun_control.exits.fleet import Fleet, FollowingNode
from edgetun_control.exits.identity import IdentityService
from edgetun_control.registry import Refused
from edgetun_core.control_stream import (
    IDENTITY_PATH,
    STREAM_PATH,
    IdentityRequest,
    NodeHello,
    decode_from_node,
)
from edgetun_core.control_stream.messages import MAX_NODE_MESSAGE_BYTES
from edgetun_core.enrollment import UNREADABLE, RefusalBody
from edgetun_core.errors import AddressUnavailable, EdgetunError, ProtocolError
from edgetun_core.fleet_identity import ExitNodeName, exit_node_of, server_context
from edgetun_core.pki import ServerIdentity

log = logging.getLogger("edgetun.control.exits")

MAX_BODY_BYTES: Final = 32 * 1024
HELLO_TIMEOUT_S: Final = 10.0
HEARTBEAT_S: Final = 15.0
SEND_TIMEOUT_S: Final = 60.0
ACK_TIMEOUT_S: Final = 60.0
LOOK_EVERY_S: Final = 5.0
MOST_UNSENT: Final = 1000
"""Orders that a node has not taken yet; with more it is cut off and comes back with a fresh view."""

_STATUS: Final = {
    "InvalidRequest": 400,
    "TokenMissing": 401,
    "TokenRefused": 401,
    "NotAnExitNode": 403,
    "NameNotAllowed": 403,
    "StoreUnavailable": 503,
}
_requests: Final = msgspec.json.Decoder(IdentityRequest)


def build_exit_app(fleet: Fleet, identities: IdentityService) -> web.Application:
    """The application of the exit nodes' listener."""

    async def identity(request: web.Request) -> web.Response:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return _refuse(Refused("TokenMissing", "the request has no ServiceAccount token"))
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                wanted = _requests.decode(await request.read())
        except TimeoutError:
            return _refuse(Refused("InvalidRequest", "the request's body did not come in time"))
        except UNREADABLE as error:
            return _refuse(Refused("InvalidRequest", f"the body is no request for an identity: {error}"))
        try:
            answer = await identities.issue(token.strip(), wanted)
        except EdgetunError as error:
            log.warning("no certificate for %s/%s/%s: %s", wanted.pool, wanted.region, wanted.node, error)
            return _refuse(Refused("StoreUnavailable", "control cannot certify anybody now", "try again in a moment"))
        if isinstance(answer, Refused):
            log.warning("no certificate for %s/%s/%s: %s", wanted.pool, wanted.region, wanted.node, answer.message)
            return _refuse(answer)
        log.info("certified exit node %s/%s/%s", wanted.pool, wanted.region, wanted.node)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def stream(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        name = exit_node_of(transport.get_extra_info("peercert") if transport is not None else None)
        if name is None:
            return _refuse(Refused("NotAnExitNode", "this path is for exit nodes, who show their certificate"))
        websocket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=MAX_NODE_MESSAGE_BYTES, compress=False)
        try:
            await websocket.prepare(request)
        except ConnectionError:
            log.debug("exit node %s left before its stream began", name)
            return web.Response()  # which nobody reads
        await _Stream(fleet, name, websocket).run()
        return websocket

    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_failures])
    app.router.add_post(IDENTITY_PATH, identity)
    app.router.add_get(STREAM_PATH, stream)
    return app


class _Stream:
    """One node's WebSocket: a reader, a writer, and a look now and then at whether the node still acknowledges."""

    def __init__(self, fleet: Fleet, name: ExitNodeName, websocket: web.WebSocketResponse) -> None:
        self._fleet = fleet
        self._name = name
        self._websocket = websocket
        self._unsent: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._reason = ""
        self._node: FollowingNode | None = None

    async def run(self) -> None:
        writer = asyncio.create_task(self._write(), name=f"stream to {self._name}")
        try:
            await self._read()
        except ProtocolError as error:
            self._reason = self._reason or str(error)
        finally:
            if self._node is not None:
                self._fleet.detach(self._node)
            writer.cancel()
            await asyncio.wait((writer,))
            log.info("exit node %s left%s", self._name, f": {self._reason}" if self._reason else "")
            with suppress(ConnectionError, TimeoutError):
                await self._websocket.close(code=WSCloseCode.GOING_AWAY, message=self._reason.encode()[:100])

    async def _read(self) -> None:
        try:
            first = await self._websocket.receive(HELLO_TIMEOUT_S)
        except TimeoutError:
            raise ProtocolError("no hello in time") from None
        hello = decode_from_node(first.data) if first.type is WSMsgType.BINARY else None
        if not isinstance(hello, NodeHello):
            raise ProtocolError("the first message is no hello")
        self._node = self._fleet.attach(self._name, hello, self._send, self._end)
        log.info("exit node %s follows, with snapshot %d", self._name, hello.have_version)
        async for message in self._websocket:
            if message.type is not WSMsgType.BINARY:
                raise ProtocolError("a message that is not binary")
            self._fleet.received(self._node, decode_from_node(message.data))

    def _send(self, message: bytes) -> None:
        if len(self._unsent) >= MOST_UNSENT:
            self._end("too much is unsent")
            return
        self._unsent.append(message)
        self._wake.set()

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._unsent.clear()
        self._wake.set()

    async def _write(self) -> None:
        while not self._reason:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                while self._unsent:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await self._websocket.send_bytes(self._unsent.popleft())
            except (ConnectionError, TimeoutError):
                self._reason = self._reason or "it takes no messages"
            if self._node is not None and self._fleet.is_late(self._node, ACK_TIMEOUT_S):
                self._reason = self._reason or "it acknowledges nothing"
        with suppress(ConnectionError, TimeoutError):
            await self._websocket.close(code=WSCloseCode.GOING_AWAY, message=self._reason.encode()[:100])


class ExitListener:
    """The port for exit nodes. `replace_identity` shows another certificate from the next handshake on."""

    def __init__(self, app: web.Application) -> None:
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str, port: int, identity: ServerIdentity, ca_pem: bytes) -> None:
        """Raises `AddressUnavailable`."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        assert self._runner.server is not None
        self._context = server_context(identity, ca_pem)
        try:
            self._server = await loop.create_server(self._runner.server, host, port, ssl=self._context, backlog=1024)
        except OSError as error:
            raise AddressUnavailable(
                f"control cannot listen for exit nodes on {host}:{port}: {error.strerror}", remedy="choose another port"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    def trust(self, ca_pem: bytes) -> None:
        """Exit nodes may show certificates of these CAs, too."""
        self._context.load_verify_locations(cadata=ca_pem.decode("ascii"))

    def replace_identity(self, identity: ServerIdentity) -> None:
        """OpenSSL takes the new chain for every later handshake of the same context."""
        from edgetun_core.pki import load_chain

        load_chain(self._context, identity.cert_pem, identity.key_pem)

    async def close(self) -> None:
        """Ends every stream; nodes serve on and come back. Idempotent."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()


@web.middleware
async def _answer_failures(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _refuse(Refused("InvalidRequest", f"the body is larger than {MAX_BODY_BYTES} bytes"))


def _refuse(refused: Refused) -> web.Response:
    body = msgspec.json.encode(RefusalBody(refused.reason, refused.message, refused.remedy))
    return web.Response(status=_STATUS.get(refused.reason, 403), body=body, content_type="application/json")

"""Control over HTTPS: the few paths that agents ask, as an aiohttp application that can share the sessions' TLS port.

    POST /v1/register, /v1/renew    Authorization: Bearer <cluster token>, body `EnrollRequest`, answer `EnrollResponse`
    POST /v1/watch                  the same question, held: 200 when a renewal would say something new, 204 after a while
    GET  /ca.pem                    the CA that the token pins; public
    GET  /v1/time, /healthz

Every failure is `RefusalBody` as JSON. Neither a token nor a credential reaches a log: there is no access log, and what aiohttp
would log of a malformed request quotes the request, so it is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, cast

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from edgetun_control.control import Control
from edgetun_control.registry import Refused
from edgetun_core.credentials import redact_tokens
from edgetun_core.enrollment import (
    CA_PATH,
    REGISTER_PATH,
    RENEW_PATH,
    TIME_PATH,
    UNREADABLE,
    WATCH_PATH,
    EnrollRequest,
    RefusalBody,
)
from edgetun_core.errors import EdgetunError

log = logging.getLogger("edgetun.control.server")

MAX_BODY_BYTES: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 10.0
CONNECTION_LIFETIME_S: Final = 60.0
"""Agents ask one question per connection; whoever dawdles longer than this is cut off, whatever it is doing."""
MAX_CONNECTIONS: Final = 512
"""One more is dropped at once; agents come back with jitter."""

STATUS_BY_REASON: Final = {
    "InvalidRequest": 400,
    "NoDomain": 400,
    "TokenMissing": 401,
    "TokenMistyped": 401,
    "TokenUnknown": 401,
    "TokenRevoked": 403,
    "TokenExpired": 403,
    "NameNotAllowed": 403,
    "NothingToServe": 403,
    "TunnelNotServed": 403,
    "TooManyNames": 403,
    "TooManyTunnels": 403,
    "TlsRequired": 403,
    "NotFound": 404,
    "MethodNotAllowed": 405,
    "RequestTimeout": 408,
    "NameTaken": 409,
    "TunnelNotAccepted": 409,
    "BodyTooLarge": 413,
    "TooManyAttempts": 429,
    "InternalError": 500,
    "StoreUnavailable": 503,
    "NoExitNode": 503,
    "TooManyWatchers": 503,
}

_request_decoder: Final = msgspec.json.Decoder(EnrollRequest)


CaPem = bytes | None | Callable[[], bytes | None]


def build_app(control: Control, ca_pem: CaPem, *, require_tls: bool = True) -> web.Application:
    """The application. `ca_pem` is what `/ca.pem` hands out (None when the server's certificate is publicly trusted).

    `require_tls=False` is for a server behind a proxy on the same machine that terminates TLS.
    """

    async def enroll(request: web.Request) -> web.Response:
        if require_tls and not request.secure:
            return _refuse(
                Refused(
                    "TlsRequired", "a token came over a connection without TLS", "revoke it, and use the https:// URL"
                )
            )
        address = request.remote or ""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return _refuse(
                control.fail(address, Refused("TokenMissing", "the request has no token", "send Authorization: Bearer"))
            )
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
        except TimeoutError:
            return _refuse(Refused("RequestTimeout", "the request's body did not come in time"))
        try:
            wanted = _request_decoder.decode(body)
        except UNREADABLE as error:
            # msgspec names places and types, never values.
            return _refuse(
                control.fail(
                    address, Refused("InvalidRequest", f"the body is no enrollment: {error}", "update the agent")
                )
            )
        if request.path == WATCH_PATH:
            changed = await control.watch(token.strip(), wanted, address)
            if isinstance(changed, Refused):
                return _refuse(changed)
            return _json(200, b"{}") if changed else web.Response(status=204)
        answer = await control.enroll(token.strip(), wanted, address)
        if isinstance(answer, Refused):
            return _refuse(answer)
        return _json(200, msgspec.json.encode(answer))

    async def ca(_: web.Request) -> web.Response:
        pem = ca_pem() if callable(ca_pem) else ca_pem
        if pem is None:
            return _refuse(Refused("NotFound", "this server has no CA of its own"))
        return web.Response(body=pem, content_type="application/x-pem-file")

    async def tell_time(_: web.Request) -> web.Response:
        return _json(200, msgspec.json.encode({"time": control.clock()}))

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_answer_failures])
    app.router.add_post(REGISTER_PATH, enroll)
    app.router.add_post(RENEW_PATH, enroll)
    app.router.add_post(WATCH_PATH, enroll)
    app.router.add_get(CA_PATH, ca)
    app.router.add_get(TIME_PATH, tell_time)
    app.router.add_get("/healthz", health)
    return app


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _answer_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure in the one form that agents read."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _refuse(Refused("BodyTooLarge", f"the body is larger than {MAX_BODY_BYTES} bytes"))
    except web.HTTPMethodNotAllowed:
        return _refuse(Refused("MethodNotAllowed", "this path is not asked in that way"))
    except web.HTTPNotFound:
        return _refuse(Refused("NotFound", "there is nothing here", "tunnels are visited by their own hostnames"))
    except EdgetunError as error:
        # The store: its folder is full or gone. The administrator reads why, the agent comes back.
        log.error("control cannot answer: %s", redact_tokens(str(error)))  # no traceback for people
        return _refuse(Refused("StoreUnavailable", "the server cannot store anything now", "try again in a minute"))


def _refuse(refused: Refused) -> web.Response:
    status = STATUS_BY_REASON.get(refused.reason, 403)
    return _json(status, msgspec.json.encode(RefusalBody(refused.reason, refused.message, refused.remedy)))


def _json(status: int, body: bytes) -> web.Response:
    # RFC 9111 §5.2.2.5: credentials are for the one who asked.
    return web.Response(
        status=status, body=body, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


class _WithoutRequests(logging.Filter):
    """Keeps quoted requests out of the log: their fields carry tokens."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            return False
        record.msg = redact_tokens(record.getMessage())
        record.args = None
        return True


class ControlEntrance:
    """Makes a protocol for every accepted connection, bounded in number and in time."""

    def __init__(self, app: web.Application, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self._max_connections = max_connections
        logger = logging.getLogger("edgetun.control.http")
        if not any(isinstance(present, _WithoutRequests) for present in logger.filters):
            logger.addFilter(_WithoutRequests())
        self._runner = web.AppRunner(
            app, access_log=None, logger=logger, handle_signals=False, keepalive_timeout=15.0, shutdown_timeout=2.0
        )
        self._open = 0

    async def start(self) -> Callable[[], asyncio.Protocol]:
        """Returns the factory: for `loop.create_server`, or for the sessions' port under ALPN `http/1.1` and none."""
        await self._runner.setup()
        return self._make

    async def close(self) -> None:
        """Lets requests in flight end for a moment, and drops the connections."""
        await self._runner.cleanup()

    def _make(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None, "start() comes first"
        return _Bounded(server(), self)

    def enter(self) -> bool:
        if self._open >= self._max_connections:
            return False
        self._open += 1
        return True

    def leave(self) -> None:
        self._open -= 1


class _Bounded(asyncio.Protocol):
    """Passes everything to aiohttp's protocol, which itself waits without end for a head that never comes."""

    __slots__ = ("_deadline", "_entrance", "_inner")

    def __init__(self, inner: asyncio.Protocol, entrance: ControlEntrance) -> None:
        self._inner = inner
        self._entrance = entrance
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._entrance.enter():
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(CONNECTION_LIFETIME_S, cast("asyncio.Transport", transport).abort)
            self._inner.connection_made(transport)
        else:
            cast("asyncio.Transport", transport).abort()

    def data_received(self, data: bytes) -> None:
        if self._deadline is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._deadline is not None else None

    def pause_writing(self) -> None:
        if self._deadline is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._deadline is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._entrance.leave()
            self._inner.connection_lost(exc)


async def control_protocol_factory(app: web.Application) -> tuple[Callable[[], asyncio.Protocol], ControlEntrance]:
    """The factory for `listen(other_protocols={"http/1.1": factory, "": factory})`, and what to close in the end."""
    entrance = ControlEntrance(app)
    return await entrance.start(), entrance

"""How an exit node gets its certificate: by its ServiceAccount token, over TLS that proves control first."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
from msgspec import Struct

from edgetun_core.control_stream import IDENTITY_PATH, IdentityAnswer, IdentityRequest
from edgetun_core.enrollment import UNREADABLE, RefusalBody
from edgetun_core.errors import AuthError, ConfigError, UpstreamUnreachable
from edgetun_core.fleet_identity import ExitNodeName, client_context, make_key_and_request
from edgetun_core.pki import ServerIdentity, Trust

log = logging.getLogger("edgetun.exitnode.control")

TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 256 * 1024


FILE_NAME: Final = "node-identity"


class _Kept(Struct, frozen=True):
    uri: str
    cert_pem: str
    key_pem: str
    since: float
    lifetime_s: float
    ca_pem: str = ""


class ControlUnreachable(UpstreamUnreachable):
    """Control did not answer, or not as control would."""


class IdentityRefused(AuthError):
    """Control does not accept the node's token or names."""


class NodeIdentity:
    """The certificate of this node, kept fresh: `ensure` asks for another one at half its life.

    `server` is what the tunnel listener shows; it is there after the first `ensure` and replaced in place afterwards.
    """

    def __init__(
        self,
        control: str,
        trust: Trust,
        token_file: Path,
        name: ExitNodeName,
        names: Iterable[str],
        *,
        state: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.control = control
        self.name = name
        self.trust = trust
        self.server: ServerIdentity | None = None
        self.ca_pem = trust.ca_pem or b""
        """The fleet's CA, as control told it last."""
        self.ready = asyncio.Event()
        """Set when `server` is there."""
        self._token_file = token_file
        self._names = tuple(names)
        self._clock = clock
        self._since = 0.0
        self._lifetime_s = 0.0
        self._file = state / FILE_NAME if state is not None else None

    def resume(self) -> bool:
        """Takes the certificate from disk, so that a node that starts while control is away can let agents in."""
        if self._file is None:
            return False
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=_Kept)
            if kept.uri != self.name.uri or not kept.since <= self._clock() < kept.since + kept.lifetime_s:
                return False
            self.server = ServerIdentity(kept.cert_pem.encode(), kept.key_pem.encode())
        except (OSError, ConfigError, *UNREADABLE):
            return False
        self._since, self._lifetime_s = kept.since, kept.lifetime_s
        self.ca_pem = kept.ca_pem.encode() or self.ca_pem
        self.ready.set()
        return True

    def _keep(self) -> None:
        if self._file is None or self.server is None:
            return
        kept = _Kept(
            self.name.uri,
            self.server.cert_pem.decode(),
            self.server.key_pem.decode(),
            self._since,
            self._lifetime_s,
            self.ca_pem.decode(),
        )
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(dir=self._file.parent, prefix=f".{FILE_NAME}.")  # 0600 from the start
            with os.fdopen(fd, "wb") as handle:
                handle.write(msgspec.json.encode(kept))
            os.replace(name, self._file)
        except OSError as error:
            log.warning("the certificate cannot be kept in %s: %s", self._file.parent, error.strerror)

    @property
    def is_due(self) -> bool:
        """Whether half of the certificate's life is over (or there is none)."""
        return self.server is None or self._clock() >= self._since + self._lifetime_s / 2 or self._clock() < self._since

    @property
    def renew_in_s(self) -> float:
        return max(0.0, self._since + self._lifetime_s / 2 - self._clock())

    async def ensure(self) -> ServerIdentity:
        """The certificate, a new one when it is due. Raises `ControlUnreachable`, `IdentityRefused`, `ConfigError`."""
        if not self.is_due and self.server is not None:
            return self.server
        try:
            token = (await asyncio.to_thread(self._token_file.read_text)).strip()
        except OSError as error:
            raise ConfigError(
                f"the ServiceAccount token {self._token_file}: {error.strerror}", remedy="give --control-token-file"
            ) from error
        key_pem, csr_pem = await asyncio.to_thread(make_key_and_request, self.name)
        asked_at = self._clock()
        answer = await self._ask(
            token, IdentityRequest(self.name.pool, self.name.region, self.name.node, csr_pem.decode(), self._names)
        )
        cert_pem = answer.cert_pem.encode()
        self.ca_pem = answer.ca_pem.encode() or self.ca_pem
        if self.server is None:
            self.server = ServerIdentity(cert_pem, key_pem)
        else:
            self.server.replace(cert_pem, key_pem)
        self._since, self._lifetime_s = asked_at, answer.expires_in_s
        self.ready.set()
        await asyncio.to_thread(self._keep)
        return self.server

    async def _ask(self, token: str, request: IdentityRequest) -> IdentityAnswer:
        connector = aiohttp.TCPConnector(ssl=client_context(self.trust), limit=1, force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.post(
                    self.control + IDENTITY_PATH,
                    data=msgspec.json.encode(request),
                    headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                    allow_redirects=False,
                ) as response,
            ):
                status, body = response.status, await response.content.read(MAX_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ControlUnreachable(f"{self.control} cannot be reached ({told(error)})") from None
        if status == 200:
            try:
                return msgspec.json.decode(body, type=IdentityAnswer)
            except UNREADABLE:
                raise ControlUnreachable(f"{self.control} answered with something that is no certificate") from None
        try:
            refusal = msgspec.json.decode(body, type=RefusalBody)
        except UNREADABLE:
            raise ControlUnreachable(f"{self.control} answered {status}") from None
        if status >= 500:
            raise ControlUnreachable(f"{self.control}: {refusal.message}", remedy=refusal.remedy)
        raise IdentityRefused(f"{self.control}: {refusal.message}", remedy=refusal.remedy)


def told(error: BaseException) -> str:
    """A connection's failure in a few words; never what the peer sent."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__

"""Sessions that come in a WebSocket to the visitors' ports, for networks that let nothing else out.

What the WebSocket carries is the TLS connection of a session as it would go to the tunnel port, byte for byte, and it is led there. So
whoever opens the outer TLS on the way (a company's proxy, a cloud's load balancer) sees neither credential nor requests, and
nothing that holds for sessions is said twice. It costs two encryptions: agents take it when QUIC and TLS are both shut out.

Bounds: as many as `max_open`; either side is paused while the other is slow; the tunnel port's own deadlines hold for what is inside.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import TYPE_CHECKING, Final, cast

from edgetun_core.enrollment import WEBSOCKET_PATH, WEBSOCKET_PROTOCOL
from edgetun_core.errors import EdgetunError, LimitExceeded, ProtocolError, UpstreamBroken, UpstreamUnreachable
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead

if TYPE_CHECKING:
    from wsproto.connection import Connection

TARGET: Final = WEBSOCKET_PATH.encode()
CONNECT_TIMEOUT_S: Final = 5.0
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class DoorFull(LimitExceeded):
    """As many sessions as may be are open or being opened in WebSockets."""

    status = 503
    retry_after_s = 5.0


class Door:
    """Takes upgrade requests for the well-known path. `host` and `port` are where this node takes sessions over TLS."""

    def __init__(self, host: str, port: int, max_open: int) -> None:
        self._address = ("127.0.0.1" if host in ("0.0.0.0", "") else "::1" if host == "::" else host, port)
        self._max_open = max_open
        self.open_now = 0
        self.opened_total = 0

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        """See `Handler.open`."""
        offered = [word.strip() for value in head.get_all(b"sec-websocket-protocol") for word in value.split(b",")]
        key = head.get(b"sec-websocket-key") or b""
        if head.protocol != b"websocket" or WEBSOCKET_PROTOCOL.encode() not in offered:
            client.on_reset(ProtocolError("this path takes agents' sessions in a WebSocket and nothing else"))
            return CLOSED
        if self.open_now >= self._max_open:
            client.on_reset(DoorFull("this exit node holds as many sessions as it may"))
            return CLOSED
        return _Passage(self, self._address, _welcome(head.method, key), client)


def _welcome(method: bytes, key: bytes) -> ResponseHead:
    """The answer that opens a WebSocket: RFC 6455 §4.2.2, or RFC 8441 §5 for an extended CONNECT."""
    chosen = (b"sec-websocket-protocol", WEBSOCKET_PROTOCOL.encode())
    if method == b"CONNECT":
        return ResponseHead(200, (chosen,))
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    return ResponseHead(101, ((b"sec-websocket-accept", accept), chosen))


class _Passage(asyncio.Protocol):
    """One WebSocket and its connection to the tunnel port."""

    def __init__(self, door: Door, address: tuple[str, int], welcome: ResponseHead, client: ResponseSink) -> None:
        self._door = door
        self._client = client
        self._welcome = welcome
        self._transport: asyncio.Transport | None = None
        self._is_over = False
        self._is_paused = False
        self._early: list[bytes] = []
        self._frames: Connection | None = None
        door.open_now += 1
        self._connecting = asyncio.get_running_loop().create_task(self._connect(address), name="a session's WebSocket")

    async def _connect(self, address: tuple[str, int]) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await asyncio.get_running_loop().create_connection(lambda: self, *address)
        except (OSError, TimeoutError):
            self._end(UpstreamUnreachable("this exit node's tunnel port does not answer"))

    # asyncio.Protocol: the tunnel port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        from wsproto.connection import Connection, ConnectionType

        self._transport = cast("asyncio.Transport", transport)
        if self._is_over:
            self._transport.abort()
            return
        self._frames = Connection(ConnectionType.SERVER)
        self._door.opened_total += 1
        self._client.on_head(self._welcome, False)
        if self._is_paused:
            self._transport.pause_reading()
        early, self._early = self._early, []
        for data in early:
            self.send_data(data, False)

    def data_received(self, data: bytes) -> None:
        from wsproto.events import BytesMessage

        if not self._is_over and self._frames is not None:
            self._client.on_data(self._frames.send(BytesMessage(data)), False)

    def pause_writing(self) -> None:
        if not self._is_over:
            self._client.pause_request()

    def resume_writing(self) -> None:
        if not self._is_over:
            self._client.resume_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(None)

    # RequestSink: the WebSocket

    def send_data(self, data: bytes, end: bool) -> None:
        from wsproto.events import BytesMessage, CloseConnection, Ping

        if self._is_over:
            return
        if self._frames is None or self._transport is None:
            # A client that does not wait for the answer may send a little; RFC 6455 §4.1 says that it must wait.
            if end or len(self._early) >= 8:
                self._end(ProtocolError("the WebSocket sent before it was open"))
            else:
                self._early.append(data)
            return
        if data:
            self._frames.receive_data(data)
            for event in self._frames.events():
                match event:
                    case BytesMessage():
                        self._transport.write(bytes(event.data))
                    case Ping():
                        self._client.on_data(self._frames.send(event.response()), False)
                    case CloseConnection():
                        self._transport.close()
                        return
                    case _:
                        self._end(ProtocolError("the WebSocket sent something that is no session's"))
                        return
        if end:
            self._transport.close()

    def send_trailers(self, fields: Fields) -> None:
        self.send_data(b"", True)

    def reset(self, error: EdgetunError) -> None:
        self._leave()

    def pause_response(self) -> None:
        self._is_paused = True
        if self._transport is not None and not self._is_over:
            self._transport.pause_reading()

    def resume_response(self) -> None:
        self._is_paused = False
        if self._transport is not None and not self._is_over:
            self._transport.resume_reading()

    # the end

    def _end(self, error: EdgetunError | None) -> None:
        """Tells the WebSocket's side, once."""
        if self._is_over:
            return
        frames = self._frames
        self._leave()
        if error is not None or frames is None:
            self._client.on_reset(error or UpstreamBroken("the tunnel port closed the connection"))
            return
        from wsproto.connection import ConnectionState
        from wsproto.events import CloseConnection

        is_open = frames.state in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING)
        self._client.on_data(frames.send(CloseConnection(1000)) if is_open else b"", True)

    def _leave(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._door.open_now -= 1
        self._early.clear()
        if self._transport is not None:
            self._transport.abort()
        elif not self._connecting.done():
            self._connecting.cancel()

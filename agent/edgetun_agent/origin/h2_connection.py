"""One HTTP/2 connection to an origin: the engine of core/edgetun_core/http/h2 on an asyncio transport.

Hot path: what streams write within a tick leaves in one write. Bounds: the origin may send `STREAM_WINDOW_BYTES` ahead of a reader
on each stream; what waits to be written is held near `WRITE_HIGH_BYTES` by the engine's queues, which pause the visitors.

A silent connection with streams under way is asked for a sign of life once, and then every five minutes: gRPC servers count more
frequent PINGs as an attack (GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS).
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from edgetun_agent.origin.h2_exchange import OriginLost, OriginStream
from edgetun_core.errors import EdgetunError, UpstreamBroken, UpstreamTimeout
from edgetun_core.http.h2 import Code, Connection, H2Limits
from edgetun_core.http.h2.frames import PING, frame
from edgetun_core.http.message import Field
from edgetun_core.http.multiplexed import read_response

if TYPE_CHECKING:
    from edgetun_agent.origin.h2_client import H2OriginClient

STREAM_WINDOW_BYTES: Final = 256 * 1024
CONNECTION_WINDOW_BYTES: Final = 32 * 1024 * 1024
"""Room for 128 streams that stand still: fewer of them never hold up the others."""
WRITE_HIGH_BYTES: Final = 256 * 1024
WRITE_LOW_BYTES: Final = 64 * 1024
PING_AFTER_S: Final = 30.0
PING_AGAIN_S: Final = 310.0
PONG_WITHIN_S: Final = 15.0
_PING_DATA: Final = b"edgetun?"

LIMITS: Final = H2Limits(stream_window_bytes=STREAM_WINDOW_BYTES, connection_window_bytes=CONNECTION_WINDOW_BYTES)


class H2OriginConnection(Connection[OriginStream], asyncio.Protocol):
    """Serves many exchanges at a time. `answered` counts heads of answers."""

    __slots__ = (
        "_beginning",
        "_is_gone",
        "_is_waking",
        "_loop",
        "_owner",
        "_pinged_at",
        "answered",
        "has_settings",
        "idle_since",
        "last_heard",
        "made_at",
        "transport",
    )

    def __init__(self, owner: H2OriginClient) -> None:
        super().__init__(LIMITS, is_server=False)
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.has_settings = False
        self.answered = 0
        self.made_at = self.last_heard = self.idle_since = monotonic()
        self._is_waking = False
        self._is_gone = False
        self._pinged_at = float("-inf")
        self._beginning = b""

    @property
    def room(self) -> int:
        """How many more exchanges it takes now: none before it has said how many, for some servers end the connection then."""
        return self.open_limit if self.has_settings and not self._is_gone else 0

    @property
    def protocol(self) -> str:
        """What ALPN chose; empty without TLS."""
        tls = self.transport.get_extra_info("ssl_object")
        return (tls.selected_alpn_protocol() or "") if tls is not None else ""

    # ---- the engine's side

    def read_head(self, fields: list[Field]) -> Any:
        """Equal answers share one head, on which those behind keep their renderings; origins repeat themselves within a second."""
        heads = self._owner.received_heads
        key = tuple(fields)
        received = heads.get(key)
        if received is None:
            received = read_response(fields)
            heads.remember(key, received)
        return received

    def on_settings(self) -> None:
        self.has_settings = True
        self.last_heard = monotonic()

    def on_goaway(self, last_stream_id: int, code: int, message: bytes) -> None:
        self._owner.connection_leaves(self)

    def on_failure(self, error: EdgetunError) -> None:
        self._gone(error)
        self.wake()

    def stream_over(self) -> None:
        if not self.streams:
            self.idle_since = monotonic()
        self.wake()

    def wake(self) -> None:
        """Writes what there is at the end of this tick, and gives free streams to those who wait."""
        if not self._is_waking:
            self._is_waking = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_waking = False
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        while data := self.data_to_send():
            transport.write(data)
            if self.is_blocked:
                break
        if self.failure is not None:
            transport.close()
            return
        if self._owner.has_waiting and self.room > 0:
            self._owner.connection_free(self)
        if self.goaway_received is not None and not self.streams:
            self._gone()
            transport.close()

    def _gone(self, error: EdgetunError | None = None) -> None:
        if not self._is_gone:
            self._is_gone = True
            if error is not None and not self.has_settings:
                self._owner.connection_useless(self, error)
            self._owner.connection_gone(self)

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES, low=WRITE_LOW_BYTES)
        self.made_at = self.last_heard = self.idle_since = monotonic()  # over TLS that is after the handshake
        self.start()
        self.wake()

    def data_received(self, data: bytes) -> None:
        """Hot path."""
        self.last_heard = monotonic()
        if not self.has_settings and not self._speaks_http2(data):
            return
        self.receive_data(data)
        if not self._is_waking:
            self._is_waking = True
            self._flush()

    def _speaks_http2(self, data: bytes) -> bool:
        """Tells who plainly speaks something else, before the engine complains of frames."""
        if self._beginning == b"" and data[:5] == b"HTTP/":
            self.give_up(
                UpstreamBroken(f"{self._owner.url} answers in HTTP/1.1", remedy="set the origin's protocol to http1")
            )
            return False
        if self._beginning == b"" and data[:2] == b"\x15\x03":
            self.give_up(UpstreamBroken(f"{self._owner.url} speaks TLS", remedy="write https:// and protocol: h2"))
            return False
        self._beginning = b"-"
        return True

    def give_up(self, error: EdgetunError) -> None:
        """Ends the connection and its exchanges with an error."""
        self.fail(error, Code.NO_ERROR)
        self._flush()

    def drop(self) -> None:
        """Closes at once; there are no streams to speak of."""
        self._gone()
        if self.transport is not None and not self.transport.is_closing():
            self.finish_politely()

    def finish_politely(self) -> None:
        """GOAWAY, then the end of the transport."""
        if self.failure is None:
            self.finish_shut_down()
            while data := self.data_to_send():
                self.transport.write(data)
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it does not read; nobody waits for that
        else:
            self.transport.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        url = self._owner.url
        if not self.has_settings and not isinstance(exc, OSError) and self.failure is None:
            error: EdgetunError = UpstreamBroken(
                f"{url} closed the connection without a word of HTTP/2",
                remedy="set the origin's protocol to http1 if it does not speak HTTP/2",
            )
        else:
            how = "closed the connection" if exc is None else "broke the connection off"
            error = OriginLost(f"{url} {how} before it answered", remedy="look at the origin's log")
        self.fail(error, None)
        self._gone()

    def pause_writing(self) -> None:
        self.is_blocked = True

    def resume_writing(self) -> None:
        self.is_blocked = False
        self.wake()

    # ---- time

    def sweep(self, now: float, rule_times: tuple[float, float, float], keep_idle_s: float) -> None:
        """Looks at deadlines: the origin's first word, its exchanges, its life, and how long it is of no use."""
        self.tick()
        connect_s, response_s, idle_s = rule_times
        if not self.has_settings and now - self.made_at > connect_s:
            self.give_up(
                UpstreamTimeout(
                    f"{self._owner.url} took a connection and said nothing in HTTP/2 for {connect_s:g} s",
                    remedy="set the origin's protocol to http1 if it does not speak HTTP/2",
                )
            )
            return
        if not self.streams:
            if now - self.idle_since > keep_idle_s:
                self.drop()
            return
        for stream in tuple(self.streams.values()):
            if stream.exchange is not None:
                stream.exchange.sweep(now, response_s, idle_s)
        self._look_alive(now)

    def _look_alive(self, now: float) -> None:
        silent_s = now - self.last_heard
        if self._pinged_at > self.last_heard and now - self._pinged_at > PONG_WITHIN_S:
            self.give_up(UpstreamTimeout(f"{self._owner.url} does not answer any more, not even a PING"))
            return
        if silent_s > PING_AFTER_S and now - self._pinged_at > PING_AGAIN_S:
            self._pinged_at = now
            self.out.append(frame(PING, 0, 0, _PING_DATA))
            self.wake()

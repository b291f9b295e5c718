"""Frames about the connection and not about messages: SETTINGS, PING, GOAWAY, RST_STREAM, WINDOW_UPDATE, priorities (RFC 9113 §6).

Each handler takes flags, stream and payload, and raises ConnectionBroken or StreamBroken for what the peer must not do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgetun_core.errors import Cancelled, Draining, EdgetunError, ProtocolError
from edgetun_core.http.h2.frames import (
    ACK,
    GOAWAY,
    MAX_STREAM_ID,
    PING,
    PRIORITY,
    PRIORITY_UPDATE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    Code,
    ConnectionBroken,
    StreamBroken,
    build_goaway,
    frame,
    name_of,
)
from edgetun_core.http.h2.outlet import Outlet, S
from edgetun_core.http.h2.settings import H2Limits
from edgetun_core.http.priority import Priority, parse_priority

DRAIN_PING: Final = b"\x00edgetun"
_MOST_SETTINGS: Final = 32
_DEBUG_BYTES: Final = 256


class StreamReset(ProtocolError):
    """The peer reset a stream. `code` says why; REFUSED_STREAM means that nothing was done, so another try is safe."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the stream was reset by the other side ({name_of(code)})")
        self.code = code


class Controls(Outlet[S]):
    """Both roles' handling of control frames."""

    __slots__ = (
        "_next_id",
        "_priorities",
        "failure",
        "goaway_received",
        "goaway_sent",
        "is_draining",
        "is_server",
        "last_peer_id",
        "settings_acknowledged",
    )

    def __init__(self, limits: H2Limits, *, is_server: bool) -> None:
        super().__init__(limits)
        self.is_server = is_server
        self.failure: EdgetunError | None = None
        """Why the connection can be used no more: a connection error of either end, or the transport's end."""
        self.goaway_received: int | None = None
        """The last stream that the peer did or will serve, once it said that it goes away."""
        self.goaway_sent: int | None = None
        self.is_draining = False
        self.last_peer_id = 0
        self.settings_acknowledged = False
        self._next_id = 2 if is_server else 1
        self._priorities: dict[int, Priority] | None = None

    # For subclasses.

    def on_settings(self) -> None:
        """The peer's settings came or changed."""

    def on_goaway(self, last_stream_id: int, code: int, message: bytes) -> None:
        """The peer goes away. Our streams beyond `last_stream_id` were broken with REFUSED_STREAM: safe to try again elsewhere."""

    def on_failure(self, error: EdgetunError) -> None:
        """The connection is over: send what is in the output and close the transport."""

    def tick(self) -> None:
        """A second passed."""
        self.guard.tick()

    # Going away.

    def shut_down(self) -> None:
        """Server: begins to go away (RFC 9113 §6.8): says so, and still serves what is under way or crosses it.

        The second step follows when the peer answered a PING, or by `finish_shut_down`.
        """
        if not self.is_draining and self.failure is None:
            self.is_draining = True
            self.out.append(build_goaway(MAX_STREAM_ID, Code.NO_ERROR))
            self.out.append(frame(PING, 0, 0, DRAIN_PING))

    def finish_shut_down(self) -> None:
        """Server: what was not opened by now is not served."""
        if self.goaway_sent is None and self.failure is None:
            self.is_draining = True
            self.goaway_sent = self.last_peer_id
            self.out.append(build_goaway(self.last_peer_id, Code.NO_ERROR))

    def fail(self, error: EdgetunError, code: Code | None) -> None:
        """Ends the connection, with GOAWAY unless `code` is None: the transport is gone. Every stream is told."""
        if self.failure is not None:
            return
        self.failure = error
        if code is None:
            self.out.clear()
        else:
            self.out.append(build_goaway(self.last_peer_id, code, error.message.encode()[:_DEBUG_BYTES]))
        for stream in tuple(self.streams.values()):
            if stream.id in self.streams:
                self.forget(stream, by_peer=True)
                stream.got_broken(error, Code.CANCEL if code is None else code)
        self.on_failure(error)

    # Frames.

    def handle_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "SETTINGS on a stream (RFC 9113 §6.5)")
        if flags & ACK:
            if payload:
                raise ConnectionBroken(
                    Code.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with values (RFC 9113 §6.5)"
                )
            self.settings_acknowledged = True
            return
        if len(payload) % 6:
            raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "SETTINGS is no multiple of 6 bytes (RFC 9113 §6.5)")
        self.guard.spend_control(1 + len(payload) // 6 // 8)
        if len(payload) > 6 * _MOST_SETTINGS:
            raise ConnectionBroken(Code.ENHANCE_YOUR_CALM, f"more than {_MOST_SETTINGS} settings in one frame")
        peer = self.peer_settings
        window, table = peer.initial_window_bytes, peer.header_table_bytes
        peer.update(payload, is_server=self.is_server)
        if peer.initial_window_bytes != window:
            self.initial_window_changed(peer.initial_window_bytes - window)
        if peer.header_table_bytes < table:
            self.table_change = True
        self.out.append(SETTINGS_ACK)
        self.on_settings()

    def handle_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "PING on a stream (RFC 9113 §6.7)")
        if len(payload) != 8:
            raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "PING is not of 8 bytes (RFC 9113 §6.7)")
        self.guard.spend_control()
        if not flags & ACK:
            self.out.append(frame(PING, ACK, 0, payload))
        elif payload == DRAIN_PING and self.is_draining:
            self.finish_shut_down()

    def handle_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "GOAWAY on a stream (RFC 9113 §6.8)")
        if len(payload) < 8:
            raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 bytes (RFC 9113 §6.8)")
        self.guard.spend_control()
        last = int.from_bytes(payload[:4], "big") & MAX_STREAM_ID
        code = int.from_bytes(payload[4:8], "big")
        if self.goaway_received is not None and last > self.goaway_received:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "GOAWAY with a higher stream than before (RFC 9113 §6.8)")
        self.goaway_received = last
        if not self.is_server:
            error = Draining("the other side goes away and has not taken the request")
            for stream in tuple(self.streams.values()):
                if stream.id > last and stream.id in self.streams:
                    self.forget(stream, by_peer=True)
                    stream.got_broken(error, Code.REFUSED_STREAM)
        self.on_goaway(last, code, payload[8 : 8 + _DEBUG_BYTES])

    def handle_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "RST_STREAM is not of 4 bytes (RFC 9113 §6.4)")
        self.check_not_idle(stream_id, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self.guard.spend_control()
            return
        code = int.from_bytes(payload, "big")
        self.forget(stream, by_peer=True)
        error = Cancelled("the visitor cancelled the request") if self.is_server else StreamReset(code)
        stream.got_broken(error, code)
        if self.is_server:
            self.guard.spend_reset()

    def handle_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not of 4 bytes (RFC 9113 §6.9)")
        if stream_id:
            self.check_not_idle(stream_id, "WINDOW_UPDATE")
        self.guard.spend_control()
        self.window_update(stream_id, int.from_bytes(payload, "big") & MAX_STREAM_ID)

    def handle_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "PRIORITY on stream 0 (RFC 9113 §6.3)")
        self.guard.spend_control()
        if len(payload) != 5:
            raise StreamBroken(Code.FRAME_SIZE_ERROR, "PRIORITY is not of 5 bytes (RFC 9113 §6.3)")

    def handle_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise ConnectionBroken(Code.PROTOCOL_ERROR, "PUSH_PROMISE, which was never allowed (RFC 9113 §6.6, §8.4)")

    def handle_priority_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or not self.is_server:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, "PRIORITY_UPDATE out of place (RFC 9218 §7.1)")
        if len(payload) < 4:
            raise ConnectionBroken(Code.FRAME_SIZE_ERROR, "PRIORITY_UPDATE is shorter than 4 bytes (RFC 9218 §7.1)")
        prioritized = int.from_bytes(payload[:4], "big") & MAX_STREAM_ID
        if not prioritized & 1:
            raise ConnectionBroken(
                Code.PROTOCOL_ERROR, "PRIORITY_UPDATE for a stream that no client opens (RFC 9218 §7.1)"
            )
        self.guard.spend_control()
        priority = parse_priority(payload[4:])
        stream = self.streams.get(prioritized)
        if stream is not None:
            stream.set_priority(priority)
        elif prioritized > self.last_peer_id:
            # It may overtake the request; kept for as many streams as there may be.
            if self._priorities is None:
                self._priorities = {}
            self._priorities[prioritized] = priority
            if len(self._priorities) > self.limits.max_concurrent_streams:
                del self._priorities[next(iter(self._priorities))]

    def is_idle(self, stream_id: int) -> bool:
        """Whether neither end has opened the stream so far."""
        is_ours = bool(stream_id & 1) is not self.is_server
        return stream_id >= self._next_id if is_ours else stream_id > self.last_peer_id

    def check_not_idle(self, stream_id: int, name: str) -> None:
        """A frame about a stream that was never opened is a connection error (RFC 9113 §5.1, "idle")."""
        if not stream_id:
            raise ConnectionBroken(Code.PROTOCOL_ERROR, f"{name} on stream 0")
        if self.is_idle(stream_id):
            raise ConnectionBroken(Code.PROTOCOL_ERROR, f"{name} on a stream that is idle (RFC 9113 §5.1)")


Handle = Callable[[Controls[S], int, int, bytes], None]

CONTROL_FRAMES: Final[dict[int, Handle]] = {  # type: ignore[type-arg]
    SETTINGS: Controls.handle_settings,
    PING: Controls.handle_ping,
    GOAWAY: Controls.handle_goaway,
    RST_STREAM: Controls.handle_rst_stream,
    WINDOW_UPDATE: Controls.handle_window_update,
    PRIORITY: Controls.handle_priority,
    PUSH_PROMISE: Controls.handle_push_promise,
    PRIORITY_UPDATE: Controls.handle_priority_update,
}

"""How long a visitor's HTTP/2 connection and its streams may be silent, and in which way each ends.

Called from the front's sweep, once a second per connection; an idle connection costs a few comparisons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetun_core.http.h2 import Code
from edgetun_core.http.h2.frames import DATA, HEADER, HEADER_BYTES, MAX_STREAM_ID, ConnectionBroken
from edgetun_core.http.multiplexed import RequestRefused
from edgetun_exitnode.front.deadlines import SPARE_S

if TYPE_CHECKING:
    from edgetun_exitnode.front.h2 import H2Connection
    from edgetun_exitnode.front.h2_exchange import H2Exchange


def check_h2_deadline(connection: H2Connection, now: float) -> None:
    """Ends what has been silent for too long."""
    limits = connection.front.limits
    if connection.closing:
        if now >= connection.closing:
            if connection.lingers:
                connection.lingers = False
                connection.closing = now + limits.write_stall_s
                connection.transport.close()
            else:
                connection.transport.abort()
        return
    connection.tick()
    if connection.is_blocked:
        unsent = connection.transport.get_write_buffer_size()
        if unsent < connection.stalled_bytes:
            connection.active = now
        elif now - connection.active > limits.write_stall_s:
            connection.give_up("the visitor took nothing of what was sent for too long")
            return
        connection.stalled_bytes = unsent
    if _owes_a_frame(connection, now):
        connection.fail(
            ConnectionBroken(Code.PROTOCOL_ERROR, "a preface, header block or frame did not arrive in time"),
            Code.PROTOCOL_ERROR,
        )
        return
    if not connection.settings_acknowledged and now - connection.begun > limits.head_s:
        connection.fail(
            ConnectionBroken(Code.SETTINGS_TIMEOUT, "SETTINGS was not acknowledged in time"), Code.SETTINGS_TIMEOUT
        )
        return
    if connection.is_draining:
        if connection.drained_since and now - connection.drained_since >= limits.sweep_s:
            connection.finish_shut_down()  # the visitor did not answer the PING; what was on its way has come by now
        connection.drained_since = connection.drained_since or now
    if connection.streams:
        for stream in tuple(connection.streams.values()):
            if stream.id in connection.streams:
                _check_stream(connection, stream, now)
    else:
        if connection.spare is not None and now - connection.active > SPARE_S:
            connection.spare = None
            connection.streams = {}  # an emptied dict keeps its size
        if now - connection.active > limits.keep_alive_s:
            connection.finish_shut_down()
    connection.flush()


def _owes_a_frame(connection: H2Connection, now: float) -> bool:
    """Whether the same unfinished preface, header block or frame has been under way for too long.

    An unfinished DATA frame counts as progress of its stream's body as long as it grows.
    """
    if not connection.is_reading_head:
        connection.partial = ()
        return False
    rest = connection.rest
    stream: H2Exchange | None = None
    if len(rest) >= HEADER_BYTES:
        _, _, kind, _, stream_id = HEADER.unpack_from(rest)
        if kind == DATA:
            stream = connection.streams.get(stream_id & MAX_STREAM_ID)
    at = (connection.last_peer_id, connection.frames_received)
    if at != connection.partial[:2]:
        connection.partial = (*at, len(rest))
        connection.partial_since = now
        if stream is not None:
            stream.active = now
        return False
    if stream is not None and len(rest) > connection.partial[2]:
        connection.partial = (*at, len(rest))
        stream.active = now
        connection.partial_since = now
    limits = connection.front.limits
    return now - connection.partial_since > (limits.head_s if stream is None else limits.body_progress_s)


def _check_stream(connection: H2Connection, stream: H2Exchange, now: float) -> None:
    limits = connection.front.limits
    if stream.queued_bytes or stream.held_head is not None:
        if stream.sent_bytes != stream.sent_mark:
            stream.sent_mark = stream.sent_bytes
            stream.sent_at = now
        elif not stream.sent_at:
            stream.sent_at = now
        elif now - stream.sent_at > limits.write_stall_s and not connection.is_blocked:
            stream.give_up("the visitor's window stayed closed for too long", Code.CANCEL)
            return
    else:
        stream.sent_at = 0.0
    if stream.waits_for_body and now - stream.active > limits.body_progress_s:
        if stream.over and (stream.queued_bytes or stream.held_head is not None):
            return  # the whole answer is under way; it is not cut for the sake of a body that nobody needs
        connection.front.counters.requests_timed_out += 1
        stream.time_out(RequestRefused("the request's body did not arrive in time", status=408))


def is_waiting_for_visitor(connection: H2Connection) -> bool:
    """Whether every stream waits for the visitor: to send a body, or to open a window."""
    return all(stream.queued_bytes or stream.waits_for_body for stream in connection.streams.values())

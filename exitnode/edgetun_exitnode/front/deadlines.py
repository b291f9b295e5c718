"""How long a visitor's HTTP/1.1 connection may be silent in each of its phases, and which one makes room for another.

Called from the front's sweep for every connection, so the common phase, an idle connection, costs a comparison or two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgetun_core.http.h1 import H1Error
from edgetun_exitnode.front.h1_exchange import RAW

if TYPE_CHECKING:
    from edgetun_exitnode.front.h1 import H1Connection

SPARE_S: Final = 2.0
"""An object that waits for the connection's next request is let go after this long."""
SLOW_GRACE_S: Final = 5.0
"""A silent body or a stalled reader may be put out for others only after this long."""


def check_deadline(connection: H1Connection, now: float) -> None:
    """Ends what has been silent for too long."""
    limits = connection.front.limits
    if connection.closing:
        if now >= connection.closing:
            _end(connection, now + limits.write_stall_s)
        return
    silent_s = now - connection.active
    if connection.write_paused:
        unsent = connection.transport.get_write_buffer_size()
        if unsent < connection.stalled_bytes:
            connection.active = now
        elif silent_s > limits.write_stall_s:
            connection.give_up("the visitor took nothing of the response for too long")
        connection.stalled_bytes = unsent
        return
    exchange = connection.exchange
    if exchange is None:
        if connection.held is None:
            if silent_s > SPARE_S:
                connection.spare = None
            if silent_s > limits.keep_alive_s:
                connection.close()
        elif silent_s > limits.head_s:
            connection.time_out(H1Error("the request's head did not arrive in time", status=408))
    elif exchange.request_done or exchange.mode >= RAW or connection.read_paused:
        pass  # the answering side has deadlines of its own
    elif silent_s > limits.body_progress_s:
        connection.time_out(H1Error("the request's body did not arrive in time", status=408))


def _end(connection: H1Connection, latest: float) -> None:
    """A closing connection's time is up: a lingering one closes now, any other is dropped."""
    if connection.lingers:
        connection.lingers = False
        connection.closing = latest
        connection.transport.close()
    else:
        connection.transport.abort()


def evictability(connection: H1Connection, now: float) -> float:
    """For how many seconds a connection has kept its place without need; 0.0 when it must stay."""
    if connection.closing:
        return 0.0
    silent_s = now - connection.active
    exchange = connection.exchange
    if exchange is None and not connection.write_paused:
        return silent_s
    waits = connection.write_paused or (
        exchange is not None and not exchange.request_done and exchange.mode < RAW and not connection.read_paused
    )
    return silent_s - SLOW_GRACE_S if waits and silent_s > SLOW_GRACE_S else 0.0

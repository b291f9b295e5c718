"""HTTP/2 (RFC 9113), sans-I/O, for both roles: the exit node's front and the agent's client of `h2` and `h2c` origins.

A connection is fed what the transport reads and gives what the transport is to write. Frames become calls on streams, without
event objects, tasks or copies of bodies. Neither end uses server push.

Both roles
    connection.start()                         preface and SETTINGS into the output; call first
    connection.receive_data(data)              calls got_head, got_body, got_trailers, got_broken of streams; raises nothing
    connection.data_to_send()                  everything that can be written now, once per loop tick; b"" when there is nothing
    connection.is_blocked = True | False       the transport's pause_writing and resume_writing; take the output after False
    connection.fail(error, code)               ends it, with GOAWAY; with code None when the transport is gone
    connection.tick()                          once a second, for the budgets (guard.py)

    stream.put_head(block, end)               a block is rendered by hpack.render_block, and holds for every connection
    stream.put_body(data, end), put_trailers(block), break_off(code)
    stream.on_full(), on_room()                pause and resume whoever writes to it; what was said meanwhile is kept
    stream.pause_receiving(), resume_receiving()    hold back and give back windows; up to a window may still arrive

Client: subclass `Connection` with `read_head` returning `read_response(fields)`, subclass `Stream`; then

    if connection.open_limit > 0:              the peer's MAX_CONCURRENT_STREAMS, no GOAWAY so far
        stream = OriginStream(connection)
        block = render_block(build_request_fields(head, scheme=b"http", authority=b"localhost:3000"))
        connection.open_stream(stream, block, end)
        stream.expects_no_body = head.method == b"HEAD"
    `got_head(received, end)` comes for each interim head (received.head.status < 200) and for the final one.
    `got_broken(error, code)`: with REFUSED_STREAM the peer did nothing, so that another try is safe.
    `connection.on_goaway(...)`: no new streams, those under way go on; `connection.on_failure(error)`: all is over.

Server: subclass with `read_head` returning `read_request(fields, scheme, limits)`, `make_stream` and `refuse_request`.

    frames       numbers and builders          settings     SETTINGS, H2Limits        hpack     header blocks
    states       the table of §5.1             stream       one stream                schedule  whose turn it is (RFC 9218)
    guard        budgets against floods        outlet       sending, windows          controls  SETTINGS, PING, GOAWAY, ...
    connection   receiving, and the whole
"""

from __future__ import annotations

from edgetun_core.http.h2.connection import Connection
from edgetun_core.http.h2.controls import StreamReset
from edgetun_core.http.h2.frames import PREFACE, Code, ConnectionBroken, StreamBroken
from edgetun_core.http.h2.hpack import render_block
from edgetun_core.http.h2.settings import H2Limits
from edgetun_core.http.h2.states import State
from edgetun_core.http.h2.stream import Stream

__all__ = [
    "PREFACE",
    "Code",
    "Connection",
    "ConnectionBroken",
    "H2Limits",
    "State",
    "Stream",
    "StreamBroken",
    "StreamReset",
    "render_block",
]

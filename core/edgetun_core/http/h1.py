"""HTTP/1.1 message syntax and framing (RFC 9112), shared by the exit node's front and the agent's origin client.

The front reads strictly: what two implementations might read differently is refused, since that is how requests are
smuggled. The origin client forgives a few old habits of servers where the meaning is beyond doubt. Everything here is pure: a
block of bytes in, an immutable head out. Callers memoise by raw block.

    h1_syntax    grammar, limits, H1Error, field sections
    h1_request   parse_request, ParsedRequest
    h1_response  parse_response, ParsedResponse
    h1_chunked   ChunkedDecoder
    h1_render    render_request, render_response
"""

from __future__ import annotations

from edgetun_core.http.h1_chunked import LAST_CHUNK, ChunkedDecoder, encode_chunk, render_trailers
from edgetun_core.http.h1_render import BodyFraming, PreparedResponse, prepare_response, render_request, render_response
from edgetun_core.http.h1_request import ParsedRequest, parse_request
from edgetun_core.http.h1_response import ParsedResponse, parse_response
from edgetun_core.http.h1_syntax import (
    CHUNKED,
    UNTIL_CLOSE,
    H1Error,
    H1Limits,
    has_bare_line_end,
    parse_authority,
    parse_fields,
)

__all__ = [
    "CHUNKED",
    "LAST_CHUNK",
    "UNTIL_CLOSE",
    "BodyFraming",
    "ChunkedDecoder",
    "H1Error",
    "H1Limits",
    "ParsedRequest",
    "ParsedResponse",
    "PreparedResponse",
    "encode_chunk",
    "has_bare_line_end",
    "parse_authority",
    "parse_fields",
    "parse_request",
    "parse_response",
    "prepare_response",
    "render_request",
    "render_response",
    "render_trailers",
]

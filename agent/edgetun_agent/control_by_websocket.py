"""A request to control in a WebSocket to the visitors' port of an exit node, for networks that let nothing else out.

The exit node leads what the WebSocket carries to its tunnel port, where control answers too (`edgetun serve`). The TLS inside is that of
any request to control, and proves who is there; whoever opens the TLS outside sees bytes that are encrypted once more.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final
from urllib.parse import urlsplit

from edgetun_agent.control_client import ControlUnreachable, ServerDate, certificate_problem
from edgetun_core.errors import ProtocolError
from edgetun_core.http.h1 import CHUNKED, UNTIL_CLOSE, ChunkedDecoder, parse_response
from edgetun_core.transport.way import Way

MAX_HEAD_BYTES: Final = 64 * 1024
CONNECT_S: Final = 5.0
READ_BYTES: Final = 64 * 1024


async def exchange_by(
    way: Way,
    method: str,
    url: str,
    context: ssl.SSLContext,
    server_date: ServerDate,
    most_bytes: int,
    *,
    body: bytes = b"",
    fields: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """`control_client.exchange` by another way. Raises the same, and what the way does."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    sock = await way.connect(host, parts.port or 443, CONNECT_S)
    try:
        reader, writer = await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname=host, limit=MAX_HEAD_BYTES
        )
    except ssl.SSLCertVerificationError as error:
        raise certificate_problem(url, error, server_date) from None
    except (OSError, EOFError) as error:
        raise ControlUnreachable(
            f"no control server answers behind the WebSocket to {host} ({type(error).__name__})",
            remedy="only an exit node that carries control too (edgetun serve) takes registrations there",
        ) from None
    try:
        lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (fields or {}).items()]
        lines += [f"Content-Length: {len(body)}"] if body else []
        writer.write("\r\n".join((*lines, "", "")).encode("ascii") + body)
        return await _answer(reader, method.encode(), server_date, most_bytes, url)
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        raise ControlUnreachable(
            f"control broke the connection in the WebSocket to {host} off ({type(error).__name__})",
            remedy="only an exit node that carries control too (edgetun serve) takes registrations there",
        ) from None
    finally:
        writer.transport.abort()


async def _answer(
    reader: asyncio.StreamReader, method: bytes, server_date: ServerDate, most_bytes: int, url: str
) -> tuple[int, bytes]:
    head = parse_response(await reader.readuntil(b"\r\n\r\n"), method)
    date = head.head.get(b"date")
    server_date.note(None if date is None else date.decode("latin-1"))
    decoder = ChunkedDecoder() if head.body_length == CHUNKED else None
    wanted = head.body_length if decoder is None and head.body_length != UNTIL_CLOSE else None
    found = bytearray()
    while (decoder is None or not decoder.done) and (wanted is None or len(found) < wanted):
        data = await reader.read(READ_BYTES)
        if not data:
            if wanted is None and decoder is None:
                break
            raise EOFError("the answer ends in the middle")
        for piece in decoder.feed(data) if decoder is not None else (data,):
            found += piece
        if len(found) > most_bytes:
            raise ProtocolError(f"{url} answered with more than {most_bytes} bytes")
    return head.head.status, bytes(found)

"""Bodies that say what they are and prove that they are whole: a line of facts, filler that follows from them, a checksum. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

MARK = b"edgetun-page "
BLOCK_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Page:
    """What a body says of itself. `made_at`: seconds since the epoch. `took`: digest of the request's body that it answers."""

    tunnel: str
    target: str
    made_at: float
    size_bytes: int
    serial: int
    took: str = ""


class Unreadable(ValueError):
    """A body that is no page, or not the page that it says it is."""


def pieces(page: Page) -> Iterator[bytes]:
    """The body in pieces: the line, blocks of filler, the checksum."""
    digest = hashlib.sha256()
    line = MARK + json.dumps(asdict(page)).encode() + b"\n"
    digest.update(line)
    yield line
    left = page.size_bytes
    block = _filler(page)
    while left > 0:
        piece = block[:left]
        digest.update(piece)
        left -= len(piece)
        yield piece
    yield digest.hexdigest().encode()


def body(page: Page) -> bytes:
    """The whole body."""
    return b"".join(pieces(page))


def length_bytes(page: Page) -> int:
    """How long the body is, which a Content-Length wants beforehand."""
    return len(MARK) + len(json.dumps(asdict(page))) + 1 + page.size_bytes + 64


def read(data: bytes) -> Page:
    """The facts of a body that is whole. Raises `Unreadable`."""
    line, newline, rest = data.partition(b"\n")
    if not line.startswith(MARK) or not newline:
        raise Unreadable(f"no page: {data[:80]!r}")
    try:
        page = Page(**json.loads(line[len(MARK) :]))
    except (ValueError, TypeError) as error:
        raise Unreadable(f"no page: {error}: {line[:200]!r}") from None
    if len(rest) != page.size_bytes + 64:
        raise Unreadable(f"{len(rest) - 64} bytes of filler where {page.size_bytes} were meant: {page}")
    if hashlib.sha256(data[:-64]).hexdigest().encode() != rest[-64:]:
        raise Unreadable(f"the checksum does not fit: {page}")
    return page


def _filler(page: Page) -> bytes:
    """Bytes that no other page has, so that a piece of another one shows."""
    seed = hashlib.sha256(f"{page.tunnel} {page.target} {page.serial}".encode()).digest()
    return (seed * (BLOCK_BYTES // len(seed) + 1))[:BLOCK_BYTES]

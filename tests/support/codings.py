"""Decoders of content codings, as clients have them."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import zstandard


def decode(coding: bytes, data: bytes) -> bytes:
    if coding == b"gzip":
        return zlib.decompress(data, 31)
    if coding == b"br":
        return brotli.decompress(data)
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


class Decoder:
    """Decodes what came so far, as a client does that shows a page while it loads."""

    def __init__(self, coding: bytes) -> None:
        self._feed: Callable[[bytes], bytes] = {
            b"gzip": lambda: zlib.decompressobj(31).decompress,
            b"br": lambda: brotli.Decompressor().process,
            b"zstd": lambda: zstandard.ZstdDecompressor().decompressobj().decompress,
        }[coding]()

    def feed(self, data: bytes) -> bytes:
        return self._feed(data)

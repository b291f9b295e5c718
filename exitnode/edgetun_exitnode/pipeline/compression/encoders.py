"""The content codings themselves: gzip, br, zstd, at levels that the event loop can afford (docs/decisions).

A whole body is encoded in one call. A stream has an encoder whose state takes up to 700 kB, so the node counts them, and what
comes when there is no room for one more goes out uncompressed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

GZIP_LEVEL: Final = 4
BROTLI_QUALITY: Final = 4
BROTLI_WINDOW: Final = 18
ZSTD_LEVEL: Final = 3
_GZIP_WINDOW: Final = 15
_GZIP_FORMAT: Final = 16 + _GZIP_WINDOW

MAX_LIVE_BYTES: Final = 64 * 1024 * 1024

_zstd_whole: Final = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
_zstd_parameters: Final = zstandard.ZstdCompressionParameters.from_level(
    ZSTD_LEVEL, window_log=17, hash_log=15, chain_log=15
)


def _gzip_whole(data: bytes) -> bytes:
    encoder = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT, 8)
    return encoder.compress(data) + encoder.flush()


def _brotli_whole(data: bytes) -> bytes:
    output: bytes = brotli.compress(data, quality=BROTLI_QUALITY, lgwin=BROTLI_WINDOW)
    return output


ENCODE_WHOLE: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"gzip": _gzip_whole,
    b"br": _brotli_whole,
    b"zstd": _zstd_whole.compress,
}
CODINGS: Final = tuple(ENCODE_WHOLE)


class Encoder(Protocol):
    """One stream. Everything that goes in comes out at once, so that a reader can decode all that was said."""

    def encode(self, data: bytes) -> bytes: ...

    def finish(self, data: bytes) -> bytes: ...


class _Gzip:
    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT, 8)

    def encode(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def finish(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush()


class _Brotli:
    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = brotli.Compressor(quality=BROTLI_QUALITY, lgwin=BROTLI_WINDOW)

    def encode(self, data: bytes) -> bytes:
        output: bytes = self._stream.process(data) + self._stream.flush()
        return output

    def finish(self, data: bytes) -> bytes:
        output: bytes = (self._stream.process(data) if data else b"") + self._stream.finish()
        return output


class _Zstd:
    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = zstandard.ZstdCompressor(compression_params=_zstd_parameters).compressobj()

    def encode(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush()


_STREAMS: Final[dict[bytes, tuple[Callable[[], Encoder], int]]] = {
    b"gzip": (_Gzip, 256 * 1024),
    b"br": (_Brotli, 700 * 1024),
    b"zstd": (_Zstd, 512 * 1024),
}
"""What makes an encoder, and what one takes in memory (measured, rounded up)."""


class Encoders:
    """Makes the node's encoders and counts them. Whoever gets one gives it back with `release`."""

    __slots__ = ("live_bytes", "max_bytes", "refused")

    def __init__(self, max_bytes: int = MAX_LIVE_BYTES) -> None:
        self.max_bytes = max_bytes
        self.live_bytes = 0
        self.refused = 0

    def make(self, coding: bytes) -> Encoder | None:
        """A new stream, or None when there is no room for its state."""
        make, cost = _STREAMS[coding]
        if self.live_bytes + cost > self.max_bytes:
            self.refused += 1
            return None
        self.live_bytes += cost
        return make()

    def release(self, coding: bytes) -> None:
        """An encoder that `make` gave is no longer used."""
        self.live_bytes -= _STREAMS[coding][1]

"""The cluster token: one line of text that tells an agent where control is, whom to trust there, and who it is itself.

`edgetun_` + base64url without padding of msgpack(version, control URLs, CA fingerprint, token id, secret) + CRC-32 of it.
The checksum is no protection: it tells a token that was cut off or mistyped from one that the server does not accept.
Nothing here ever puts the text, or a part of the secret, into a message, a repr or a log.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from dataclasses import dataclass, field
from typing import Final, NoReturn, SupportsIndex
from urllib.parse import urlsplit

import msgspec

from edgetun_core.errors import AuthError, ConfigError

PREFIX: Final = "edgetun_"
VERSION: Final = 1
SECRET_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 32
MAX_TEXT_LENGTH: Final = 4096
MAX_CONTROL_URLS: Final = 8

_CHECKSUM_BYTES: Final = 4
_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_TOKEN_LIKE: Final = re.compile(r"edgetun_[A-Za-z0-9_\-]{8,}")
_encoder = msgspec.msgpack.Encoder()


class TokenUnreadable(AuthError):
    """The text is not a whole cluster token: cut off, mistyped, or something else altogether."""


class _Payload(msgspec.Struct, frozen=True, array_like=True):
    version: int
    control_urls: tuple[str, ...]
    ca_fingerprint: bytes
    token_id: str
    secret: bytes


_decoder = msgspec.msgpack.Decoder(_Payload)


@dataclass(frozen=True, slots=True, repr=False)
class ClusterToken:
    """What a token says. `ca_fingerprint` is the SHA-256 in lower-case hex, or empty when the system's CAs are to be trusted."""

    control_urls: tuple[str, ...]
    token_id: str
    secret: bytes = field(repr=False)
    ca_fingerprint: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.control_urls) <= MAX_CONTROL_URLS:
            raise ConfigError(
                f"a cluster token names 1 to {MAX_CONTROL_URLS} control URLs, not {len(self.control_urls)}"
            )
        for url in self.control_urls:
            if not is_control_url(url):
                raise ConfigError(
                    f'"{url}" cannot be a control URL', remedy="write https://HOST or https://HOST:PORT, without a path"
                )
        if _ID.fullmatch(self.token_id) is None:
            raise ConfigError(
                f'"{self.token_id}" cannot be a token id', remedy="use up to 40 lower-case letters, digits and -"
            )
        if len(self.secret) != SECRET_BYTES:
            raise ConfigError(f"a token's secret has {SECRET_BYTES} bytes, not {len(self.secret)}")
        if self.ca_fingerprint and re.fullmatch(r"[0-9a-f]{64}", self.ca_fingerprint) is None:
            raise ConfigError("a CA fingerprint is a SHA-256 of 64 lower-case hexadecimal digits")

    def __repr__(self) -> str:
        return f"ClusterToken(id={self.token_id!r}, control_urls={self.control_urls!r}, secret=<redacted>)"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a cluster token is not pickled; pass its text on purpose")

    def format(self) -> str:
        """The text that a person copies. The only way to get at it, so that no log line does by accident."""
        payload = _encoder.encode(
            _Payload(VERSION, self.control_urls, bytes.fromhex(self.ca_fingerprint), self.token_id, self.secret)
        )
        checksum = zlib.crc32(payload).to_bytes(_CHECKSUM_BYTES, "big")
        return PREFIX + base64.urlsafe_b64encode(payload + checksum).rstrip(b"=").decode("ascii")

    @classmethod
    def parse(cls, text: str) -> ClusterToken:
        """Reads a token as it was copied; white space, which terminals add where they wrap, is ignored.

        Raises `TokenUnreadable` with words for a person, never with the text itself.
        """
        compact = "".join(text.split()) if len(text) <= MAX_TEXT_LENGTH else text
        if not compact:
            raise TokenUnreadable(
                "the token is empty", remedy='create one with "edgetun token create" and copy it whole'
            )
        if not compact.startswith(PREFIX):
            raise TokenUnreadable(
                f'this is not a cluster token: it does not begin with "{PREFIX}"', remedy="copy it again"
            )
        raw = _decode_canonically(compact[len(PREFIX) :]) if len(compact) <= MAX_TEXT_LENGTH else None
        if raw is None or len(raw) <= _CHECKSUM_BYTES:
            raise _mistyped()
        payload, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
        if zlib.crc32(payload).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
            raise _mistyped()
        return cls._from_payload(payload)

    @classmethod
    def _from_payload(cls, payload: bytes) -> ClusterToken:
        try:
            read = _decoder.decode(payload)
        except (ValueError, RecursionError):
            # The checksum was right, so this was made whole, by somebody who writes tokens in another way.
            raise _foreign() from None
        if read.version != VERSION or len(read.ca_fingerprint) not in (0, FINGERPRINT_BYTES):
            raise _foreign()
        try:
            return cls(read.control_urls, read.token_id, read.secret, read.ca_fingerprint.hex())
        except ConfigError:
            raise _foreign() from None


def is_control_url(url: str) -> bool:
    """Whether the url is `https://host` or `https://host:port` and nothing more: a path or a user has no meaning here."""
    if re.fullmatch(r"https://[A-Za-z0-9.:\[\]-]{1,300}", url) is None:
        return False
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return bool(parts.hostname) and (port is None or port > 0)


def redact_tokens(text: str) -> str:
    """Replaces everything that looks like a cluster token, for text of unknown origin on its way to a log."""
    return _TOKEN_LIKE.sub(PREFIX + "<redacted>", text)


def _decode_canonically(text: str) -> bytes | None:
    """base64url without padding; None unless the text is the one and only spelling of its bytes (RFC 4648 §3.5)."""
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return raw if base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii") == text else None


def _mistyped() -> TokenUnreadable:
    return TokenUnreadable("the token is cut off or mistyped", remedy="copy it again")


def _foreign() -> TokenUnreadable:
    return TokenUnreadable(
        "the token is whole, but this edgetun cannot read its version", remedy="update edgetun on this machine"
    )

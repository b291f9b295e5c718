"""Errors as gRPC clients read them: a status of their own in place of a page (trailers-only), or in the trailers of a call that broke.

Codes are those that the protocol maps HTTP statuses to (gRPC's http-grpc-status-mapping), but for 504: a call that took too long is
DEADLINE_EXCEEDED, since UNAVAILABLE would invite a client to send again what may have been done. Pure.
"""

from __future__ import annotations

from typing import Final

from edgetun_core.errors import EdgetunError
from edgetun_core.http.message import Fields, RequestHead, ResponseHead

CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED = 1, 2, 4, 7, 8
UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 12, 13, 14, 16

_BY_STATUS: Final = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    408: DEADLINE_EXCEEDED,
    413: RESOURCE_EXHAUSTED,
    429: UNAVAILABLE,
    431: RESOURCE_EXHAUSTED,
    499: CANCELLED,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}
_MAX_MESSAGE: Final = 1000


def is_grpc(head: RequestHead | None) -> bool:
    """A gRPC call, not one of grpc-web."""
    content_type = head.get(b"content-type") if head is not None else None
    if content_type is None:
        return False
    media_type = content_type.partition(b";")[0].strip().lower()
    return media_type == b"application/grpc" or media_type.startswith(b"application/grpc+")


def build_status(error: EdgetunError, status: int) -> Fields:
    """The fields that end a call with an error whose HTTP status would be `status`."""
    text = error.message if not error.remedy else f"{error.message}; {error.remedy}"
    return (
        (b"grpc-status", b"%d" % _BY_STATUS.get(status, UNKNOWN)),
        (b"grpc-message", encode_message(text[:_MAX_MESSAGE])),
    )


def build_trailers_only(error: EdgetunError, status: int) -> ResponseHead:
    """The whole answer to a call that did not begin."""
    fields = ((b"content-type", b"application/grpc"), (b"content-length", b"0"), *build_status(error, status))
    return ResponseHead(200, fields)


def encode_message(text: str) -> bytes:
    """Percent-encoded as the protocol wants it: printable ASCII stays, but for the percent sign."""
    return b"".join(
        bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text.encode()
    )

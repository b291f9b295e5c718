"""A response on its way through, untouched but for Cache-Status. Hot path for everything that is not cacheable."""

from __future__ import annotations

from collections.abc import Callable

from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import ResponseSink
from edgetun_core.http.message import Fields, ResponseHead


class PassThrough:
    """Hands everything on to `client`; the head is what `decorate` makes of it."""

    __slots__ = ("_client", "_decorate")

    def __init__(self, client: ResponseSink, decorate: Callable[[ResponseHead], ResponseHead]) -> None:
        self._client = client
        self._decorate = decorate

    def on_interim(self, head: ResponseHead) -> None:
        self._client.on_interim(head)

    def on_head(self, head: ResponseHead, end: bool) -> None:
        self._client.on_head(self._decorate(head), end)

    def on_data(self, data: bytes, end: bool) -> None:
        self._client.on_data(data, end)

    def on_trailers(self, fields: Fields) -> None:
        self._client.on_trailers(fields)

    def on_reset(self, error: EdgetunError) -> None:
        self._client.on_reset(error)

    def pause_request(self) -> None:
        self._client.pause_request()

    def resume_request(self) -> None:
        self._client.resume_request()

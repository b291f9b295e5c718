"""What the fronts keep of request heads, so that a head that was read is not read again.

Visitors choose the heads: what comes once is not kept, and what is kept is bounded. Each memo holds at most twice `REMEMBERED_BYTES`, some
5,000 heads of a browser.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from edgetun_core.http.h1 import ParsedRequest
from edgetun_core.http.head_memo import HeadMemo
from edgetun_core.http.message import Fields
from edgetun_core.http.multiplexed import ReceivedRequest

REMEMBERED_BYTES: Final = 6 * 1024 * 1024

RequestMemo: TypeAlias = HeadMemo[bytes, ParsedRequest]
"""Requests of HTTP/1.1 by the block of bytes that they came in, one memo per front."""
FieldsMemo: TypeAlias = HeadMemo[Fields, ReceivedRequest]
"""Requests of HTTP/2 by their decoded fields, one memo per front."""
KnownRequests: TypeAlias = HeadMemo[bytes, ReceivedRequest]
"""Requests of HTTP/3 by the bytes that they came in, one memo per front."""

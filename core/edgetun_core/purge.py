"""What to take out of the caches: the order as `edgetun purge` sends it, exit nodes carry out, and a fleet passes on."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from edgetun_core.errors import ConfigError

MAX_ITEMS: Final = 1000
MAX_ITEM_BYTES: Final = 8192
MAX_ORDER_BYTES: Final = 1 << 20

PURGE_PATH: Final = "/v1/purge"
ADMIN_FILE: Final = "admin.json"
"""In a node's state folder: where its admin listener is and the secret that it asks for, readable by its owner only."""


class PurgeOrder(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is purged. `urls` are exact, with their queries; `prefixes` are URLs too and mean everything that begins so.

    Both lead to their tunnel by their host. `tags` (of `Surrogate-Key` or `Cache-Tag`) and `everything` want `tunnel`.
    """

    tunnel: str = ""
    urls: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    everything: bool = False


class PurgeReport(Struct, frozen=True, omit_defaults=True):
    """What a node did, and those that it passed the order on to."""

    purged: int = 0
    """Stored responses taken out."""
    problems: tuple[str, ...] = ()
    """What was not carried out, and why."""
    nodes: int = 1
    """Exit nodes that carried it out."""


class AdminAccess(Struct, frozen=True):
    """How to reach a node's admin listener."""

    url: str
    token: str


_decoder: Final = msgspec.json.Decoder(PurgeOrder)


def decode_order(data: bytes) -> PurgeOrder:
    """Reads an order from JSON. Raises ConfigError that says what is wrong with it."""
    try:
        order = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ConfigError(f"this is no purge order: {error}", remedy="see edgetun purge --help") from error
    check_order(order)
    return order


def check_order(order: PurgeOrder) -> None:
    """Raises ConfigError when an order says nothing, or too little."""
    items = (*order.urls, *order.prefixes, *order.tags)
    if not items and not order.everything:
        raise ConfigError("nothing to purge", remedy="give a URL, --prefix, --tag or --everything")
    if (order.tags or order.everything) and not order.tunnel:
        raise ConfigError("tags and --everything are of one tunnel", remedy="add --tunnel NAMESPACE/NAME")
    if len(items) > MAX_ITEMS or any(len(item) > MAX_ITEM_BYTES for item in items):
        raise ConfigError(f"a purge is of at most {MAX_ITEMS} URLs, prefixes and tags", remedy="purge a prefix instead")
    for url in (*order.urls, *order.prefixes):
        if "://" not in url or not url.isascii() or not url.isprintable() or " " in url:
            raise ConfigError(f'"{url}" is not a URL', remedy="write it as https://shop.example.com/page")

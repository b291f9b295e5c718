"""Policies that hold for a tunnel or for one of its routes: cache, collapse, compression, limits, header rules.

A route's block is laid over the tunnel's: what it says replaces the tunnel's value, what it leaves out stays
(`model_fields_set` tells). So the CRD must not fill in defaults below `spec.routes`, and a rule that needs both blocks stands
on `TunnelSpec`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from edgetun_core.api.model import ApiModel
from edgetun_core.api.names import FieldName, FieldValue, MediaRange, QueryName
from edgetun_core.api.quantities import Bytes, Duration, Rate
from edgetun_core.quantities import quoted
from edgetun_core.snapshot import CompressionRule

Status = Annotated[int, Field(ge=200, le=599)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]


class CachePolicy(ApiModel):
    """How responses are stored at the edge and answered from there."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "key",
            "tags",
            "surrogateKeys",
            "purge",
            "vary",
            "varyBy",
            "disk",
            "budget",
            "negativeTtl",
            "bypass",
            "targetedFields",
        }
    )

    mode: Literal["respect", "override", "disabled"] = Field(
        default="respect",
        description=(
            "`respect` stores what RFC 9111 allows by the origin's own fields; `override` gives storable responses the "
            "freshness lifetime `ttl`, whatever the origin stated (never `no-store` or `private`, unless `ignoreNoStore`); "
            "`disabled` stores nothing."
        ),
    )
    ttl: Duration = Field(
        default=0.0, le=31_536_000, description="Freshness lifetime with `mode: override`.", examples=["1s"]
    )
    statuses: list[Status] = Field(
        default_factory=list,
        max_length=32,
        description="Statuses that `override` applies to; empty: those that are cacheable by default (RFC 9110 §15.1).",
        examples=[[200, 404]],
    )
    allow_authorization: bool = Field(
        default=False,
        description="Store and share answers to requests with `Authorization`. You vouch that they do not depend on it.",
    )
    allow_cookies: bool = Field(
        default=False,
        description="Store and share answers to requests with `Cookie`. You vouch that they do not depend on it.",
    )
    allow_set_cookie: bool = Field(
        default=False, description="Store responses that carry `Set-Cookie`, without that field."
    )
    ignore_no_store: bool = Field(
        default=False, description="With `mode: override`: store also what the origin marks `no-store` or `private`."
    )
    ignore_query: list[QueryName] = Field(
        default_factory=list,
        max_length=64,
        description="Query parameters left out of the cache key; a `*` at the end stands for any rest.",
        examples=[["utm_*", "gclid"]],
    )
    max_object_bytes: Bytes = Field(
        default=8 * 1024 * 1024, ge=1, le=1 << 40, description="Larger responses are passed on and not stored."
    )
    stale_while_revalidate: Duration = Field(
        default=0.0,
        le=31_536_000,
        description="How long after its freshness a response may be served while one request in the background renews it (RFC 5861).",
    )
    stale_if_error: Duration = Field(
        default=0.0,
        le=31_536_000,
        description="How long after its freshness a response may be served when the origin fails or no agent is connected (RFC 5861).",
    )
    show_key: bool = Field(
        default=False, description="`Cache-Status` says under which key a response is stored (its `key` parameter)."
    )
    heuristic_max: Duration = Field(
        default=0.0,
        le=31_536_000,
        description=(
            "Where the origin states no freshness: a tenth of the time since `Last-Modified`, at most this (RFC 9111 §4.2.2). "
            "0: nothing is guessed, and the origin is asked each time whether what is stored still holds."
        ),
        examples=["1h"],
    )


class CollapsePolicy(ApiModel):
    """How identical requests in flight become one."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"methods", "allowAuthorization", "allowCookies", "maxFollowers", "scope"}
    )

    enabled: bool = Field(
        default=True, description="Whether identical GET and HEAD requests in flight share one origin request."
    )
    patience: Duration = Field(
        default=30.0,
        gt=0,
        le=600,
        description="How long a visitor waits for the shared answer's head before a request of its own is made.",
    )
    not_collapsible: Duration = Field(
        default=120.0,
        le=86_400,
        description="How long requests for a key whose answer was not storable pass through uncollapsed.",
    )


class LimitPolicy(ApiModel):
    """Bounds. What is left out, or 0, is not bounded."""

    reserved: ClassVar[frozenset[str]] = frozenset(
        {
            "ratePerTunnel",
            "rateKey",
            "rates",
            "bandwidth",
            "maxConnections",
            "maxConcurrentPerVisitor",
            "queue",
            "maxResponseBodyBytes",
        }
    )

    max_request_body_bytes: Bytes = Field(
        default=0, description="Larger request bodies are refused with 413.", examples=["10MB"]
    )
    max_concurrent_requests: Count = Field(
        default=0,
        description="Requests forwarded or waiting at one time on one exit node; one more gets 503.",
        examples=[200],
    )
    rate_per_visitor: Rate = Field(
        default=0.0,
        description="Requests per visitor address (IPv6: per /64) and exit node; beyond it 429 with `Retry-After`.",
        examples=["100/s"],
    )
    burst: Count = Field(
        default=0,
        description="Requests a visitor may make at once before the rate applies; 0: one second's worth.",
        examples=[50],
    )


def _unlike_in_case_only(value: object) -> object:
    """Two spellings of one field name would silently become one, since names do not differ by case."""
    if isinstance(value, dict):
        seen: dict[str, str] = {}
        for name in value:
            if isinstance(name, str) and seen.setdefault(name.lower(), name) != name:
                raise ValueError(f"{quoted(name)} is the same field as {quoted(seen[name.lower()])}; write it once")
    return value


FieldMap = Annotated[dict[FieldName, FieldValue], BeforeValidator(_unlike_in_case_only), Field(max_length=64)]


class HeaderChanges(ApiModel):
    """Fields to remove, then to set, then to add. Names do not differ by case."""

    reserved: ClassVar[frozenset[str]] = frozenset({"rename", "replace", "setIfMissing", "when"})

    remove: list[FieldName] = Field(
        default_factory=list, max_length=64, description="Fields that are taken out.", examples=[["X-Powered-By"]]
    )
    set: FieldMap = Field(
        default_factory=dict,
        description="Fields that have this value afterwards, whatever they were.",
        examples=[{"X-Stage": "dev"}],
    )
    add: FieldMap = Field(
        default_factory=dict,
        description="Field lines that are added beside those that are there.",
        examples=[{"Link": "</app.css>; rel=preload"}],
    )


class HeaderPolicy(ApiModel):
    """Changes to header fields, on the way to the origin and back. Framing, hop-by-hop fields and Host cannot be changed."""

    request: HeaderChanges = Field(default_factory=HeaderChanges, description="Changes to what the origin gets.")
    response: HeaderChanges = Field(default_factory=HeaderChanges, description="Changes to what visitors get.")


_COMPRESSION = CompressionRule()


class CompressionPolicy(ApiModel):
    """Which responses the edge compresses for visitors who accept it (`Accept-Encoding`).

    Never: what is compressed already, what the origin marks `no-transform`, partial content, and what says something of its
    very bytes (`Content-Digest` and its kind).
    """

    reserved: ClassVar[frozenset[str]] = frozenset(
        {"level", "levels", "maxBytes", "maxSize", "minSize", "dictionary", "dictionaries", "algorithms", "encodings"}
    )

    enabled: bool = Field(default=True, description="Whether the edge compresses.")
    codings: list[Literal["zstd", "br", "gzip"]] = Field(
        default_factory=lambda: list(_COMPRESSION.codings),  # type: ignore[arg-type]
        min_length=1,
        max_length=3,
        description="Codings that are offered; the order decides among those that a visitor likes equally.",
        examples=[["br", "gzip"]],
    )
    types: list[MediaRange] = Field(
        default_factory=lambda: list(_COMPRESSION.types),
        min_length=1,
        max_length=64,
        description=(
            "Media types that are compressed: `type/subtype`, `type/*` or `type/*+suffix`. `text/event-stream` only when it is "
            "listed in full: every open stream then holds an encoder, and every event leaves compressed at once."
        ),
        examples=[["text/*", "application/json"]],
    )
    min_bytes: Bytes = Field(default=1024, description="Smaller bodies are left as they are.", examples=["256"])
    allow_cookies: bool = Field(
        default=False,
        description=(
            "Compress answers to requests with `Cookie` that are not marked public. You vouch that they do not show a secret next "
            "to something a visitor can be made to send (BREACH)."
        ),
    )
    allow_authorization: bool = Field(default=False, description="The same for requests with `Authorization`.")


def overlay(base: Any, over: Any) -> Any:
    """A tunnel's policy with what a route says laid over it, block by block."""
    changes: dict[str, Any] = {}
    for name in over.model_fields_set:
        value = getattr(over, name)
        changes[name] = overlay(getattr(base, name), value) if isinstance(value, ApiModel) else value
    return base.model_copy(update=changes) if changes else base

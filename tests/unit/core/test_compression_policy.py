"""spec.compression: what it says by default, what routes lay over it, and what is told of mistakes."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgetun_core.api.tunnel import Tunnel
from edgetun_core.compile import tunnel_rule
from edgetun_core.snapshot import CompressionRule, RouteRule


def tunnel(compression: object = None, routes: object = ()) -> Tunnel:
    spec = {"hostnames": ["a.test"], "origin": {"url": "http://localhost:3000"}, "routes": list(routes)}  # type: ignore[call-overload]
    if compression is not None:
        spec["compression"] = compression
    return Tunnel.model_validate(
        {"apiVersion": "edgetun.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": "t"}, "spec": spec}
    )


def test_what_is_left_out_is_the_rule_of_an_exit_node_that_was_told_nothing():
    (route,) = tunnel_rule(tunnel()).routes
    assert route == RouteRule()
    assert route.compression.enabled


def test_a_route_changes_only_what_it_says():
    rules = tunnel_rule(
        tunnel(
            {"codings": ["gzip", "br"], "minBytes": "2Ki", "types": ["Text/HTML"]},
            [
                {"path": {"prefix": "/off"}, "compression": {"enabled": False}},
                {"path": {"prefix": "/cookies"}, "compression": {"allowCookies": True}},
            ],
        )
    ).routes
    by_path = {route.path: route.compression for route in rules}
    base = CompressionRule(codings=("gzip", "br"), min_bytes=2048, types=("text/html",))
    assert by_path["/"] == base
    assert by_path["/off"] == CompressionRule(
        enabled=False, codings=base.codings, min_bytes=base.min_bytes, types=base.types
    )
    assert by_path["/cookies"] == CompressionRule(
        allow_cookies=True, codings=base.codings, min_bytes=base.min_bytes, types=base.types
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"types": ["html"]}, '"html" is not a media type; write one such as text/css'),
        ({"types": ["*/*"]}, "is not a media type"),
        ({"types": ["text/*; charset=utf-8"]}, "is not a media type"),
        ({"types": []}, "at least 1 item"),
        ({"codings": ["deflate"]}, "'zstd', 'br' or 'gzip'"),
        ({"codings": []}, "at least 1 item"),
        ({"level": 9}, "level"),
        ({"minBytes": "lots"}, "minBytes"),
    ],
)
def test_mistakes_are_told(said, told):
    with pytest.raises(ValidationError) as caught:
        tunnel(said)
    assert told in str(caught.value)

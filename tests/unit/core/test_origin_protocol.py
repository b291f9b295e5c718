"""spec.origin.protocol: which go with which urls, what mistakes are told, and what people may type instead."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgetun_agent.origin.address import fit_protocol, read_typed_origin
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.compile import tunnel_rule
from edgetun_core.errors import ConfigError


def protocol_of(origin: dict[str, str]) -> str:
    tunnel = Tunnel.model_validate(
        {
            "apiVersion": "edgetun.dev/v1alpha1",
            "kind": "Tunnel",
            "metadata": {"name": "t"},
            "spec": {"hostnames": ["a.test"], "origin": origin},
        }
    )
    return tunnel_rule(tunnel).origins[0].protocol


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("http://localhost:1", "h2c"),
        ("unix:///s", "h2c"),
        ("https://localhost:1", "h2"),
        ("https://localhost:1", "auto"),
        ("http://localhost:1", "http1"),
        ("https://localhost:1", "http1"),
    ],
)
def test_what_goes_together(url, protocol):
    assert protocol_of({"url": url, "protocol": protocol}) == protocol


def test_http1_is_the_default():
    assert protocol_of({"url": "https://localhost:1"}) == "http1"


@pytest.mark.parametrize(
    ("url", "protocol", "told"),
    [
        ("https://localhost:1", "h2c", "write h2, or an http:// url"),
        ("http://localhost:1", "h2", "write h2c, http1, or an https:// url"),
        ("unix:///s", "auto", "write h2c, http1, or an https:// url"),
        ("http://localhost:1", "grpc", "'http1', 'h2c', 'h2' or 'auto'"),
        ("h2c://localhost:1", "h2c", "write http://localhost:1 and, beside it, protocol: h2c"),
        ("grpcs://localhost:1", "h2", "write https://localhost:1 and, beside it, protocol: h2"),
    ],
)
def test_what_does_not_is_told_with_what_to_write(url, protocol, told):
    with pytest.raises(ValidationError) as caught:
        protocol_of({"url": url, "protocol": protocol})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "url", "protocol"),
    [
        ("3000", "http://localhost:3000", ""),
        ("box:80", "http://box:80", ""),
        ("h2c://localhost:50051", "http://localhost:50051", "h2c"),
        ("h2://box:443", "https://box:443", "h2"),
        ("https://box", "https://box", ""),
    ],
)
def test_what_people_type(typed, url, protocol):
    assert read_typed_origin(typed) == (url, protocol)


def test_what_they_mistype():
    with pytest.raises(ConfigError, match="no host"):
        read_typed_origin("h2c://")
    with pytest.raises(ConfigError, match="not an http"):
        read_typed_origin("grpc://localhost:1")


def test_an_origin_given_to_the_agent_keeps_http2_as_the_url_allows():
    assert fit_protocol("h2c", "https://a") == "h2"
    assert fit_protocol("h2", "http://a") == "h2c"
    assert fit_protocol("auto", "http://a") == "http1"
    assert fit_protocol("http1", "http://a") == "http1"
    assert fit_protocol("h2c", "unix:///s") == "h2c"

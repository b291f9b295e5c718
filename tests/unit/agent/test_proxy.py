"""Which addresses are asked of a proxy, and what is no proxy."""

from __future__ import annotations

import pytest

from edgetun_agent.proxy import Proxy
from edgetun_core.errors import ConfigError


@pytest.mark.parametrize(
    ("entry", "host", "port", "is_direct"),
    [
        ("*", "anything.example", 443, True),
        ("example.com", "example.com", 443, True),
        ("example.com", "a.b.example.com", 443, True),
        (".example.com", "a.example.com", 443, True),
        ("*.example.com", "a.example.com", 443, True),
        ("EXAMPLE.com", "Example.COM.", 443, True),
        ("example.com", "badexample.com", 443, False),
        ("example.com:7443", "example.com", 7443, True),
        ("example.com:7443", "example.com", 443, False),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "ten.example", 443, False),
        ("192.0.2.1", "192.0.2.1", 443, True),
        ("192.0.2.1:80", "192.0.2.1", 443, False),
        ("2001:db8::1", "2001:db8::1", 443, True),
        ("[2001:db8::1]:443", "2001:db8::1", 443, True),
        ("2001:db8::/32", "2001:db8::2", 443, True),
        ("not/anetwork", "10.0.0.1", 443, False),
        ("", "example.com", 443, False),
    ],
)
def test_no_proxy_names_hosts_networks_and_ports(entry: str, host: str, port: int, is_direct: bool) -> None:
    assert Proxy("http://proxy.example:3128", [entry]).leads_to(host, port) is not is_direct


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_this_machine_is_never_asked_of_a_proxy(host: str) -> None:
    assert not Proxy("http://proxy.example:3128").leads_to(host, 443)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("proxy.example", "http://proxy.example:3128"),
        ("HTTP://proxy.example:8080/", "http://proxy.example:8080"),
        ("socks5h://me:pa%3Ass@proxy.example", "socks5://proxy.example:1080"),
        ("socks5://[2001:db8::1]:9", "socks5://[2001:db8::1]:9"),
    ],
)
def test_a_proxy_is_shown_without_user_and_password(url: str, shown: str) -> None:
    assert str(Proxy(url)) == repr(Proxy(url)) == shown


@pytest.mark.parametrize(
    "url",
    [
        "ftp://secret@proxy",
        "https://proxy",
        "http://",
        "http://a:b:c@",
        "http://p:99999",
        "http://p/path",
        "http://p?q",
    ],
)
def test_what_is_no_proxy_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        Proxy(url)
    assert "write http://" in str(error.value)
    assert "secret" not in str(error.value)

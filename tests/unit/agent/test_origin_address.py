import pytest

from edgetun_agent.origin.address import choose_authority, parse_origin_url
from edgetun_agent.origin.health import HealthState, OriginHealth, decide_probe_delay
from edgetun_core.errors import ConfigError
from edgetun_core.snapshot import OriginRule


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "prefix"),
    [
        ("http://localhost:3000", "localhost", 3000, b"localhost:3000", b""),
        ("http://localhost", "localhost", 80, b"localhost", b""),
        ("http://localhost:80/", "localhost", 80, b"localhost", b""),
        ("https://app.internal/base/", "app.internal", 443, b"app.internal", b"/base"),
        ("https://[::1]:8443/a/b", "::1", 8443, b"[::1]:8443", b"/a/b"),
        ("http://App.Example:8080", "app.example", 8080, b"app.example:8080", b""),
        ("http://bücher.test", "xn--bcher-kva.test", 80, b"xn--bcher-kva.test", b""),
    ],
)
def test_a_url_is_taken_apart(url: str, host: str, port: int, authority: bytes, prefix: bytes) -> None:
    address = parse_origin_url(url)
    assert (address.host, address.port, address.authority, address.prefix) == (host, port, authority, prefix)
    assert address.is_tls == url.startswith("https")


def test_a_unix_url_is_a_path() -> None:
    assert parse_origin_url("unix:///run/my%20app.sock").unix_path == "/run/my app.sock"


@pytest.mark.parametrize(
    "url",
    [
        "localhost:3000",
        "ftp://localhost",
        "http://",
        "http://localhost:70000",
        "http://localhost:x",
        "http://user@localhost",
        "http://localhost/?a=b",
        "unix://relative.sock",
        "unix://host/path",
        "http://localhost/ü",
    ],
)
def test_what_is_no_origin_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_origin_url(url)
    assert f'"{url}"' in str(refused.value)
    assert refused.value.remedy


@pytest.mark.parametrize(
    ("choice", "authority"), [("preserve", None), ("origin", b"localhost:3000"), ("app.test", b"app.test")]
)
def test_the_host_field_is_kept_or_fixed(choice: str, authority: bytes | None) -> None:
    rule = OriginRule("web", "http://localhost:3000", host_header=choice)
    assert choose_authority(rule, parse_origin_url(rule.url)) == authority


def test_health_is_news_only_when_it_changes() -> None:
    health = OriginHealth()
    assert health.unreachable("refused", 1.0)
    assert not health.unreachable("refused again", 2.0)
    assert (health.state, health.since, health.last_error) == (HealthState.DOWN, 1.0, "refused again")
    assert health.answered(3.0)
    assert not health.answered(4.0)
    health.failed("broke off", 5.0)
    assert (health.state, health.since, health.last_error) == (HealthState.UP, 3.0, "broke off")


def test_a_down_origin_is_looked_at_more_often() -> None:
    assert decide_probe_delay(HealthState.UP, 10.0, 0.5) == 10.0
    assert decide_probe_delay(HealthState.DOWN, 10.0, 0.5) == 2.0
    assert decide_probe_delay(HealthState.DOWN, 1.0, 0.5) == 1.0

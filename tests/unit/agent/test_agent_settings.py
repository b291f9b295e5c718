"""What the command line of the agent turns into, before anything is connected."""

import stat
from pathlib import Path

import pytest

from edgetun_agent.identity import read_agent_id
from edgetun_agent.main import build_request, build_tunnels
from edgetun_agent.observe import RecentRequests, RequestLine
from edgetun_agent.origin.address import read_origin
from edgetun_agent.settings import AgentSettings
from edgetun_agent.tell import describe, new_lines
from edgetun_core.enrollment import AdHocTunnel
from edgetun_core.errors import ConfigError, UpstreamUnreachable
from edgetun_core.http.message import RequestHead
from edgetun_core.settings import load_settings
from edgetun_core.snapshot import OriginRule, RouteRule, TunnelRule


def settings(*argv: str) -> AgentSettings:
    return load_settings(AgentSettings, ("--cluster-token", "t", *argv), {})


def test_an_origin_alone_asks_for_a_tunnel_of_its_own() -> None:
    request = build_request(settings("--origin", "3000", "--host", "shop", "--cache", "1s"), "laptop")
    assert request.adhoc == AdHocTunnel("http://localhost:3000", "shop", cache_ttl_s=1.0)
    assert request.want == ()


def test_tunnels_that_are_named_are_asked_for() -> None:
    request = build_request(settings("--tunnel", "team-a/shop", "--tunnel", "team-b/*", "--origin", "3000"), "laptop")
    assert request.want == ("team-a/shop", "team-b/*")
    assert request.adhoc is None


@pytest.mark.parametrize("argv", [("--host", "shop"), ("--host", "shop", "--tunnel", "a/b", "--origin", "3000")])
def test_a_host_without_a_tunnel_of_its_own_is_refused(argv: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="give --origin"):
        build_request(settings(*argv), "laptop")


def test_origin_flags_win_over_the_manifest_on_this_machine() -> None:
    rule = TunnelRule(
        "team-a/shop", ("shop.test",), (OriginRule("web", "http://app:80", max_connections=7),), (RouteRule(),)
    )
    [kept] = build_tunnels([rule], settings())
    assert kept == rule
    [changed] = build_tunnels([rule], settings("--origin", "https://localhost:3443", "--origin-insecure"))
    assert changed.origins == (OriginRule("web", "https://localhost:3443", tls_verify=False, max_connections=7),)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("3000", "http://localhost:3000"),
        ("127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("https://localhost:3000", "https://localhost:3000"),
        ("unix:///run/app.sock", "unix:///run/app.sock"),
    ],
)
def test_an_origin_may_be_typed_short(text: str, url: str) -> None:
    assert read_origin(text) == url


def test_the_agents_name_is_made_once_and_kept(tmp_path: Path) -> None:
    first = read_agent_id("", tmp_path / "state")
    assert read_agent_id("", tmp_path / "state") == first
    assert read_agent_id("laptop-1", tmp_path / "state") == "laptop-1"
    with pytest.raises(ConfigError, match="is not a name"):
        read_agent_id("no spaces", tmp_path)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_written_costs_only_the_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert read_agent_id("", tmp_path / "file" / "state")
    assert "will differ next time" in caplog.text


def line(number: int, error: UpstreamUnreachable | None = None) -> RequestLine:
    head = RequestHead(b"GET", b"https", b"shop.test", b"/a?key=secret", ())
    return RequestLine(0.0, "team-a/shop", head, 200, 0.0123, 1500 * number, error)


def test_new_requests_are_told_once_and_no_more_than_so_many() -> None:
    recent = RecentRequests(5)
    recent.add(line(0))
    seen = recent.seen
    for number in range(1, 9):
        recent.add(line(number))
    lines, left_out = new_lines(recent, seen, 3)
    assert [found.bytes_received // 1500 for found in lines] == [6, 7, 8]
    assert left_out == 5
    assert new_lines(recent, recent.seen, 3) == ([], 0)


def test_a_request_is_told_without_what_its_query_holds() -> None:
    assert describe(line(1)) == "GET /a?key=… 200 12 ms 1.5 kB"
    assert describe(line(1, UpstreamUnreachable("refused"))) == "GET /a?key=… failed after 12 ms: refused"

"""What stands behind `edgetun token` and `edgetun host`."""

from __future__ import annotations

import dataclasses

import pytest

from edgetun.tokens import (
    ServerFacts,
    create_token,
    list_claims,
    list_tokens,
    release_host,
    remember_server,
    revoke_token,
)
from edgetun_control.store import Claim
from edgetun_control.stores.state_folder import StateFolder
from edgetun_core.credentials import ClusterToken, hash_secret
from edgetun_core.enrollment import AdHocTunnel
from edgetun_core.errors import ConfigError
from edgetun_core.pki import DevelopmentCA

URL = "https://edge.example.com:7443"


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "state"
    remember_server(folder, ServerFacts((URL,), domain="tunnel.test"))
    return folder


def test_a_token_says_where_the_server_is_and_which_ca_it_has(state):
    record, text = create_token(state, label="laptop")
    token = ClusterToken.parse(text)
    assert token.control_urls == (URL,)
    assert token.ca_fingerprint == DevelopmentCA(state / "ca").fingerprint
    assert record.secret_hash == hash_secret(token.token_id, token.secret)


def test_a_server_with_a_public_certificate_pins_nothing(tmp_path):
    remember_server(tmp_path, ServerFacts((URL,), has_public_certificate=True))
    assert ClusterToken.parse(create_token(tmp_path)[1]).ca_fingerprint == ""


def test_without_a_server_the_url_must_be_given(tmp_path):
    with pytest.raises(ConfigError, match='start "edgetun serve" once, or give its address with --url'):
        create_token(tmp_path / "state")
    assert ClusterToken.parse(create_token(tmp_path / "state", control_urls=[URL])[1]).control_urls == (URL,)


def test_the_list_shows_what_a_token_may_and_never_its_secret_or_hash(state):
    record, text = create_token(state, label="ci", tunnels=["team-a/*"], expires="30d", now=1000.0)
    other, _ = create_token(state, now=2000.0)
    revoke_token(state, other.id, now=2500.0)
    lines, problems = list_tokens(state, now=3000.0)
    assert not problems
    assert [(line.id, line.label, line.state) for line in lines] == [
        (record.id, "ci", "live"),
        (other.id, "", "revoked"),
    ]
    assert lines[0].expires == 1000.0 + 30 * 86400
    shown = str([dataclasses.asdict(line) for line in lines])
    assert text[12:] not in shown
    assert record.secret_hash not in shown


@pytest.mark.parametrize(("text", "seconds"), [("30d", 2_592_000), ("2w", 1_209_600), ("12h", 43_200), ("90m", 5_400)])
def test_an_end_is_a_duration(state, text, seconds):
    assert create_token(state, expires=text, now=5.0)[0].expires == 5.0 + seconds


@pytest.mark.parametrize("text", ["soon", "-1d", "0d", "0s", "30"])
def test_an_end_that_is_none_is_refused_in_words(state, text):
    with pytest.raises(ConfigError, match="write for example 30d"):
        create_token(state, expires=text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tunnels": ["shop"]}, "has no namespace; write default/shop"),
        ({"tunnels": [""]}, "is not a pattern"),
        ({"tunnels": ["a b/c"]}, "is not a pattern"),
        ({"hostnames": ["http://x"]}, "--host"),
        ({"hostnames": ["a.*.example.com"]}, "--host"),
        ({"label": "a\nb"}, "printable"),
        ({"control_urls": ["http://x"]}, "write https://HOST"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(state, options, message):
    with pytest.raises(ConfigError, match=message):
        create_token(state, **options)
    assert list_tokens(state)[0] == []


def test_a_single_label_is_the_name_under_the_servers_domain(state):
    assert create_token(state, hostnames=["Shop", "*.Example.com", "*"])[0].hostnames == (
        "shop.tunnel.test",
        "*.example.com",
        "*",
    )


def test_a_token_is_revoked_by_id_by_its_beginning_or_by_name(state):
    for which in (lambda record: record.id, lambda record: record.id[:5], lambda record: "ci"):
        record, _ = create_token(state, label="ci", now=1.0)
        assert revoke_token(state, which(record), now=2.0).revoked == 2.0
        assert revoke_token(state, record.id, now=3.0).revoked == 2.0
        revoke_token(state, record.id, delete=True)


def test_a_name_that_fits_several_tokens_revokes_none(state):
    for _ in range(2):
        create_token(state, label="ci")
    with pytest.raises(ConfigError, match="fits 2 tokens"):
        revoke_token(state, "ci")
    assert {line.state for line in list_tokens(state)[0]} == {"live"}


def test_nothing_is_revoked_by_an_empty_or_unknown_name_nor_by_the_token_itself(state):
    _, text = create_token(state)
    for which in ("", "nope"):
        with pytest.raises(ConfigError, match="there is no token"):
            revoke_token(state, which)
    with pytest.raises(ConfigError, match="does not belong on a command line") as caught:
        revoke_token(state, text)
    assert text[12:] not in str(caught.value)


def test_a_folder_that_is_no_servers_is_told_so_and_not_made(tmp_path):
    with pytest.raises(ConfigError, match="give the server's one with --state"):
        list_tokens(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_claimed_name_is_listed_and_released(state):
    folder = StateFolder(state)
    record, _ = create_token(state)
    folder.claim(Claim("web.tunnel.test", record.id, "laptop", AdHocTunnel("http://localhost:1"), 1.0), 10)
    assert list_tokens(state)[0][0].claimed == ("web.tunnel.test",)
    with pytest.raises(ConfigError, match="is not claimed"):
        release_host(state, "../tokens/" + record.id)
    release_host(state, "Web.tunnel.test.")
    assert list_claims(state) == []

"""A cluster token: what is copied is what was made, and what was copied badly is told so."""

from __future__ import annotations

import base64
import logging
import pickle
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.credentials import ClusterToken, TokenRecord, TokenUnreadable, hash_secret, redact_tokens
from edgetun_core.credentials.cluster_token import MAX_TEXT_LENGTH, PREFIX, is_control_url
from edgetun_core.credentials.token_record import TokenState, hostname_matches, tunnel_matches
from edgetun_core.errors import ConfigError

TOKEN = ClusterToken(
    control_urls=("https://edge.example.com:7443", "https://192.0.2.1"),
    token_id="k3v9xq2m",
    secret=bytes(range(32)),
    ca_fingerprint="ab" * 32,
)

tokens = st.builds(
    ClusterToken,
    control_urls=st.lists(
        st.from_regex(r"https://[a-z0-9]{1,20}(\.[a-z]{2,8}){0,2}(:[1-9][0-9]{0,3})?", fullmatch=True),
        min_size=1,
        max_size=8,
    ).map(tuple),
    token_id=st.from_regex(r"[a-z0-9]{1,40}", fullmatch=True),
    secret=st.binary(min_size=32, max_size=32),
    ca_fingerprint=st.one_of(st.just(""), st.binary(min_size=32, max_size=32).map(bytes.hex)),
)


@given(tokens)
def test_what_is_formatted_is_parsed_back(token):
    text = token.format()
    assert text.startswith(PREFIX)
    assert ClusterToken.parse(text) == token


@given(tokens, st.data())
def test_one_wrong_character_anywhere_is_told_as_mistyped(token, data):
    text = token.format()
    at = data.draw(st.integers(len(PREFIX), len(text) - 1))
    other = data.draw(st.characters(exclude_characters=text[at], exclude_categories=["Z", "Cc"]))
    with pytest.raises(TokenUnreadable, match="mistyped; copy it again"):
        ClusterToken.parse(text[:at] + other + text[at + 1 :])


@given(tokens, st.data())
def test_a_token_cut_off_anywhere_is_told_as_cut_off(token, data):
    text = token.format()
    with pytest.raises(TokenUnreadable, match=r"cut off or mistyped|does not begin|empty"):
        ClusterToken.parse(text[: data.draw(st.integers(0, len(text) - 1))])


@given(tokens, st.data())
def test_two_swapped_characters_are_told_as_mistyped(token, data):
    text = token.format()
    at = data.draw(st.integers(len(PREFIX), len(text) - 2))
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if swapped != text:
        with pytest.raises(TokenUnreadable, match="mistyped"):
            ClusterToken.parse(swapped)


def test_white_space_that_a_terminal_put_in_is_ignored():
    text = TOKEN.format()
    assert ClusterToken.parse(f"  {text[:80]}\r\n{text[80:]}\n") == TOKEN


def test_every_base64_spelling_but_one_is_refused():
    # The last character carries unused bits when the length is no multiple of four: other spellings of the same bytes.
    text = next(
        formatted
        for urls in (("https://a",), ("https://ab",), ("https://abc",))
        if (len(formatted := ClusterToken(urls, "id", bytes(32)).format()) - len(PREFIX)) % 4
    )
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = [text[:-1] + character for character in alphabet if character != text[-1]]
    same_bytes = [o for o in others if _bytes(o) == _bytes(text)]
    assert same_bytes
    for other in same_bytes:
        with pytest.raises(TokenUnreadable, match="mistyped"):
            ClusterToken.parse(other)


def _bytes(text):
    body = text[len(PREFIX) :]
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


@pytest.mark.parametrize("text", ["", "  \n", "hunter2", "Bearer edgetun_x", "EDGETUN_abc", "edgetun_", "edgetun_AAAA"])
def test_something_else_altogether_is_told_so_without_repeating_it(text):
    with pytest.raises(TokenUnreadable) as caught:
        ClusterToken.parse(text)
    assert "hunter2" not in str(caught.value)


def test_a_token_of_a_later_version_asks_for_an_update():
    payload = msgspec.msgpack.encode([2, ["https://a"], b"", "id", bytes(32), "something new"])
    with pytest.raises(TokenUnreadable, match="update edgetun"):
        ClusterToken.parse(_sealed(payload))


@pytest.mark.parametrize(
    "fields",
    [
        [1, [], b"", "id", bytes(32)],
        [1, ["http://plain.example"], b"", "id", bytes(32)],
        [1, ["https://a/path"], b"", "id", bytes(32)],
        [1, ["https://a"], b"short", "id", bytes(32)],
        [1, ["https://a"], b"", "../etc/passwd", bytes(32)],
        [1, ["https://a"], b"", "id", b"short"],
        [1, "https://a", b"", "id", bytes(32)],
        {"version": 1},
    ],
)
def test_a_whole_token_with_impossible_content_is_refused(fields):
    with pytest.raises(TokenUnreadable):
        ClusterToken.parse(_sealed(msgspec.msgpack.encode(fields)))


def _sealed(payload):
    raw = payload + zlib.crc32(payload).to_bytes(4, "big")
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_huge_text_is_refused_before_it_is_looked_at():
    with pytest.raises(TokenUnreadable):
        ClusterToken.parse(PREFIX + "A" * (MAX_TEXT_LENGTH + 1))
    with pytest.raises(TokenUnreadable):
        ClusterToken.parse(" " * 10_000_000)


def test_a_token_cannot_be_made_for_a_plain_http_url():
    with pytest.raises(ConfigError, match="write https://"):
        ClusterToken(("http://a",), "id", bytes(32))


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("https://a", True),
        ("https://[2001:db8::1]:7443", True),
        ("https://a:0", False),
        ("https://a:99999", False),
        ("https://user@a", False),
        ("https://a/", False),
        ("https://a?x", False),
        ("https://", False),
        ("https://a\n", False),
    ],
)
def test_a_control_url_is_a_scheme_a_host_and_a_port(url, is_one):
    assert is_control_url(url) is is_one


def test_neither_repr_nor_str_nor_a_log_line_nor_a_pickle_holds_the_secret(caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("edgetun.test").info("enrolling with %s %r %s", TOKEN, TOKEN, [TOKEN])
    shown = caplog.text + repr(TOKEN) + str(TOKEN) + f"{TOKEN}"
    for secret in (TOKEN.format(), TOKEN.format()[-40:], TOKEN.secret.hex(), repr(TOKEN.secret)):
        assert secret not in shown
    with pytest.raises(TypeError):
        pickle.dumps(TOKEN)


def test_tokens_in_text_of_unknown_origin_are_blacked_out():
    text = TOKEN.format()
    shown = redact_tokens(f"Authorization: Bearer {text}\r\nX: {text}!")
    assert text[20:] not in shown
    assert shown.count("edgetun_<redacted>") == 2


def test_a_record_knows_its_secret_and_keeps_only_a_hash_of_it():
    record = TokenRecord("id", hash_secret("id", TOKEN.secret))
    assert record.has_secret(TOKEN.secret)
    assert not record.has_secret(bytes(32))
    assert TOKEN.secret not in msgspec.json.encode(record)
    assert hash_secret("other", TOKEN.secret) != record.secret_hash


def test_a_token_ends_at_its_end_and_a_revoked_one_at_once():
    record = TokenRecord("id", "", expires=100)
    assert record.state(99.9) is TokenState.LIVE
    assert record.state(100) is TokenState.EXPIRED
    assert msgspec.structs.replace(record, revoked=1).state(2) is TokenState.REVOKED
    assert TokenRecord("id", "").state(1e12) is TokenState.LIVE


@pytest.mark.parametrize(
    ("pattern", "tunnel", "matches"),
    [
        ("team-a/shop", "team-a/shop", True),
        ("team-a/shop", "team-a/shop2", False),
        ("team-a/*", "team-a/shop", True),
        ("team-a/*", "team-ab/shop", False),
        ("*", "team-a/shop", True),
        ("*/shop", "team-a/shop", True),
        ("a*a", "a", False),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("te?m/shop", "team/shop", False),
        ("[t]eam/shop", "team/shop", False),
    ],
)
def test_in_tunnel_patterns_only_the_star_is_special(pattern, tunnel, matches):
    assert tunnel_matches(pattern, tunnel) is matches


@pytest.mark.parametrize(
    ("pattern", "hostname", "matches"),
    [
        ("shop.example.com", "Shop.Example.com", True),
        ("*.example.com", "shop.example.com", True),
        ("*.example.com", "a.shop.example.com", False),
        ("*.example.com", "example.com", False),
        ("*.example.com", "shop.example.com.evil.net", False),
        ("*", "anything.at.all", True),
        ("*.example.com", "*.example.com", True),
        ("shop.example.com", "*.example.com", False),
    ],
)
def test_a_hostname_wildcard_stands_for_exactly_one_label(pattern, hostname, matches):
    assert hostname_matches(pattern, hostname) is matches

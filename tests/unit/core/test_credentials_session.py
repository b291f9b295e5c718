"""A session credential: any exit node checks it offline, and says what is wrong with it."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.credentials import (
    CLOCK_LEEWAY_S,
    CREDENTIAL_LIFETIME_S,
    CUT_OFF_GRACE_S,
    ClockSkewed,
    CredentialExpired,
    CredentialInvalid,
    CredentialRevoked,
    CredentialVerifier,
    SigningKey,
)
from edgetun_core.errors import AuthError, ConfigError
from edgetun_core.snapshot import CredentialKey, Snapshot

KEY = SigningKey("k1", bytes(range(32)))
NOW = 1_800_000_000.0


def sign(key=KEY, now=NOW, **claims):
    return key.sign(
        **{"agent_id": "laptop", "token_id": "t1", "services": ("team-a/shop", "team-a/api"), "now": now} | claims
    )


@pytest.fixture
def verifier():
    return CredentialVerifier([KEY.public])


def test_a_credential_is_read_back_as_it_was_signed(verifier):
    claims = verifier.verify(sign(), NOW)
    assert (claims.agent_id, claims.token_id, claims.services) == ("laptop", "t1", ("team-a/shop", "team-a/api"))
    assert claims.expires == NOW + CREDENTIAL_LIFETIME_S


def test_it_counts_for_an_hour_and_the_leeway_and_no_longer(verifier):
    text = sign()
    verifier.verify(text, NOW + CREDENTIAL_LIFETIME_S + CLOCK_LEEWAY_S)
    with pytest.raises(CredentialExpired, match="ended 61 s ago"):
        verifier.verify(text, NOW + CREDENTIAL_LIFETIME_S + CLOCK_LEEWAY_S + 1)


def test_one_that_ended_while_its_exit_node_was_cut_off_counts_longer_and_not_for_ever(verifier):
    text, ends = sign(), NOW + CREDENTIAL_LIFETIME_S
    verifier.verify(text, ends + CUT_OFF_GRACE_S, cut_off_since=ends - 1)
    with pytest.raises(CredentialExpired):
        verifier.verify(text, ends + CLOCK_LEEWAY_S + CUT_OFF_GRACE_S + 1, cut_off_since=ends - 1)
    with pytest.raises(CredentialExpired):  # it had ended before: it could have been renewed
        verifier.verify(text, ends + 1000, cut_off_since=ends + 500)


def test_one_that_was_cut_short_since_its_token_ends_is_not_prolonged(verifier):
    text = sign(lifetime_s=CREDENTIAL_LIFETIME_S / 2)
    with pytest.raises(CredentialExpired):
        verifier.verify(text, NOW + CREDENTIAL_LIFETIME_S, cut_off_since=NOW)


def test_one_of_a_revoked_token_counts_no_longer_whoever_is_cut_off():
    verifier = CredentialVerifier([KEY.public], ["t1"])
    with pytest.raises(CredentialRevoked):
        verifier.verify(sign(), NOW + CREDENTIAL_LIFETIME_S + 1000, cut_off_since=NOW)


def test_one_from_the_future_names_the_skew(verifier):
    text = sign(now=NOW + 300)
    with pytest.raises(ClockSkewed, match=r"300 s in the future.*clocks"):
        verifier.verify(text, NOW)
    verifier.verify(text, NOW + 300 - CLOCK_LEEWAY_S)


def test_another_key_with_the_same_id_is_not_enough():
    forger = SigningKey("k1", bytes(32))
    with pytest.raises(CredentialInvalid, match="signature is wrong"):
        CredentialVerifier([KEY.public]).verify(sign(forger), NOW)


def test_an_unknown_key_is_told_apart_from_a_wrong_signature(verifier):
    with pytest.raises(CredentialInvalid, match="does not know"):
        verifier.verify(sign(SigningKey("k2", bytes(32))), NOW)


def test_a_broken_public_key_in_the_snapshot_is_a_refusal_and_no_crash():
    with pytest.raises(CredentialInvalid):
        CredentialVerifier([CredentialKey("k1", b"short")]).verify(sign(), NOW)


@given(st.data())
def test_no_altered_byte_of_the_claims_or_the_signature_passes(data):
    verifier = CredentialVerifier([KEY.public])
    body, signature = (bytearray(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in sign().split("."))
    part = data.draw(st.sampled_from([body, signature]))
    at = data.draw(st.integers(0, len(part) - 1))
    part[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CredentialInvalid):
        verifier.verify(".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in (body, signature)), NOW)


@given(st.text(max_size=300))
def test_any_other_text_is_refused_in_words(text):
    with pytest.raises(CredentialInvalid):
        CredentialVerifier([KEY.public]).verify(text, NOW)


def test_a_revoked_token_ends_a_credential_that_was_verified_before(verifier):
    text = sign()
    verifier.verify(text, NOW)
    verifier.update(Snapshot(2, "default", "here", credential_keys=(KEY.public,), revoked_tokens=("t1",)))
    with pytest.raises(CredentialRevoked, match="t1 was revoked"):
        verifier.verify(text, NOW)
    assert verifier.verify(sign(token_id="t2"), NOW).token_id == "t2"


def test_a_key_that_left_the_snapshot_takes_its_credentials_along(verifier):
    text = sign()
    verifier.verify(text, NOW)
    verifier.update(Snapshot(2, "default", "here", credential_keys=(SigningKey("k2", bytes(32)).public,)))
    with pytest.raises(CredentialInvalid):
        verifier.verify(text, NOW)


def test_what_is_verified_once_is_remembered_and_what_is_refused_is_not(verifier, monkeypatch):
    text = sign()
    verifier.verify(text, NOW)
    for bad in ("x", sign(SigningKey("k2", bytes(32)))):
        with pytest.raises(AuthError):
            verifier.verify(bad, NOW)
    assert len(verifier._memo) == 1
    monkeypatch.setattr(verifier, "_keys", ())  # were the signature checked again, no key would be found
    verifier.verify(text, NOW)


def test_a_refusal_never_repeats_the_credential(verifier):
    text = sign(SigningKey("k2", bytes(32)))
    with pytest.raises(CredentialInvalid) as caught:
        verifier.verify(text, NOW)
    assert text[:20] not in str(caught.value)


def test_more_tunnels_than_a_credential_can_name_are_refused_in_words():
    with pytest.raises(ConfigError, match="asks for 2000 tunnels"):
        sign(services=[f"team/{number}" for number in range(2000)])


def test_the_private_half_does_not_show():
    assert repr(KEY) == "SigningKey('k1')"

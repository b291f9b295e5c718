"""The state folder: files appear whole, keep their secrets, and one bad file spoils no other."""

from __future__ import annotations

import os
import stat

import msgspec
import pytest

from edgetun_control.store import KEY_PREPARATION_S, Claim, StoreState, decide_ended_tokens, decide_signing_key
from edgetun_control.stores import files
from edgetun_control.stores.state_folder import KEY_LIFETIME_S, OLD_KEY_KEPT_S, StateFolder
from edgetun_core.credentials import SigningKey, TokenRecord
from edgetun_core.enrollment import AdHocTunnel
from edgetun_core.errors import ConfigError, LimitExceeded


@pytest.fixture
def folder(tmp_path):
    made = StateFolder(tmp_path / "state")
    made.create()
    return made


def claim(hostname="web.test", token="t1", url="http://localhost:1", created=1.0):
    return Claim(hostname, token, "laptop", AdHocTunnel(url), created)


def test_nobody_else_can_read_what_is_in_it(folder):
    folder.put_token(TokenRecord("t1", "hash"))
    folder.rotate_signing_keys(1.0)
    folder.claim(claim(), 10)
    for path in (folder.path, *folder.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_what_is_put_is_read_back(folder):
    record = TokenRecord("t1", "hash", label="ci", tunnels=("a/*",), hostnames=("*.test",), created=1.5, expires=9.0)
    folder.put_token(record)
    problems = []
    assert folder.read_tokens(problems) == {"t1": record}
    assert not problems
    assert folder.delete_token("t1")
    assert not folder.delete_token("t1")
    assert folder.read_tokens(problems) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"id": 5}', b'{"id": "\xff"}', b"[" * 60_000, b"x" * 100_000, b'{"id":"t9","secret_hash":""}'],
)
def test_a_bad_file_is_a_problem_of_its_own_and_of_no_other(folder, content):
    folder.put_token(TokenRecord("t1", "hash"))
    (folder.path / "tokens" / "bad.json").write_bytes(content)
    problems = []
    assert list(folder.read_tokens(problems)) == ["t1"]
    assert [problem.source for problem in problems] == ["tokens/bad.json"]


def test_a_crash_while_writing_leaves_the_old_content(folder, monkeypatch):
    folder.put_token(TokenRecord("t1", "old"))

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(ConfigError, match="No space left on device"):
        folder.put_token(TokenRecord("t1", "new"))
    assert folder.read_tokens([])["t1"].secret_hash == "old"
    assert [name for name in os.listdir(folder.path / "tokens") if name != "t1.json"] == []


def test_every_change_changes_the_marks_also_within_one_tick_of_the_clock(folder):
    seen = {folder.marks()}
    for number in range(20):
        folder.put_token(TokenRecord("t1", f"{number % 10}"))
        seen.add(folder.marks())
    assert len(seen) == 21


def test_the_first_token_to_claim_a_name_keeps_it(folder):
    assert folder.claim(claim(), 10).token_id == "t1"
    assert folder.claim(claim(token="t2"), 10).token_id == "t1"
    moved = folder.claim(claim(url="http://localhost:2", created=5.0), 10)
    assert (moved.tunnel.origin_url, moved.created) == ("http://localhost:2", 1.0)
    assert folder.read_claims([])["web.test"] == moved
    assert folder.release("web.test")
    assert folder.claim(claim(token="t2"), 10).token_id == "t2"


def test_claiming_again_what_one_has_writes_nothing(folder):
    folder.claim(claim(), 10)
    before = folder.marks()
    folder.claim(claim(created=99.0), 10)
    assert folder.marks() == before


def test_a_token_holds_so_many_names_and_no_more(folder):
    for number in range(3):
        folder.claim(claim(f"web-{number}.test"), 3)
    with pytest.raises(LimitExceeded, match="holds 3 hostnames"):
        folder.claim(claim("web-3.test"), 3)
    folder.claim(claim("web-0.test", url="http://localhost:9"), 3)
    folder.claim(claim("web-3.test", token="t2"), 3)


def test_a_claim_that_cannot_be_read_is_given_to_nobody(folder):
    (folder.path / "claimed" / "web.test.json").write_bytes(b"{")
    with pytest.raises(ConfigError, match="cannot be read; mend or remove it"):
        folder.claim(claim(), 10)


def test_keys_are_made_renewed_and_dropped_only_when_no_credential_can_need_them(folder):
    def ids():
        return [key.key_id for key in folder.read_signing_keys([])]

    assert folder.rotate_signing_keys(0.0)
    assert not folder.rotate_signing_keys(KEY_LIFETIME_S - 1)
    [first] = ids()
    renewed_at = KEY_LIFETIME_S + 1
    assert folder.rotate_signing_keys(renewed_at)
    assert ids()[0] == first
    assert len(ids()) == 2
    assert not folder.rotate_signing_keys(renewed_at + OLD_KEY_KEPT_S - 1)
    assert folder.rotate_signing_keys(renewed_at + OLD_KEY_KEPT_S + 1)
    assert len(ids()) == 1
    assert first not in ids()


def test_a_key_file_with_a_short_seed_is_a_problem_and_no_crash(folder):
    (folder.path / "keys" / "k.json").write_bytes(b'{"key_id":"k","seed":"AAAA","created":1}')
    problems = []
    assert folder.read_signing_keys(problems) == ()
    assert "32 bytes" in problems[0].message


def test_a_new_key_signs_only_after_exit_nodes_have_had_time_to_learn_it():
    old, new = SigningKey("old", bytes(32), 0.0), SigningKey("new", bytes([1] * 32), 10_000.0)
    assert decide_signing_key((old, new), 10_000.0 + KEY_PREPARATION_S - 1) is old
    assert decide_signing_key((old, new), 10_000.0 + KEY_PREPARATION_S) is new
    assert decide_signing_key((new,), 10_000.0) is new
    assert decide_signing_key((), 0.0) is None


def test_ended_tokens_are_told_for_a_month_and_live_ones_never():
    records = [
        TokenRecord("live", ""),
        TokenRecord("ends-later", "", expires=2000.0),
        TokenRecord("expired", "", expires=900.0),
        TokenRecord("revoked", "", expires=9000.0, revoked=950.0),
    ]
    state = StoreState(tokens={record.id: record for record in records}, ended_tokens={"deleted": 990.0})
    assert decide_ended_tokens(state, 1000.0) == ("deleted", "expired", "revoked")
    assert decide_ended_tokens(state, 1000.0 + 40 * 86400) == ()


def test_two_servers_cannot_hold_one_folder_and_a_command_line_can_write_meanwhile(folder):
    with folder.serving():
        with pytest.raises(ConfigError, match="another edgetun server"), folder.serving():
            pass
        with folder.locked():
            folder.put_token(TokenRecord("t1", ""))
    with folder.serving():
        pass


def test_a_folder_that_cannot_be_made_is_told_with_its_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"state folder: .*file.*; check who owns it"):
        StateFolder(tmp_path / "file" / "state").create()


def test_records_hold_a_hash_and_nothing_that_opens_a_door(folder):
    folder.put_token(TokenRecord("t1", "hash"))
    assert set(msgspec.json.decode((folder.path / "tokens" / "t1.json").read_bytes())) <= set(
        TokenRecord.__struct_fields__
    )

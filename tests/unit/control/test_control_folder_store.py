"""The folder store: notices what others write, survives what they break, and forgets no token that was deleted."""

from __future__ import annotations

import asyncio

import pytest

from edgetun_control.store import Claim
from edgetun_control.stores import folder as folder_store
from edgetun_control.stores.folder import FolderStore
from edgetun_control.stores.state_folder import StateFolder
from edgetun_core.credentials import TokenRecord
from edgetun_core.enrollment import AdHocTunnel
from edgetun_core.errors import ConfigError


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
async def store(tmp_path):
    running = FolderStore(tmp_path / "state", clock=Clock(), look_every_s=0.01)
    await running.start()
    yield running
    await running.close()


async def until(holds):
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_what_another_process_writes_is_noticed_and_told_once(store):
    told = []
    stop = store.watch(lambda: told.append(store.state.tokens))
    StateFolder(store.folder.path).put_token(TokenRecord("t1", "hash"))
    await until(lambda: told)
    assert told == [{"t1": TokenRecord("t1", "hash")}]
    await store.refresh()
    assert len(told) == 1
    stop()
    store.folder.put_token(TokenRecord("t2", "hash"))
    await store.refresh()
    assert len(told) == 1


async def test_a_manifest_is_noticed_when_it_comes_changes_and_goes(store):
    file = store.folder.path / "tunnels" / "shop.yaml"
    text = "apiVersion: edgetun.dev/v1alpha1\nkind: Tunnel\nmetadata: {name: %s}\nspec: {hostnames: [a.test], origin: {url: http://a}}\n"
    for name in ("one", "two"):
        file.write_text(text % name)
        await store.refresh()
        assert [resource.id for resource in store.state.manifests.resources] == [f"default/{name}"]
    file.unlink()
    await store.refresh()
    assert store.state.manifests.resources == ()
    assert store.state.manifests.problems == ()


async def test_a_half_saved_token_file_ends_no_session_and_a_deleted_one_does(store):
    store.folder.put_token(TokenRecord("t1", "hash"))
    await store.refresh()
    file = store.folder.path / "tokens" / "t1.json"
    file.write_bytes(b"{")
    await store.refresh()
    assert store.state.tokens == {"t1": TokenRecord("t1", "hash")}
    assert store.state.ended_tokens == {}
    assert store.state.problems
    file.unlink()
    await store.refresh()
    assert store.state.tokens == {}
    assert store.state.ended_tokens == {"t1": Clock.now}


async def test_a_full_disk_keeps_no_deletion_from_being_told(store, monkeypatch, caplog):
    store.folder.put_token(TokenRecord("t1", "hash"))
    await store.refresh()

    def full(*_):
        raise ConfigError("state folder: no space left")

    monkeypatch.setattr(store.folder, "write_known_tokens", full)
    store.folder.delete_token("t1")
    await store.refresh()
    assert "t1" in store.state.ended_tokens
    assert "would count again after a restart" in caplog.text
    monkeypatch.undo()
    store._housekeep()
    assert "t1" in store.folder.read_known_tokens().ended


async def test_a_token_put_back_from_a_backup_counts_again(store):
    store.folder.put_token(TokenRecord("t1", "hash"))
    await store.refresh()
    store.folder.delete_token("t1")
    await store.refresh()
    store.folder.put_token(TokenRecord("t1", "hash"))
    await store.refresh()
    assert store.state.ended_tokens == {}


async def test_a_claim_is_in_the_state_when_it_returns(store):
    claim = Claim("web.test", "t1", "laptop", AdHocTunnel("http://localhost:1"), 1.0)
    assert await store.claim(claim, 10) == claim
    assert store.state.claims == {"web.test": claim}


async def test_use_is_written_when_it_closes_and_not_per_use(tmp_path):
    store = FolderStore(tmp_path / "state", clock=Clock())
    await store.start()
    store.folder.put_token(TokenRecord("t1", "hash"))
    await store.refresh()
    for at in range(100):
        store.note_used("t1", float(at))
    assert store.folder.read_used_tokens() == {}
    await store.close()
    assert store.folder.read_used_tokens() == {"t1": 99.0}


async def test_a_folder_that_vanishes_is_said_once_and_what_was_read_is_served_on(store, caplog, monkeypatch):
    store.folder.put_token(TokenRecord("t1", "hash"))
    await store.refresh()
    failures = []

    def gone():
        failures.append(1)
        raise ConfigError("state folder: Input/output error")

    monkeypatch.setattr(store.folder, "marks", gone)
    await until(lambda: len(failures) > 3)
    assert store.state.tokens
    assert caplog.text.count("Input/output error; serving on") == 1


async def test_a_first_start_makes_a_signing_key_and_the_next_one_keeps_it(tmp_path):
    keys = []
    for _ in range(2):
        store = FolderStore(tmp_path / "state", clock=Clock())
        await store.start()
        keys.append(store.state.signing_keys)
        await store.close()
        await store.close()
    assert keys[0] == keys[1]
    assert len(keys[0]) == 1


async def test_housekeeping_happens_by_itself(store, monkeypatch):
    monkeypatch.setattr(folder_store, "HOUSEKEEPING_EVERY_S", 60.0)
    store.folder.put_token(TokenRecord("t1", "hash"))
    await store.refresh()
    store.note_used("t1", 5.0)
    store._clock.now += 61.0
    await until(lambda: store.folder.read_used_tokens() == {"t1": 5.0})

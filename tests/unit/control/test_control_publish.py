"""The publisher: a snapshot for every change, none without one, and revocations before everything else."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from edgetun_control.compile_state import Compiled, compile_state
from edgetun_control.publish import Publisher
from edgetun_control.store import Claim, StoreState
from edgetun_core.api.load import load_text
from edgetun_core.credentials import SigningKey, TokenRecord
from edgetun_core.enrollment import AdHocTunnel

MANIFESTS = b"""
apiVersion: edgetun.dev/v1alpha1
kind: Tunnel
metadata: {name: shop, namespace: team-a}
spec: {hostnames: [shop.test], origin: {url: http://localhost:3000}}
"""


class MemoryStore:
    """A store that is nothing but its state."""

    def __init__(self, state: StoreState) -> None:
        self.state = state
        self.watchers = []

    def watch(self, changed):
        self.watchers.append(changed)
        return lambda: self.watchers.remove(changed)

    def become(self, **changes):
        self.state = replace(self.state, **changes)
        for changed in self.watchers:
            changed()


def claim(hostname="web.test", token="t1", url="http://localhost:1"):
    return Claim(hostname, token, "laptop", AdHocTunnel(url), 1.0)


def state(**changes):
    key = SigningKey("k1", bytes(32), 0.0)
    return StoreState(
        **{
            "tokens": {"t1": TokenRecord("t1", "")},
            "manifests": load_text(MANIFESTS, "shop.yaml"),
            "signing_keys": (key,),
        }
        | changes
    )


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
async def running():
    store, clock, seen = MemoryStore(state()), Clock(), []
    publisher = Publisher(store, clock=clock)
    await publisher.start()
    publisher.subscribe(seen.append)
    yield store, clock, publisher, seen
    await publisher.close()
    assert not store.watchers


async def test_the_first_snapshot_holds_what_the_store_holds(running):
    store, _, publisher, seen = running
    assert [tunnel.id for tunnel in seen[-1].tunnels] == ["team-a/shop"]
    assert seen[-1].credential_keys == (store.state.signing_keys[0].public,)
    assert publisher.manifest_tunnels == {"team-a/shop": ("shop.test",)}


async def test_the_version_grows_with_every_change_and_with_nothing_else(running):
    store, _, publisher, seen = running
    before = seen[-1].version
    store.become(claims={"web.test": claim()})
    await publisher.settled()
    assert seen[-1].version == before + 1
    store.become(claims={"web.test": claim()})
    await publisher.settled()
    assert seen[-1].version == before + 1
    assert len(seen) == 2


async def test_a_revocation_is_published_before_anything_is_compiled(running):
    store, clock, _, seen = running
    store.become(tokens={"t1": TokenRecord("t1", "", revoked=clock.now)})
    assert seen[-1].revoked_tokens == ("t1",)  # in the very same call


async def test_a_compilation_that_crashes_keeps_the_tunnels_and_holds_no_revocation_back(caplog):
    crash = False

    def compiler(*args) -> Compiled:
        if crash:
            raise RuntimeError("a bug")
        return compile_state(*args)

    store, clock, seen = MemoryStore(state()), Clock(), []
    publisher = Publisher(store, clock=clock, compiler=compiler)
    await publisher.start()
    publisher.subscribe(seen.append)
    crash = True
    store.become(tokens={"t1": TokenRecord("t1", "", revoked=clock.now)})
    await publisher.settled()
    assert seen[-1].revoked_tokens == ("t1",)
    assert [tunnel.id for tunnel in seen[-1].tunnels] == ["team-a/shop"]
    assert "a bug" in caplog.text
    crash = False
    store.become(claims={})
    await publisher.settled()
    await publisher.close()


async def test_a_token_that_ends_by_itself_is_told_at_its_end(running):
    store, clock, publisher, seen = running
    store.become(tokens={"t1": TokenRecord("t1", "", expires=clock.now + 0.2)}, claims={"web.test": claim()})
    await publisher.settled()
    assert seen[-1].revoked_tokens == ()
    assert len(seen[-1].tunnels) == 2
    clock.now += 0.2
    async with asyncio.timeout(5):
        while seen[-1].revoked_tokens != ("t1",) or len(seen[-1].tunnels) != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_thousand_changes_at_once_are_not_a_thousand_compilations():
    compiled = []

    def compiler(*args) -> Compiled:
        compiled.append(args)
        return compile_state(*args)

    store = MemoryStore(state())
    publisher = Publisher(store, clock=Clock(), compiler=compiler)
    await publisher.start()
    for number in range(1000):
        store.become(claims={"web.test": claim(url=f"http://localhost:{number + 1}")})
    await publisher.settled()
    assert publisher.snapshot.tunnels[-1].origins[0].url == "http://localhost:1000"
    assert len(compiled) < 5
    await publisher.close()


async def test_a_restarted_server_counts_on_above_what_it_counted_before():
    clock = Clock()
    first = Publisher(MemoryStore(state()), clock=clock)
    await first.start()
    await first.close()
    clock.now += 0.01
    second = Publisher(MemoryStore(state()), clock=clock)
    await second.start()
    assert second.snapshot.version > first.snapshot.version
    await second.close()


def test_a_manifest_wins_over_a_claim_and_the_loser_is_told_why():
    compiled = compile_state(state(claims={"shop.test": claim("shop.test")}), "default", "here", 1.0)
    assert [tunnel.id for tunnel in compiled.tunnels] == ["team-a/shop"]
    assert "held by Tunnel team-a/shop" in compiled.problem_by_tunnel["token-t1/shop.test"]


@pytest.mark.parametrize(
    "token",
    [None, TokenRecord("t1", "", revoked=0.5), TokenRecord("t1", "", expires=0.5)],
    ids=["deleted", "revoked", "expired"],
)
def test_claims_of_a_token_that_ended_serve_nothing(token):
    tokens = {"t1": token} if token is not None else {}
    compiled = compile_state(state(tokens=tokens, claims={"web.test": claim()}), "default", "here", 1.0)
    assert [tunnel.id for tunnel in compiled.tunnels] == ["team-a/shop"]


def test_what_is_wrong_in_a_manifest_is_told_with_file_and_line_and_spoils_no_other():
    text = (
        MANIFESTS
        + b"---\napiVersion: edgetun.dev/v1alpha1\nkind: Tunnel\nmetadata: {name: bad}\nspec: {hostnames: [x.test]}\n"
    )
    compiled = compile_state(state(manifests=load_text(text, "two.yaml")), "default", "here", 1.0)
    assert [tunnel.id for tunnel in compiled.tunnels] == ["team-a/shop"]
    assert any(line.startswith("two.yaml:") for line in compiled.problems)


def test_an_edited_claim_that_no_agent_could_have_made_is_a_problem_and_no_crash():
    compiled = compile_state(state(claims={"web.test": claim(url="nonsense")}), "default", "here", 1.0)
    assert any("claimed/web.test.json" in line for line in compiled.problems)


def test_the_cache_time_an_agent_asked_for_is_in_its_rule():
    cached = Claim("web.test", "t1", "laptop", AdHocTunnel("http://localhost:1", cache_ttl_s=1.5), 1.0)
    compiled = compile_state(state(claims={"web.test": cached}), "default", "here", 1.0)
    [rule] = [tunnel for tunnel in compiled.tunnels if tunnel.id == "token-t1/web.test"]
    assert (rule.routes[0].cache.mode, rule.routes[0].cache.ttl_s) == ("override", 1.5)

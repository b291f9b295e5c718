"""Looking for copies at other exit nodes: one call for many keys, one that has it is enough, and an end to the waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec
import pytest

from edgetun_core.errors import NotFound
from edgetun_core.http.exchange import Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_exitnode.cache.store import Store
from edgetun_exitnode.mesh import siblings
from edgetun_exitnode.mesh.calls import Fresh, Wanted
from edgetun_exitnode.mesh.siblings import MOST_KEY_BYTES, MOST_KEYS, Siblings


class Node:
    """A peer that has fresh copies of some keys; `None`: one that is older and knows no such call; silent: one that never answers."""

    def __init__(self, has: dict[bytes, float] | None, *, is_silent: bool = False) -> None:
        self.has, self.is_silent = has, is_silent
        self.calls: list[tuple[bytes, ...]] = []

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        return _Asked(self, client)


class _Asked:
    def __init__(self, node: Node, client: ResponseSink) -> None:
        self.node, self.client = node, client

    def send_data(self, data: bytes, end: bool) -> None:
        keys = msgspec.json.decode(data, type=Wanted).keys
        self.node.calls.append(keys)
        if self.node.is_silent:
            return
        if self.node.has is None:
            self.client.on_reset(NotFound("exit nodes have no such call"))
            return
        body = msgspec.json.encode(Fresh(tuple(self.node.has.get(key, 0.0) for key in keys)))
        self.client.on_head(ResponseHead(200, ()), False)
        self.client.on_data(body, True)

    def send_trailers(self, fields: Fields) -> None: ...
    def reset(self, error: object) -> None: ...
    def pause_response(self) -> None: ...
    def resume_response(self) -> None: ...


class Peers:
    clock = staticmethod(lambda: 0.0)

    def __init__(self, **nodes: Node | None) -> None:
        self.nodes = nodes
        self.tasks: list[asyncio.Task[None]] = []

    def nodes_to_ask(self, holders: Iterable[str]) -> list[str]:
        return [*holders, *self.nodes]

    async def reach(self, node: str) -> Handler | None:
        return self.nodes[node]

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.create_task(work, name=name))


async def found(peers: Peers, *keys: bytes) -> list[Handler | None]:
    finding = Siblings(peers, Store(1024))
    futures = [asyncio.get_running_loop().create_future() for _ in keys]
    for key, future in zip(keys, futures, strict=True):
        finding.find(key, (), future.set_result)
    async with asyncio.timeout(10):
        return list(await asyncio.gather(*futures))


async def test_what_is_wanted_at_once_is_one_call_to_each_and_the_one_that_has_it_is_named() -> None:
    has, has_not, old = Node({b"a": 3.0, b"b": 0.0}), Node({}), Node(None)
    answers = await found(Peers(has=has, has_not=has_not, old=old, unreached=None), b"a", b"b", b"a")
    assert answers == [has, None, has]
    assert has.calls == [(b"a", b"b")]
    assert has_not.calls == old.calls == [(b"b",)], "what was found is not asked for any more"


async def test_a_node_that_does_not_answer_holds_up_nobody_whom_another_can_help_and_the_others_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(siblings, "ROUND_S", 0.05)
    has = Node({b"a": 1.0})
    assert await found(Peers(silent=Node({}, is_silent=True), has=has), b"a", b"b") == [has, None]


async def test_nobody_to_ask_and_too_much_to_ask_for_are_answered_at_once() -> None:
    assert await found(Peers(), b"a") == [None]
    peers = Peers(has=Node({}))
    finding, answers = Siblings(peers, Store(1024)), list[Handler | None]()
    finding.find(b"x" * (MOST_KEY_BYTES + 1), (), answers.append)
    assert answers == [None]
    for number in range(MOST_KEYS + 5):
        finding.find(b"%d" % number, (), answers.append)
    assert len(answers) == 6
    last = asyncio.get_running_loop().create_future()
    finding.find(b"0", (), last.set_result)
    async with asyncio.timeout(10):
        assert await last is None
    await asyncio.gather(*peers.tasks)
    assert answers == [None] * (MOST_KEYS + 6)

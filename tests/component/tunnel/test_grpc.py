"""gRPC end to end: a real client over HTTP/2 and TLS, the exit node, a session, the agent, a real server (h2c)."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
import pytest

from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.enrollment import Endpoint
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.snapshot import CompressionRule, LimitRule, OriginRule, RouteRule, Snapshot, TunnelRule
from edgetun_core.wire.hello import Hello
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.front.context import FrontLimits
from edgetun_exitnode.node import ExitNode, NodeLimits
from support.grpc_echo import Echo, EchoClient, echo_server
from support.visitors import until
from support.whole import IN_PROCESS, KEY, TUNNEL, credential

HOST = "rpc.test"
DEADLINE_S = 20.0
T = TypeVar("T")


class Tunnel:
    """What a test holds: `client` blocks, so its calls go through `call`."""

    def __init__(self, node: ExitNode, agent: Agent | None, channel: Any, origins: Origins) -> None:
        self.origins = origins
        self.node = node
        self.agent = agent
        self.client = EchoClient(channel)

    async def call(self, function: Callable[..., T], *arguments: Any, **more: Any) -> T:
        return await asyncio.to_thread(function, *arguments, **more)


class _Local:
    def __init__(self, origins: Origins) -> None:
        self.open = origins.open
        self.in_flight = 0


@asynccontextmanager
async def tunnel(
    folder: Path, engine: str, port: int, limits: NodeLimits | None = None, **origin: Any
) -> AsyncIterator[Tunnel]:
    rule = OriginRule("main", **{"url": f"http://127.0.0.1:{port}", "protocol": "h2c", **origin})
    routes = (
        RouteRule("/limited", limits=LimitRule(max_request_body_bytes=10)),
        RouteRule(compression=CompressionRule()),
    )
    obey = Snapshot(
        1, "pool", "here", (TunnelRule(TUNNEL, (HOST,), (rule,), routes, reconnect_grace_s=0.5),), (KEY.public,)
    )
    ca = DevelopmentCA(folder / "ca")
    identity = ca.identity([HOST, "127.0.0.1"])
    (folder / "cert.pem").write_bytes(identity.cert_pem)
    (folder / "key.pem").write_bytes(identity.key_pem)
    node = ExitNode("n1", limits=limits)
    node.apply(obey)
    origins = Origins(obey.tunnels, probe=False)
    agent: Agent | None = None
    channel: Any = None
    try:
        store = CertificateStore([(folder / "cert.pem", folder / "key.pem")], default_for_unknown=True)
        front = await node.listen_https("127.0.0.1", 0, store)
        if engine == IN_PROCESS:
            node.registry.add(_Local(origins), [TUNNEL])
        else:
            quic = engine if engine != "tls" else "none"
            tls_port, quic_port = await node.listen_tunnel("127.0.0.1", 0, identity, quic_engine=quic)
            agent = Agent(
                endpoints=[Endpoint("127.0.0.1", tls_port, quic_port, node="n1")],
                trust=Trust(ca.ca_pem),
                hello=lambda session_id: Hello(
                    agent_id="laptop", session_id=session_id, credential=credential(), services=(TUNNEL,)
                ),
                handler=origins,
                transport="tls" if engine == "tls" else "quic",
                sessions=1,
            )
            agent.start()
            await until(lambda: len(node.acceptor.runners) == 1, DEADLINE_S)
        channel = grpc.secure_channel(
            f"127.0.0.1:{front.port}",
            grpc.ssl_channel_credentials(ca.ca_pem),
            options=[
                ("grpc.ssl_target_name_override", HOST),
                ("grpc.default_authority", HOST),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
            ],
        )
        yield Tunnel(node, agent, channel, origins)
    finally:
        if channel is not None:
            await asyncio.to_thread(channel.close)
        if agent is not None:
            await agent.close()
        await node.close()
        await origins.close()


@pytest.fixture
def echo() -> Iterator[tuple[Echo, int]]:
    with echo_server() as running:
        yield running


@pytest.fixture(params=["tls", "qh3", IN_PROCESS])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_every_kind_of_call_with_metadata_and_status(tmp_path: Path, engine: str, echo: tuple[Echo, int]) -> None:
    seen, port = echo
    async with tunnel(tmp_path, engine, port) as stands:
        client, call = stands.client, stands.call

        reply, info = await call(
            client.unary("Unary").with_call, b"hello", metadata=(("x-mine", "7"),), timeout=DEADLINE_S
        )
        assert reply == b"HELLO"
        assert dict(info.initial_metadata())["x-early"] == "1"
        assert {key: value for key, value in info.trailing_metadata() if key.startswith("x-late")} == {
            "x-late": "2",
            "x-late-bin": b"\x00\xff",
        }
        assert seen.metadata["x-mine"] == "7"
        assert seen.metadata["x-forwarded-host"] == HOST
        assert seen.time_remaining_s is not None
        assert DEADLINE_S - 10 < seen.time_remaining_s <= DEADLINE_S

        with pytest.raises(grpc.RpcError) as failed:
            await call(client.unary("Fail"), b"", timeout=DEADLINE_S)
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert failed.value.details() == "not like this: ä%"
        assert ("x-why", "because") in failed.value.trailing_metadata()

        with pytest.raises(grpc.RpcError) as unknown:
            await call(client.unary("Nowhere"), b"", timeout=DEADLINE_S)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED

        assert await call(lambda: list(client.down("Count")(b"100", timeout=DEADLINE_S))) == [
            b"%d" % number for number in range(100)
        ]
        messages = [bytes(10_000)] * 50
        assert (
            await call(lambda: client.up("Gather")(iter(messages), timeout=DEADLINE_S)) == b"50 messages, 500000 bytes"
        )
        assert await call(_chat, client) == [b"you said a", b"you said b", b"you said c", b"bye"]


def _chat(client: EchoClient) -> list[bytes]:
    """Says the next thing only when the last was answered: whatever is held back anywhere hangs."""
    said: queue.Queue[bytes | None] = queue.Queue()
    answers = client.both("Chat")(iter(said.get, None), timeout=DEADLINE_S)
    heard = []
    for word in (b"a", b"b", b"c"):
        said.put(word)
        heard.append(next(answers))
    said.put(None)
    return heard + list(answers)


async def test_large_streams_hold_up_nobody(tmp_path: Path, echo: tuple[Echo, int]) -> None:
    _, port = echo
    async with tunnel(tmp_path, "tls", port) as stands:
        client, call = stands.client, stands.call
        slow = client.down("Blob")(b"64", timeout=DEADLINE_S)
        first = await call(next, slow)
        assert len(first) == 256 * 1024
        assert await call(client.unary("Unary"), b"x", timeout=DEADLINE_S) == b"X"
        rest = await call(lambda: sum(len(message) for message in slow))
        assert rest == 63 * 256 * 1024
        up = await call(lambda: client.up("Gather")(iter([bytes(256 * 1024)] * 32), timeout=DEADLINE_S))
        assert up == b"32 messages, %d bytes" % (32 * 256 * 1024)


async def test_a_deadline_ends_the_call_at_both_ends(tmp_path: Path, engine: str, echo: tuple[Echo, int]) -> None:
    seen, port = echo
    async with tunnel(tmp_path, engine, port) as stands:
        with pytest.raises(grpc.RpcError) as late:
            await stands.call(lambda: list(stands.client.down("Wait")(b"", timeout=2.0)))
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert seen.time_remaining_s is not None
        assert seen.time_remaining_s <= 2.0
        assert await stands.call(seen.cancelled.wait, DEADLINE_S)


async def test_a_cancelled_call_is_cancelled_at_the_server(tmp_path: Path, engine: str, echo: tuple[Echo, int]) -> None:
    """Without a deadline of its own: only the reset can tell."""
    seen, port = echo
    async with tunnel(tmp_path, engine, port) as stands:
        call = stands.client.down("Wait")(b"hello")
        assert await stands.call(next, call) == b"hello"
        assert not seen.cancelled.is_set()
        call.cancel()
        assert await stands.call(seen.cancelled.wait, DEADLINE_S)
        assert await stands.call(stands.client.unary("Unary"), b"x", timeout=DEADLINE_S) == b"X"


async def test_what_the_tunnel_cannot_do_is_a_status_with_a_message(tmp_path: Path) -> None:
    with echo_server() as (seen, port):
        async with tunnel(tmp_path, "tls", port) as stands:
            client, call = stands.client, stands.call
            assert await call(client.unary("Unary"), b"x", timeout=DEADLINE_S) == b"X"

            # The session ends in the middle of a stream: what came stays, and a status tells the rest.
            waiting = client.down("Wait")(b"hello", timeout=DEADLINE_S)
            assert await call(next, waiting) == b"hello"
            assert stands.agent is not None
            await stands.agent.close()
            stands.agent = None
            with pytest.raises(grpc.RpcError) as lost:
                await call(next, waiting)
            assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "Stream removed" not in lost.value.details()

            # Nobody serves the tunnel any more.
            with pytest.raises(grpc.RpcError) as offline:
                await call(client.unary("Unary"), b"x", timeout=DEADLINE_S)
            assert offline.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "no agent connected" in offline.value.details()
        assert await asyncio.to_thread(seen.cancelled.wait, DEADLINE_S)

    async with tunnel(tmp_path, IN_PROCESS, port) as stands:
        with pytest.raises(grpc.RpcError) as down:
            await stands.call(stands.client.unary("Unary"), b"x", timeout=DEADLINE_S)
        assert down.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "nothing answers at http://127.0.0.1" in down.value.details()

        limited = stands.client.channel.unary_unary("/limited/Thing")
        with pytest.raises(grpc.RpcError) as large:
            await stands.call(limited, bytes(100), timeout=DEADLINE_S)
        assert large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_stream_may_be_silent_for_longer_than_a_body_may(tmp_path: Path, echo: tuple[Echo, int]) -> None:
    """The front gives up on uploads that stand still; a conversation is none."""
    _, port = echo
    limits = NodeLimits(front=FrontLimits(body_progress_s=0.2, sweep_s=0.1))
    async with tunnel(tmp_path, IN_PROCESS, port, limits, response_timeout_s=2.0, idle_timeout_s=0.2) as stands:
        said: queue.Queue[bytes | None] = queue.Queue()
        answers = stands.client.both("Chat")(iter(said.get, None), timeout=DEADLINE_S)
        await asyncio.sleep(2.6)  # longer than a body, an answer or a silence may take
        said.put(b"a")
        assert await stands.call(next, answers) == b"you said a"
        await asyncio.sleep(1.0)
        said.put(None)
        assert await stands.call(list, answers) == [b"bye"]


async def test_a_server_that_renews_its_connections_loses_no_call(tmp_path: Path) -> None:
    """grpc's maximum connection age: GOAWAY while calls are on their way, again and again."""
    options = (("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 10_000))
    with echo_server(options=options) as (_, port):
        async with tunnel(tmp_path, IN_PROCESS, port) as stands:
            (origin,) = stands.origins.clients
            unary = stands.client.unary("Unary")

            def calls() -> int:
                count = 0
                while origin.counters.connects < 5:
                    assert unary(b"x", timeout=DEADLINE_S) == b"X"
                    count += 1
                return count

            counts = await asyncio.wait_for(asyncio.gather(*(asyncio.to_thread(calls) for _ in range(4))), 30)
            assert min(counts) > 5
            assert not origin.counters.errors


async def test_a_server_with_tls_of_its_own_is_reached_over_h2(tmp_path: Path) -> None:
    ca = DevelopmentCA(tmp_path / "origin-ca")
    identity = ca.identity(["127.0.0.1"])
    (tmp_path / "origin-ca.pem").write_bytes(ca.ca_pem)
    credentials = grpc.ssl_server_credentials([(identity.key_pem, identity.cert_pem)])
    with echo_server(credentials=credentials) as (_, port):
        async with tunnel(
            tmp_path,
            IN_PROCESS,
            port,
            url=f"https://127.0.0.1:{port}",
            protocol="h2",
            tls_ca_file=str(tmp_path / "origin-ca.pem"),
        ) as stands:
            assert await stands.call(stands.client.unary("Unary"), b"x", timeout=DEADLINE_S) == b"X"

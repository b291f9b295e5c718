"""HTTPS as a node serves it: TCP and UDP on one port number, and visitors on TCP are told of the other."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator

import pytest

from edgetun_core.errors import AddressUnavailable
from edgetun_core.pki import DevelopmentCA
from edgetun_core.snapshot import OriginRule, RouteRule, Snapshot, TunnelRule
from edgetun_exitnode.front.alternatives import alt_svc_value
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.node import ExitNode
from support.h3_client import h3_visitor
from support.requirements import missing

from .conftest import Connect
from .h3_fixtures import h3_ca
from .test_front_tls import client

__all__ = ["h3_ca"]

TUNNEL = TunnelRule(
    *("default/shop", ("shop.example",)),
    *((OriginRule("default", "http://127.0.0.1:9"),), (RouteRule(),)),
    reconnect_grace_s=0.0,
)


@pytest.fixture
async def node(h3_ca: DevelopmentCA) -> AsyncIterator[ExitNode]:
    made = ExitNode("test")
    made.apply(Snapshot(1, "default", "default", (TUNNEL,)))
    yield made
    await made.drain(0.0)


def store_of(ca: DevelopmentCA) -> CertificateStore:
    return CertificateStore(development=ca, may_issue=lambda name: name == "shop.example")


async def test_visitors_on_tcp_are_told_of_http3_on_their_port_and_find_it(
    node: ExitNode, h3_ca: DevelopmentCA, connect: Connect
) -> None:
    front = await node.listen_https("127.0.0.1", 0, store_of(h3_ca), http3=True)
    on_tcp = await connect(front.port, tls=client(h3_ca), server_name="shop.example")
    told = await on_tcp.ask(host=f"shop.example:{front.port}")
    assert told.fields["alt-svc"] == f'h3=":{front.port}"; ma=86400'
    async with h3_visitor(front.port, ca_pem=h3_ca.ca_pem) as visitor:
        answer = await visitor.ask(host=f"shop.example:{front.port}")
        assert (answer.status, told.status) == (503, 503)  # no agent is connected, on either
        assert "alt-svc" not in answer.fields
        assert node.context.counters.http3_requests == 1


async def test_visitors_over_http2_are_told_too(node: ExitNode, h3_ca: DevelopmentCA) -> None:
    curl = shutil.which("curl")
    if curl is None:
        missing("curl (apt-get install curl)")
    front = await node.listen_https("127.0.0.1", 0, store_of(h3_ca), http3=True)
    place = f"shop.example:{front.port}"
    process = await asyncio.create_subprocess_exec(
        *(curl, "-sk", "--http2", "-D", "-", "-o", "/dev/null", "--resolve", f"{place}:127.0.0.1", f"https://{place}/"),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 20)
    assert said.startswith(b"HTTP/2 503")
    assert f'alt-svc: h3=":{front.port}"; ma=86400'.encode() in said


async def test_without_http3_nothing_is_told_and_nothing_listens(
    node: ExitNode, h3_ca: DevelopmentCA, connect: Connect
) -> None:
    front = await node.listen_https("127.0.0.1", 0, store_of(h3_ca), http3=False)
    on_tcp = await connect(front.port, tls=client(h3_ca), server_name="shop.example")
    assert "alt-svc" not in (await on_tcp.ask(host="shop.example")).fields
    assert not node.http3_fronts
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", front.port))


async def test_a_udp_port_that_is_taken_is_told_and_the_tcp_port_is_given_back(
    node: ExitNode, h3_ca: DevelopmentCA
) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        with socket.socket() as free:  # of TCP the same number must not be somebody else's
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            taken.bind(("127.0.0.1", port))
        with pytest.raises(AddressUnavailable, match=str(port)):
            await node.listen_https("127.0.0.1", port, store_of(h3_ca), http3=True)
    front = await node.listen_https("127.0.0.1", port, store_of(h3_ca), http3=True)
    assert front.port == port


@pytest.mark.parametrize(
    ("authority", "port"),
    [(b"a.example", b"443"), (b"a.example:8443", b"8443"), (b"[::1]", b"443"), (b"[::1]:1", b"1")],
)
def test_the_port_is_the_one_that_the_visitor_used(authority: bytes, port: bytes) -> None:
    assert alt_svc_value(authority) == b'h3=":%b"; ma=86400' % port

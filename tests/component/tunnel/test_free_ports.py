"""A node asked for any free port takes one that is free for TCP and for UDP, since agents and visitors try both at one number."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

import edgetun_exitnode.node as node_module
from edgetun_core.errors import AddressUnavailable
from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode.node import ExitNode


@pytest.fixture
def taken_for_udp(monkeypatch: pytest.MonkeyPatch):
    """Takes, for UDP, the first so many ports that TCP was given; returns what it took, and the listeners' ports that were closed."""
    taken: list[socket.socket] = []
    closed: list[int] = []
    real = node_module.listen

    def take(count: int) -> tuple[list[socket.socket], list[int]]:
        async def listen(engine, host, port, **options):
            listener = await real(engine, host, port, **options)
            if engine == "tls" and len(taken) < count:
                taken.append(socket.socket(type=socket.SOCK_DGRAM))
                taken[-1].bind((host, listener.port))
                close = listener.close

                async def close_and_tell():
                    await close()
                    closed.append(listener.port)

                monkeypatch.setattr(listener, "close", close_and_tell)
            return listener

        monkeypatch.setattr(node_module, "listen", listen)
        return taken, closed

    yield take
    for sock in taken:
        sock.close()


async def test_a_port_that_is_free_for_tcp_alone_is_not_taken(tmp_path: Path, taken_for_udp):
    taken, tried_and_closed = taken_for_udp(2)
    node = ExitNode("n1")
    try:
        tls, quic = await node.listen_tunnel("127.0.0.1", 0, DevelopmentCA(tmp_path).identity(["127.0.0.1"]))
        assert tls == quic != 0
        assert len(taken) == 2
        assert tls not in {sock.getsockname()[1] for sock in taken}
        assert [listener.port for listener in node.listeners] == [tls, quic]
        assert tried_and_closed == [sock.getsockname()[1] for sock in taken]
    finally:
        await node.close()


async def test_a_chosen_port_that_is_taken_for_udp_is_told(tmp_path: Path):
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        node = ExitNode("n1")
        try:
            with pytest.raises(AddressUnavailable, match=f"127.0.0.1:{port} is taken") as refused:
                await node.listen_tunnel("127.0.0.1", port, DevelopmentCA(tmp_path).identity(["127.0.0.1"]))
            assert isinstance(refused.value.__cause__, OSError)
            assert refused.value.__cause__.errno == errno.EADDRINUSE
            assert node.listeners == []
        finally:
            await node.close()

"""The tunnel port is one number for TLS and QUIC, and a number that is free for TCP may be taken for UDP."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from edgetun_core.errors import AddressUnavailable, ConfigError
from edgetun_core.pki import DevelopmentCA
from edgetun_exitnode import node as node_module
from edgetun_exitnode.node import ExitNode


async def test_a_free_number_that_udp_has_taken_is_passed_over_and_a_wanted_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = DevelopmentCA(tmp_path).identity(["127.0.0.1"])
    listen = node_module.listen
    numbers: list[int] = []

    async def listen_after_another(engine, host, port, **options):
        if engine != "tls":
            numbers.append(port)
            if len(numbers) == 1:
                raise ConfigError("taken") from OSError(errno.EADDRINUSE, "Address already in use")
        return await listen(engine, host, port, **options)

    monkeypatch.setattr(node_module, "listen", listen_after_another)
    node = ExitNode("n1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as another:
        another.bind(("127.0.0.1", 0))
        wanted = another.getsockname()[1]
        try:
            tls_port, quic_port = await node.listen_tunnel("127.0.0.1", 0, identity)
            assert tls_port == quic_port == numbers[-1] != numbers[0]
            assert len(node.listeners) == 2
            with pytest.raises(AddressUnavailable, match=f"{wanted} is taken"):
                await node.listen_tunnel("127.0.0.1", wanted, identity)
            assert len(node.listeners) == 2
        finally:
            await node.close()

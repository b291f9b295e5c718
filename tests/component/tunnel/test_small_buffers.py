"""What the kernel loses since a UDP socket has no room is counted, and so not lost in silence."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from edgetun_core.admin import start_admin
from edgetun_core.transport.udp import UdpSocket
from support.commands import visit
from support.waiting import eventually

FLOOD = 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of its drops")
async def test_what_the_kernel_loses_is_counted_also_after_the_socket_is_closed() -> None:
    admin = start_admin("127.0.0.1", 0, lambda: (), lambda: (True, {}))

    async def drops() -> int:
        page = await asyncio.to_thread(visit, admin.port, "/metrics")
        line = next(line for line in page.body.splitlines() if line.startswith("edgetun_udp_receive_drops_total "))
        return int(float(line.split()[1]))

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    heard = 0

    def hear(data: bytes, segment_bytes: int, address: object) -> None:
        nonlocal heard
        heard += -(-len(data) // segment_bytes)

    udp = UdpSocket(sock, hear, lambda: None, lambda error: None)
    try:
        before = await drops()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            for _ in range(FLOOD):  # the loop does not run meanwhile
                flood.sendto(bytes(1000), udp.local_address)
        lost = await drops() - before
        assert FLOOD / 2 < lost < FLOOD
        await eventually(lambda: heard + lost == FLOOD)
        udp.close()
        assert await drops() - before == lost
    finally:
        udp.close()
        admin.close()

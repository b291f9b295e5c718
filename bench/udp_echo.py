"""A UDP service that gives back what it gets, many datagrams with one system call; the origin of `streams.py`.

python bench/udp_echo.py PORT
"""

from __future__ import annotations

import asyncio
import sys

from edgetun_core.transport.udp import Address, UdpSocket, bind_udp, split_segments


class Echo:
    def __init__(self, port: int) -> None:
        self._waiting: dict[Address, list[bytes]] = {}
        self._udp = UdpSocket(bind_udp(2, ("127.0.0.1", port)), self._take, self._flush, lambda _: None)

    def _take(self, data: bytes, segment: int, address: Address) -> None:
        self._waiting.setdefault(address, []).extend(split_segments(data, segment))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for address, datagrams in waiting.items():
            self._udp.send(datagrams, address)


async def main(port: int) -> None:
    Echo(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(int(sys.argv[1])))

"""A load client for HTTP/3 that is cheaper than any server it measures: one process on qh3's packet core, prepared requests.

    python bench/http3_load.py HOST PORT --connections 4 --streams 16 --seconds 3

Prints one line of JSON: requests, seconds, errors, CPU seconds of this process, latency percentiles. Every response is checked
for its status and the size that the first one had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import sys
import time
from typing import Any

import uvloop
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.packet import QuicProtocolVersion

from edgetun_core.errors import EdgetunError
from edgetun_core.http.h3_frames import decode_varint, encode_frame
from edgetun_core.http.qpack import SectionDecoder, encode_section
from edgetun_core.transport.quic_peer import QuicPeer
from edgetun_core.transport.quic_qh3 import Qh3Connection
from edgetun_core.transport.udp import Address, UdpSocket

SAMPLE_EVERY = 16


class Quic(Qh3Connection):
    """As the server's side has it: events from the core, without the library's objects in between."""

    def take(self, data: bytes, segment: int, address: Address, now: float) -> None:
        if not self._handshake_complete:
            super().take(data, segment, address, now)
        elif len(data) <= segment:
            self._core.receive_datagram(data, address, now)  # type: ignore[union-attr]
        else:
            self._core.receive_gro_buffer(data, segment, address, now)  # type: ignore[union-attr]

    def _drain_core(self) -> None:
        if not self._handshake_complete:
            super()._drain_core()

    def pump(self, sink: Any) -> None:
        super().pump(sink)
        if not self._handshake_complete:
            return
        core = self._core
        assert core is not None
        stream_data = sink.stream_piece
        while (event := core.next_event()) is not None:
            if event[0] == "stream_data":
                stream_data(event[1], event[2], event[3])
            elif event[0] in ("peer_closed", "connection_terminated", "protocol_error", "stream_reset"):
                sink.failed(event)


class Connection(QuicPeer[Any, Quic]):
    """One connection that keeps a number of requests under way."""

    def __init__(self, load: Load, quic: Quic) -> None:
        self.load = load
        self.udp: UdpSocket
        self.next_sid = 0
        self.sizes: dict[int, int] = {}
        self.begun: dict[int, float] = {}
        self.heads: dict[int, bytes] = {}
        super().__init__("qh3", quic, self)

    # the socket side

    @property
    def is_blocked(self) -> bool:
        return self.udp.is_blocked

    def send(self, datagrams: list[bytes], address: Address) -> None:
        self.udp.send(datagrams, address)

    def when_writable(self, callback: Any) -> None:
        self.udp.when_writable(callback)

    def open(self, host: str, port: int) -> None:
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.connect((host, port))
        self.udp = UdpSocket(
            sock, lambda data, size, address: self.take(data, size, address, time.monotonic()), self.pump, self._lost
        )
        self._quic.connect((host, port), time.monotonic())
        self.transmit()

    def _lost(self, error: OSError) -> None:
        self.load.fail(f"socket: {error}")

    # the library's side

    def pump(self) -> None:
        self._scheduled = True
        super().pump()
        if not self._ended:
            self.transmit()

    def _deliver(self) -> None:
        self._quic.pump(self)

    def _ended_with(self, error: EdgetunError | None) -> None:
        self.load.fail(f"the connection ended: {error}")

    def failed(self, event: tuple[Any, ...]) -> None:
        self.load.fail(f"the server said {event}")

    def handshake_done(self, alpn: str | None) -> None:
        if not self.is_established:
            self.is_established = True
            self._quic.send_stream_data(2, b"\x00\x04\x00")  # a control stream with empty SETTINGS
            self.load.established(self)

    def cid_issued(self, cid: bytes) -> None:
        pass

    def cid_retired(self, cid: bytes) -> None:
        pass

    def stream_data(self, sid: int, data: bytes) -> None:
        self.stream_piece(sid, data, False)

    def stream_ended(self, sid: int) -> None:
        pass

    def start(self, count: int) -> None:
        for _ in range(count):
            self.ask()
        self.transmit()

    def ask(self) -> None:
        sid = self.next_sid
        self.next_sid = sid + 4
        core = self._quic._core
        assert core is not None
        core.open_stream(False)
        core.send_stream(sid, self.load.request, True)
        if sid % (4 * SAMPLE_EVERY) == 0:
            self.begun[sid] = time.perf_counter()

    def stream_piece(self, sid: int, data: bytes, is_end: bool) -> None:
        if sid & 3:
            return
        load = self.load
        size = self.sizes.pop(sid, 0) + len(data)
        if sid == 0:
            self.heads[0] = self.heads.get(0, b"") + data
        if not is_end:
            self.sizes[sid] = size
            return
        if sid == 0:
            load.first(self.heads.pop(0))
        elif abs(size - load.size) > 16:  # a date, an age or a request id may differ by a little
            load.errors += 1
        begun = self.begun.pop(sid, 0.0)
        if begun:
            load.latencies.append(time.perf_counter() - begun)
        load.done += 1
        if load.is_open:
            self.ask()


class Load:
    """All connections, and what they counted."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        authority = f"{arguments.name}:{arguments.port}"
        self.request = encode_frame(1, encode_section([
            (b":method", b"GET"), (b":scheme", b"https"), (b":authority", authority.encode()), (b":path", arguments.path.encode()),
            (b"user-agent", b"edgetun-bench"), (b"accept", b"*/*"),
        ]))  # fmt: skip
        self.connections: list[Connection] = []
        self.ready = 0
        self.size = 0
        self.done = 0
        self.errors = 0
        self.latencies: list[float] = []
        self.is_open = True
        self.went_wrong: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.all_ready = asyncio.Event()
        self.all_answered = asyncio.Event()
        self.answered = 0

    def established(self, connection: Connection) -> None:
        self.ready += 1
        if self.ready == self.arguments.connections:
            self.all_ready.set()

    def first(self, data: bytes) -> None:
        """The first response of a connection is read: its status must be 200."""
        _, at = decode_varint(data)
        length, at = decode_varint(data, at)
        fields = dict(SectionDecoder(65536).decode(data[at : at + length]))
        if fields.get(b":status") != b"200":
            self.fail(f"the first answer is {fields}")
        self.size = len(data)
        self.answered += 1
        if self.answered == self.arguments.connections:
            self.all_answered.set()

    def fail(self, why: str) -> None:
        if self.is_open and not self.went_wrong.done():
            self.went_wrong.set_exception(RuntimeError(why))

    async def run(self) -> dict[str, float]:
        arguments = self.arguments
        for _ in range(arguments.connections):
            configuration = QuicConfiguration(
                is_client=True, alpn_protocols=["h3"], server_name=arguments.name, verify_mode=ssl.CERT_NONE,
                max_data=64 << 20, max_stream_data=8 << 20, supported_versions=[QuicProtocolVersion.VERSION_1],
            )  # fmt: skip
            connection = Connection(self, Quic(configuration=configuration))
            self.connections.append(connection)
            connection.open(arguments.host, arguments.port)
        await self._unless_wrong(asyncio.wait_for(self.all_ready.wait(), 10))
        for connection in self.connections:
            connection.start(1)
        await self._unless_wrong(asyncio.wait_for(self.all_answered.wait(), 10))
        for connection in self.connections:
            connection.start(arguments.streams - 1)
        await asyncio.sleep(0.2)
        self.latencies.clear()
        done, cpu, at = self.done, time.process_time(), time.perf_counter()
        await self._unless_wrong(asyncio.sleep(arguments.seconds))
        took = time.perf_counter() - at
        done, cpu = self.done - done, time.process_time() - cpu
        self.is_open = False
        latencies = sorted(self.latencies) or [0.0]
        return {
            "requests": done,
            "total": self.done,
            "seconds": took,
            "rps": done / took,
            "errors": self.errors,
            "client_cpu_s": cpu,
            "p50_ms": latencies[len(latencies) // 2] * 1e3,
            "p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
        }

    async def _unless_wrong(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        await asyncio.wait((task, self.went_wrong), return_when=asyncio.FIRST_COMPLETED)
        if self.went_wrong.done():
            task.cancel()
            self.went_wrong.result()
        task.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--name", default="localhost")
    parser.add_argument("--path", default="/")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()

    async def run() -> dict[str, float]:
        return await Load(arguments).run()

    try:
        result = uvloop.run(run())
    except (RuntimeError, TimeoutError) as error:
        print(f"http3_load: {error!r}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

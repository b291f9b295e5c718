"""How each QUIC engine's congestion controllers do on paths with loss and delay: bulk in one direction, MB/s received.

Every cell is a fresh pair of processes (listener, dialler) and a relay between them with seeded loss, the delay split over both ways.
What is measured is the sender's controller; the receiver is of the same engine. No bottleneck rate: a controller that takes
random loss for congestion is what the table shows.

python bench/congestion.py [--quick] [--only qh3 ...] [--seconds 4]; about 4 minutes
"""

from __future__ import annotations

import asyncio
import heapq
import json
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "bench"))

from harness import Column, Row, cpu_s_of, parse_arguments, report, run_main  # noqa: E402

from edgetun_core.transport.engines import DevelopmentCA, dial, listen  # noqa: E402
from support.children import end_child  # noqa: E402
from support.impairment.wire import Impairment, Wire  # noqa: E402

LOSSES = (0.0, 0.01, 0.05, 0.1)
ROUND_TRIPS_MS = (5, 50, 200)
CONTROLLERS = ("aioquic:rate", "qh3:cubic", "aioquic:reno", "aioquic:cubic")
CHUNK = bytes(64 * 1024)
BURST = 64
LANE = 4


def choose(engine: str) -> str:
    """The engine's name, its controller set for this process."""
    name, _, controller = engine.partition(":")
    if name == "aioquic":
        from edgetun_core.transport import quic_aioquic

        quic_aioquic.CONGESTION_CONTROL = controller
    return name


class Sender:
    """Keeps a bulk lane full."""

    def __init__(self) -> None:
        self.link: Any = None
        self.is_paused = False
        self.is_done = False

    def on_open(self, link: Any) -> None:
        self.link = link

    def fill(self) -> None:
        while not self.is_paused and not self.is_done:
            self.link.write(LANE, CHUNK)

    def on_data(self, lane: int, data: bytes) -> None: ...

    def on_lane_paused(self, lane: int) -> None:
        self.is_paused = True

    def on_lane_resumed(self, lane: int) -> None:
        self.is_paused = False
        self.fill()

    def on_closed(self, error: object) -> None:
        self.is_done = True


class Receiver(Sender):
    """Counts."""

    received = 0

    def on_data(self, lane: int, data: bytes) -> None:
        Receiver.received += len(data)


async def receive(engine: str, folder: str) -> None:
    ca = DevelopmentCA(Path(folder))
    listener = await listen(choose(engine), "127.0.0.1", 0, identity=ca.identity(["127.0.0.1"]), accept=Receiver)
    print(listener.port, flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        assert line
        print(Receiver.received, flush=True)
    await listener.close()


async def send(engine: str, folder: str, port: int, seconds: float) -> None:
    ca = DevelopmentCA(Path(folder))
    user = Sender()
    began = time.monotonic()
    await dial(choose(engine), "127.0.0.1", port, trust=ca.trust, user=user, timeout_s=20)
    print(json.dumps({"handshake_s": time.monotonic() - began}), flush=True)
    cpu_s = time.process_time()
    user.fill()
    await asyncio.sleep(seconds)
    print(json.dumps({"cpu_s": time.process_time() - cpu_s}), flush=True)
    user.is_done = True
    user.link.abort()
    await asyncio.sleep(0.1)


def relay(target: int, impairment: Impairment) -> None:
    """Carries datagrams of one dialler; ends with its standard input."""
    front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    front.bind(("127.0.0.1", 0))
    back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    back.connect(("127.0.0.1", target))
    for sock in (front, back):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
    print(front.getsockname()[1], flush=True)
    up, down = Wire(impairment, seed=1), Wire(impairment, seed=2)
    due: list[tuple[float, int, bool, bytes]] = []
    serial, dialler = 0, None
    control = sys.stdin.buffer
    while True:
        timeout_s = max(0.0, due[0][0] - time.monotonic()) if due else None
        readable, _, _ = select.select([front, back, control], [], [], timeout_s)
        if control in readable:
            return
        now = time.monotonic()
        for sock, wire in ((front, up), (back, down)):
            if sock not in readable:
                continue
            for _ in range(BURST):
                try:
                    data, address = sock.recvfrom(2048)
                except OSError:
                    break
                if sock is front:
                    dialler = address
                at = wire.carry(len(data), now)
                if at is not None:
                    serial += 1
                    heapq.heappush(due, (at, serial, sock is front, data))
        now = time.monotonic()
        while due and due[0][0] <= now:
            _, _, is_up, data = heapq.heappop(due)
            try:
                if is_up:
                    back.send(data)
                elif dialler is not None:
                    front.sendto(data, dialler)
            except OSError:
                pass


def cell(
    engine: str, loss: float, round_trip_ms: float, seconds: float, folder: str, *, payload_bytes: int = 0
) -> dict[str, float]:
    """One measurement."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__, "--role", *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    processes: list[subprocess.Popen[str]] = []
    try:
        receiver = start("receive", engine, folder)
        processes.append(receiver)
        assert receiver.stdout is not None
        assert receiver.stdin is not None
        port = int(receiver.stdout.readline())
        path = start("relay", port, loss, round_trip_ms / 2000, payload_bytes)
        processes.append(path)
        assert path.stdout is not None
        sender = start("send", engine, folder, int(path.stdout.readline()), seconds)
        processes.append(sender)
        assert sender.stdout is not None
        told = json.loads(sender.stdout.readline() or "{}")
        if "handshake_s" not in told:
            return {"mb_s": 0.0, "cpu_s_gb": 0.0, "handshake_s": 0.0}
        before = cpu_s_of(receiver.pid)
        told |= json.loads(sender.stdout.readline())
        receiver.stdin.write("?\n")
        receiver.stdin.flush()
        received = int(receiver.stdout.readline())
        cpu_s = told["cpu_s"] + cpu_s_of(receiver.pid) - before
        return {
            "mb_s": received / seconds / 1e6,
            "cpu_s_gb": cpu_s / max(received, 1) * 1e9,
            "handshake_s": told["handshake_s"],
        }
    finally:
        for process in processes:
            end_child(process)


def play(role: Sequence[str]) -> None:
    """One process of a cell."""
    match role:
        case ["receive", engine, folder]:
            asyncio.run(receive(engine, folder))
        case ["send", engine, folder, port, seconds]:
            asyncio.run(send(engine, folder, int(port), float(seconds)))
        case ["relay", port, loss, delay_s, mtu]:
            relay(int(port), Impairment(loss=float(loss), delay_s=float(delay_s), mtu_bytes=int(mtu)))


def main() -> None:
    if sys.argv[1:2] == ["--role"]:
        play(sys.argv[2:])
        return
    arguments = parse_arguments(__doc__, repeats=1, seconds=4)
    names = [name for name in CONTROLLERS if not arguments.only or any(word in name for word in arguments.only)]
    rows = {name: Row(name) for name in names}
    columns = []
    with tempfile.TemporaryDirectory() as folder:
        DevelopmentCA(Path(folder))
        for round_trip_ms in ROUND_TRIPS_MS:
            for loss in LOSSES:
                figure = f"{round_trip_ms:g}ms{loss:g}"
                columns.append(Column(figure, f"{round_trip_ms:g} ms {loss:.0%}", 2))
                for _ in range(arguments.repeats):
                    for name, row in rows.items():
                        found = cell(name, loss, round_trip_ms, arguments.seconds, folder)
                        row.add(**{figure: found["mb_s"], f"{figure} CPU s/GB": found["cpu_s_gb"]})
                        print(f"  {figure} {name} {found}", file=sys.stderr, flush=True)
    title = "Congestion control of sessions: MB/s of bulk by round trip and loss, no bottleneck"
    report("congestion", title, list(rows.values()), columns, arguments)


if __name__ == "__main__":
    run_main(main)

"""Two network namespaces joined by a bad network: whole IP packets through a process in between (root; Linux).

    with packet_path(Impairment(loss=0.05, delay_s=0.025)) as path:
        subprocess.run([*path.near.enter, "some-server"])      # 10.77.0.1
        subprocess.run([*path.far.enter, "some-client"])       # 10.77.0.2

What runs inside sees real kernels' TCP, UDP and path MTU. The two ends of a TUN pair are read and written by a child process of this
file, which decides with a `Wire` each way. The weather can change at any time (`path.set`). Nothing is left when it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import json
import os
import secrets
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from support.children import end_child
from support.impairment.wire import GOOD, Impairment, Wire

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x0001 | 0x1000
PACKET_BYTES = 65535
BURST = 64
QUEUE_PACKETS = 2000
"""What the kernel keeps while the process between waits for a processor; a full one loses packets that no `Wire` counts."""


def what_is_missing_for_packets() -> str:
    """Why this machine cannot have a packet path; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces want root"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    return ""


@dataclass(frozen=True, slots=True)
class End:
    """One end: a namespace with one address. `enter` goes in front of a command that is to run there."""

    namespace: str
    address: str
    device: str

    def set_mtu(self, mtu_bytes: int) -> None:
        """What this end's interface says from now on; the other end is not told."""
        _ip("-n", self.namespace, "link", "set", self.device, "mtu", str(mtu_bytes))

    @property
    def enter(self) -> list[str]:
        return ["ip", "netns", "exec", self.namespace]


class PacketPath:
    """The two ends, and the process between them."""

    def __init__(self, near: End, far: End, process: subprocess.Popen[bytes]) -> None:
        self.near = near
        self.far = far
        self._process = process

    def set(
        self, both: Impairment | None = None, *, up: Impairment | None = None, down: Impairment | None = None
    ) -> None:
        """Another weather; `up` is from far to near. Returns when it holds."""
        self._say({"up": asdict(up or both or GOOD), "down": asdict(down or both or GOOD)})

    def counts(self) -> dict[str, dict[str, int]]:
        """Packets carried, lost, too large and overflowed, each way."""
        told: dict[str, dict[str, int]] = self._say({})
        return told

    def _say(self, words: dict[str, object]) -> dict[str, dict[str, int]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the packet path's process is gone")
        answer: dict[str, dict[str, int]] = json.loads(line)
        return answer


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@contextlib.contextmanager
def packet_path(
    both: Impairment = GOOD, *, down: Impairment | None = None, seed: int = 1, mtu_bytes: int = 1500
) -> Iterator[PacketPath]:
    """Makes the namespaces and the process, and takes all away at the end. `mtu_bytes` is what the interfaces say."""
    mark = secrets.token_hex(3)
    near = End(f"edgetun-{mark}-near", "10.77.0.1", f"et{mark}n")
    far = End(f"edgetun-{mark}-far", "10.77.0.2", f"et{mark}f")
    process: subprocess.Popen[bytes] | None = None
    try:
        for end in (near, far):
            _ip("netns", "add", end.namespace)
            _ip("-n", end.namespace, "link", "set", "lo", "up")
        process = subprocess.Popen(
            [sys.executable, "-m", "support.impairment.packet_path", near.device, far.device, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        path = PacketPath(near, far, process)
        path.counts()  # the interfaces are there
        for end, peer in ((near, far), (far, near)):
            _ip("link", "set", end.device, "netns", end.namespace)
            inside = ("-n", end.namespace)
            _ip(*inside, "addr", "add", end.address, "peer", peer.address, "dev", end.device)
            words = ("mtu", str(mtu_bytes), "txqueuelen", str(QUEUE_PACKETS), "up")
            _ip(*inside, "link", "set", end.device, *words)
        path.set(up=both, down=down or both)
        yield path
    finally:
        if process is not None:
            end_child(process)
        for end in (near, far):
            subprocess.run(["ip", "netns", "del", end.namespace], check=False, capture_output=True, timeout=10)


def _open_tun(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN_NO_PI))
    return fd


def _relay(near_name: str, far_name: str, seed: int) -> None:
    """The process between: reads, decides, waits, writes; ends when its standard input does."""
    near, far = _open_tun(near_name), _open_tun(far_name)
    wires = {far: Wire(seed=seed), near: Wire(seed=seed + 1)}
    """By the side a packet comes from: from far it goes up."""
    other = {near: far, far: near}
    due: list[tuple[float, int, int, bytes]] = []
    serial = 0
    control = sys.stdin.buffer
    while True:
        timeout_s = max(0.0, due[0][0] - time.monotonic()) if due else None
        readable, _, _ = select.select([near, far, control], [], [], timeout_s)
        now = time.monotonic()
        for fd in (near, far):
            if fd not in readable:
                continue
            wire, out = wires[fd], other[fd]
            for _ in range(BURST):
                try:
                    packet = os.read(fd, PACKET_BYTES)
                except BlockingIOError:
                    break
                at = wire.carry(len(packet), now)
                if at is not None:
                    serial += 1
                    heapq.heappush(due, (at, serial, out, packet))
        now = time.monotonic()
        while due and due[0][0] <= now:
            _, _, out, packet = heapq.heappop(due)
            try:
                os.write(out, packet)
            except OSError:
                pass  # the interface is not up yet, or its queue is full: a network loses what it cannot carry
        if control in readable:
            line = control.readline()
            if not line:
                return
            words = json.loads(line)
            for side, fd in (("up", far), ("down", near)):
                if side in words:
                    wires[fd].impairment = Impairment(**words[side])
            told = {
                side: {
                    "carried": wires[fd].carried,
                    "lost": wires[fd].lost,
                    "too_large": wires[fd].too_large,
                    "overflowed": wires[fd].overflowed,
                }
                for side, fd in (("up", far), ("down", near))
            }
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    _relay(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""A tunnel over a bad link: the edge and its visitors in one network namespace, the agent and the origin in another, and whole IP packets
through one relay in between, so that the kernel's TCP meets the weather as QUIC does. Wants root; leaves nothing behind. The edge has one core,
the agent and the origin the other, as they would have on machines of their own; the relay and the visitors run where there is room.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import CLIENT_CORE, ROOT, BenchError, Site

sys.path.insert(0, str(ROOT / "tests"))  # the relay is a test tool

from support.impairment.packet_path import PacketPath, packet_path, what_is_missing_for_packets
from support.impairment.wire import Impairment

if TYPE_CHECKING:
    from support.impairment.packet_path import End

_CLONE_NEWNET = 0x40000000

RATE_MBIT = 100
"""What the link carries each way, the same for everybody. The relay alone does three times as much on a core (bench/notes.md)."""
QUEUE_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class BadLink:
    """`site` is for the subjects; `path.set` changes the weather."""

    path: PacketPath
    site: Site

    @property
    def agent_side(self) -> End:
        return self.path.far


def weather(*, loss: float = 0.0, rtt_s: float = 0.0, is_black_hole: bool = False) -> Impairment:
    """Each way: `loss` of the packets, half of `rtt_s`, and the common rate and queue."""
    return Impairment(
        loss=loss,
        delay_s=rtt_s / 2,
        rate_bytes_s=RATE_MBIT * 1e6 / 8,
        queue_bytes=QUEUE_BYTES,
        is_black_hole=is_black_hole,
    )


@contextmanager
def bad_link(*, seed: int = 1, congestion: str = "") -> Iterator[BadLink]:
    """Makes the link, and moves this process to the edge's side. `congestion` is the kernel's algorithm for both ends' TCP; empty is the machine's."""
    missing = what_is_missing_for_packets()
    if missing:
        raise BenchError(f"this benchmark makes a link of its own: {missing}")
    with packet_path(weather(), seed=seed) as path:
        for end in (path.near, path.far):
            _tune(end, congestion)
        with inside(path.near):
            yield BadLink(path, Site(path.near.address, tuple(path.far.enter), CLIENT_CORE))


def congestion_control() -> str:
    """The kernel's algorithm for TCP where this process is."""
    path = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return path.read_text().strip()


def _tune(end: End, congestion: str) -> None:
    if not congestion:
        return
    command = [*end.enter, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={congestion}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the kernel has no {congestion}: {done.stderr.strip()}")


@contextmanager
def inside(end: End) -> Iterator[None]:
    """This thread, and what it starts, is in the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: str) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            if libc.setns(fd, _CLONE_NEWNET):
                raise BenchError(f"cannot enter {path}: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(fd)

    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(f"/run/netns/{end.namespace}")
        try:
            yield
        finally:
            enter(f"/proc/self/fd/{home}")
    finally:
        os.close(home)

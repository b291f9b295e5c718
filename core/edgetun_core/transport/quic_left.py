"""Links that a process left behind when it was killed: noted in a file while they stand, so that the next process can end them.

The kernel tells TCP's peers that a process is gone; of UDP's it tells only those who send meanwhile, and a dialler whose link rests does
not. So a listener writes down where its links lead, and the one that takes its place sends each a stateless reset (RFC 9000 §10.3), and
another to whoever goes on sending. Connection ids and reset tokens follow from a secret in the same file.

A slot is written when a link begins and when it ends, with one system call each; `MAX_LINKS` slots of 32 bytes are the bound. A lock on the
file tells a process that was killed from one that runs: only what nobody holds is read.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
from pathlib import Path
from typing import Final

from edgetun_core.transport.quic_retry import ResetTokens
from edgetun_core.transport.udp import Address

log = logging.getLogger("edgetun.transport")

FILE: Final = "quic-links"
MAX_LINKS: Final = 10_000
_MAGIC: Final = b"etql\x01\0\0\0"
_SECRET_BYTES: Final = 32
_HEAD_BYTES: Final = len(_MAGIC) + _SECRET_BYTES
_CID_BYTES: Final = 8
_SLOT: Final = struct.Struct(f">BxH16s{_CID_BYTES}s4x")
"""IP version (0: free), port, address, connection id."""


class LeftLinks:
    """The file. `found` is what the last process left; `note` and `forget` are of this one's."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` when the file cannot be used, `BlockingIOError` when a process that runs holds it."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = os.pread(self._fd, _HEAD_BYTES + MAX_LINKS * _SLOT.size, 0)
            secret, self.found = _read(content)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, _MAGIC + secret, 0)
        except BaseException:
            os.close(self._fd)
            raise
        self.tokens = ResetTokens(secret)
        self._slots: dict[bytes, int] = {}
        self._free: list[int] = []
        self._is_broken = False

    def note(self, cid: bytes, address: Address) -> None:
        """A link stands, or its peer has another address now. A link beyond the bound is not noted."""
        slot = self._slots.get(cid)
        if slot is None:
            slot = self._free.pop() if self._free else len(self._slots)
            if slot >= MAX_LINKS or len(cid) != _CID_BYTES:
                return
            self._slots[cid] = slot
        self._write(slot, _packed(cid, address))

    def forget(self, cid: bytes) -> None:
        """A link ended, and its peer was told."""
        slot = self._slots.pop(cid, None)
        if slot is not None:
            self._free.append(slot)
            self._write(slot, bytes(_SLOT.size))

    def close(self) -> None:
        """What is noted by now is left to the next process."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, slot: int, data: bytes) -> None:
        if self._is_broken or self._fd < 0:
            return
        try:
            os.pwrite(self._fd, data, _HEAD_BYTES + slot * _SLOT.size)
        except OSError as error:
            self._is_broken = True
            log.warning("QUIC links are no longer noted, agents will be slow to see this process killed: %s", error)


def _packed(cid: bytes, address: Address) -> bytes:
    host = address[0].partition("%")[0]
    version = 6 if ":" in host else 4
    packed = socket.inet_pton(socket.AF_INET6 if version == 6 else socket.AF_INET, host)
    return _SLOT.pack(version, address[1], packed.ljust(16, b"\0"), cid)


def _read(content: bytes) -> tuple[bytes, list[tuple[Address, bytes]]]:
    """The secret, and the links with their connection ids; a new secret and none when the file is none of ours."""
    if len(content) < _HEAD_BYTES or not content.startswith(_MAGIC):
        return os.urandom(_SECRET_BYTES), []
    found: list[tuple[Address, bytes]] = []
    whole = (len(content) - _HEAD_BYTES) // _SLOT.size * _SLOT.size
    for version, port, packed, cid in _SLOT.iter_unpack(content[_HEAD_BYTES : _HEAD_BYTES + whole]):
        if version == 4:
            found.append(((socket.inet_ntop(socket.AF_INET, packed[:4]), port), cid))
        elif version == 6:
            found.append(((socket.inet_ntop(socket.AF_INET6, packed), port), cid))
    return content[len(_MAGIC) : _HEAD_BYTES], found

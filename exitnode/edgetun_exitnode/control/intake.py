"""The exit node's end of the stream: from control's messages to the snapshot that the node obeys. Sans-I/O.

What does not fit is asked for again as a whole; the node meanwhile obeys what it has.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec

from edgetun_core.control_stream import Ack, Delta, Drain, Full, Move, Peers, Resync, Standing, Unknown, apply_delta
from edgetun_core.control_stream.delta import DeltaMismatch
from edgetun_core.control_stream.messages import FromControl
from edgetun_core.snapshot import Snapshot, SnapshotChange

log = logging.getLogger("edgetun.exitnode.control")


@dataclass(frozen=True, slots=True)
class Taken:
    """What comes of a message: `apply` is the snapshot to obey from now on, `reply` goes to control afterwards.

    `change` says what is another than in which snapshot before, when only some of it is.
    """

    apply: Snapshot | None = None
    change: SnapshotChange | None = None
    reply: Ack | Resync | None = None
    order: Move | Drain | None = None


class Intake:
    """Holds the present snapshot and its digest."""

    def __init__(self, pool: str, region: str) -> None:
        self._pool = pool
        self._region = region
        self.snapshot: Snapshot | None = None
        self.digest = ""

    def resume(self, snapshot: Snapshot, digest: str) -> None:
        """Begins with the last good snapshot from disk."""
        self.snapshot, self.digest = snapshot, digest

    def take(self, message: FromControl | Unknown) -> Taken:
        match message:
            case Full(snapshot, digest):
                if (snapshot.pool, snapshot.region) != (self._pool, self._region):
                    where = f"{snapshot.pool}/{snapshot.region}"
                    return Taken(reply=Resync(f"the snapshot is for {where}, this is {self._pool}/{self._region}"))
                return self._obey(snapshot, digest)
            case Delta():
                try:
                    if self.snapshot is None:
                        raise DeltaMismatch("there is no snapshot here yet")
                    after = apply_delta(self.snapshot, self.digest, message)
                except DeltaMismatch as mismatch:
                    return Taken(reply=Resync(str(mismatch)))
                ids = frozenset((*(rule.id for rule in message.put), *message.removed))
                return self._obey(after, message.digest, SnapshotChange(self.snapshot, ids))
            case Standing(version, digest):
                if self.snapshot is None or digest != self.digest:
                    return Taken(reply=Resync(f"{self.digest or 'nothing'} is here, not {digest}"))
                self.snapshot = msgspec.structs.replace(self.snapshot, version=version)
                return Taken(reply=Ack(version, digest))
            case Move() | Drain():
                return Taken(order=message)
            case Unknown(kind):
                log.debug("control said %s, which this version knows nothing of", kind)
                return Taken()
            case Peers():
                return Taken()  # not of the snapshot

    def _obey(self, snapshot: Snapshot, digest: str, change: SnapshotChange | None = None) -> Taken:
        self.snapshot, self.digest = snapshot, digest
        return Taken(snapshot, change, Ack(snapshot.version, digest))

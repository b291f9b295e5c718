"""The messages of the stream between an exit node and control: msgpack maps, tagged, one per WebSocket message.

An exit node opens with `NodeHello`; control answers with `Full`, `Delta` or `Standing` and sends the next change when the last one
is acknowledged, so a slow node never has more than one message on its way. A reader ignores names that it does not know and uses
the default for names that are missing, and passes over whole messages of kinds that it does not know (`Unknown`): either side may be one
version behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, get_args

import msgspec
from msgspec import Struct

from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import ProtocolError
from edgetun_core.snapshot import CredentialKey, PoolRule, Snapshot, TunnelRule

IDENTITY_PATH: Final = "/v1/exitnode/identity"
STREAM_PATH: Final = "/v1/exitnode/stream"

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""A full snapshot of 10,000 tunnels that say a lot is 10 MB."""
MAX_NODE_MESSAGE_BYTES: Final = 1024 * 1024
MOST_SESSIONS_PER_PRESENCE: Final = 500
"""So that a node with 10,000 sessions tells them in messages of 100 KiB."""
MOST_PORTS_PER_MESSAGE: Final = 500
"""Tunnels whose port cannot be had, of which a node tells; of more than that something else is wrong."""
MOST_TUNNELS_PER_MESSAGE: Final = 1500
"""Names of tunnels in one message; they are at most 512 bytes long, and 30 as a rule."""


# --- identity, before the stream: JSON over HTTPS with the node's ServiceAccount token


class IdentityRequest(Struct, frozen=True, omit_defaults=True):
    """`csr_pem` proves the key, which never leaves the node; `names` are host names and addresses by which agents reach it."""

    pool: str
    region: str
    node: str
    csr_pem: str
    names: tuple[str, ...] = ()


class IdentityAnswer(Struct, frozen=True, omit_defaults=True):
    """A certificate for mTLS with control and for the tunnel listener, and the CA that both sides trust."""

    cert_pem: str
    ca_pem: str
    expires_in_s: float


# --- from the exit node


class NodeLoad(Struct, frozen=True, omit_defaults=True):
    """How busy a node is, for placement."""

    sessions: int = 0
    max_sessions: int = 0
    connections: int = 0
    in_flight: int = 0
    is_draining: bool = False


class NodeHello(Struct, frozen=True, tag="hello", omit_defaults=True):
    """The first message. `have_digest` names the snapshot that the node obeys, empty when it has none."""

    pool: str
    region: str
    node: str
    addresses: tuple[Endpoint, ...] = ()
    """Where agents reach this very node; empty when only the region's Service leads here."""
    have_version: int = 0
    have_digest: str = ""
    load: NodeLoad = NodeLoad()
    software: str = ""
    relay: Endpoint | None = None
    """Where other exit nodes reach this node; a node that says so is told of the others (`Peers`)."""


class Ack(Struct, frozen=True, tag="ack", omit_defaults=True):
    """The node obeys this snapshot from now on."""

    version: int
    digest: str


class Resync(Struct, frozen=True, tag="resync", omit_defaults=True):
    """A delta did not fit: send the whole."""

    reason: str = ""


class SessionInfo(Struct, frozen=True, omit_defaults=True):
    """One session of an agent, as its exit node sees it."""

    session_id: str
    agent_id: str
    token_id: str
    transport: str
    since: float
    """Seconds since the epoch."""
    rtt_s: float = 0.0
    services: int = 0
    address: str = ""
    software: str = ""
    tunnels: tuple[str, ...] = ()
    """Ids of the tunnels that it serves."""
    weight: int = 1
    standby: bool = False
    """As the agent's hello says (wire/hello.py)."""

    @property
    def share(self) -> int:
        """What it adds to its node's share of each of its tunnels (`PeerChange.shares`)."""
        weight = max(1, self.weight)
        return -weight if self.standby else weight


class Presence(Struct, frozen=True, tag="presence", omit_defaults=True):
    """What changed about the node's sessions, gathered for a moment. `reset`: forget what was told before."""

    reset: bool = False
    opened: tuple[SessionInfo, ...] = ()
    """New ones, and those whose transport or round trip changed."""
    closed: tuple[str, ...] = ()
    """Session ids."""
    load: NodeLoad | None = None
    ports: dict[str, str] | None = None
    """Tunnels whose port the node cannot listen on, by id, and why, for people: all of them. None: as told before."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a later version, of a kind that this one knows nothing of. Whoever receives it goes on."""

    kind: str


FromNode = NodeHello | Ack | Resync | Presence


# --- from control


class Full(Struct, frozen=True, tag="full", omit_defaults=True):
    """A whole snapshot."""

    snapshot: Snapshot
    digest: str


class Delta(Struct, frozen=True, tag="delta", omit_defaults=True):
    """What turns the snapshot `base` (a digest) into the snapshot `digest`. `None` means unchanged."""

    base: str
    digest: str
    version: int
    put: tuple[TunnelRule, ...] = ()
    removed: tuple[str, ...] = ()
    """Tunnel ids."""
    credential_keys: tuple[CredentialKey, ...] | None = None
    revoked: tuple[str, ...] = ()
    unrevoked: tuple[str, ...] = ()
    """Tokens that ended so long ago that nobody needs to remember."""
    pool_rule: PoolRule | None = None


class Standing(Struct, frozen=True, tag="standing", omit_defaults=True):
    """What the node has is what holds, perhaps under another number."""

    version: int
    digest: str


class Move(Struct, frozen=True, tag="move", omit_defaults=True):
    """These sessions shall go to another exit node: the node drains them one by one, nothing in flight is cut."""

    session_ids: tuple[str, ...]
    deadline_s: float = 30.0
    reason: str = ""


class Drain(Struct, frozen=True, tag="drain", omit_defaults=True):
    """The node shall take no more sessions and drain those it has (`on=False`: take sessions again)."""

    on: bool = True
    deadline_s: float = 30.0
    reason: str = ""


class PeerChange(Struct, frozen=True, omit_defaults=True):
    """What changed about one exit node of the pool. `node` is its whole name, `pool/region/node`."""

    node: str
    relay: Endpoint | None = None
    """Where other exit nodes reach it; None: as told before."""
    opened: tuple[str, ...] = ()
    """Tunnels that it holds a session of, from now on; also those whose share has changed."""
    closed: tuple[str, ...] = ()
    is_draining: bool = False
    shares: dict[str, int] = {}
    """Of those opened, where it is not 1: the summed weight of the sessions that are not on standby; where all are, theirs, negative."""


class Peers(Struct, frozen=True, tag="peers", omit_defaults=True):
    """Which exit nodes of the pool hold sessions of which tunnels; sent only to nodes that said where they are reached.

    A `reset` begins a new list, which ends with the message that `is_complete`; what was told before it and is not in it no longer
    holds. Otherwise it is what changed, gathered for a moment. A node finds itself among the others, and leaves itself out.
    """

    reset: bool = False
    changed: tuple[PeerChange, ...] = ()
    gone: tuple[str, ...] = ()
    is_complete: bool = True


FromControl = Full | Delta | Standing | Move | Drain | Peers

_encoder = msgspec.msgpack.Encoder()
_from_node: msgspec.msgpack.Decoder[FromNode] = msgspec.msgpack.Decoder(FromNode)
_from_control: msgspec.msgpack.Decoder[FromControl] = msgspec.msgpack.Decoder(FromControl)


def encode(message: FromNode | FromControl) -> bytes:
    """msgpack; equal messages encode equally."""
    return _encoder.encode(message)


class _Kind(Struct, frozen=True):
    type: str


_kind: Final = msgspec.msgpack.Decoder(_Kind)
_KNOWN: Final = frozenset(str(kind.__struct_config__.tag) for kind in (*get_args(FromNode), *get_args(FromControl)))


def _unknown(data: bytes) -> Unknown | None:
    try:
        kind = _kind.decode(data).type
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if kind in _KNOWN else Unknown(kind[:40])


def decode_from_node(data: bytes) -> FromNode | Unknown:
    """Raises `ProtocolError` for what is no message of an exit node."""
    try:
        return _from_node.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if (unknown := _unknown(data)) is not None:
            return unknown
        raise ProtocolError(f"not a message of an exit node: {error}") from None


def decode_from_control(data: bytes) -> FromControl | Unknown:
    """Raises `ProtocolError` for what is no message of control."""
    try:
        return _from_control.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if (unknown := _unknown(data)) is not None:
            return unknown
        raise ProtocolError(f"not a message of control: {error}") from None

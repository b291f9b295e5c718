"""What control and exit nodes say to each other over their stream, and how a snapshot changes into the next. Sans-I/O.

messages.py   the messages, msgpack, one per WebSocket message
digest.py     the name of a snapshot's content
delta.py      the difference of two snapshots, and what comes of applying it
feed.py       control's end of one stream: what to send to a node, given what it has
"""

from edgetun_core.control_stream.delta import apply_delta, diff_snapshots
from edgetun_core.control_stream.digest import snapshot_digest
from edgetun_core.control_stream.feed import Changes, Feed, History
from edgetun_core.control_stream.messages import (
    IDENTITY_PATH,
    STREAM_PATH,
    Ack,
    Delta,
    Drain,
    Full,
    IdentityAnswer,
    IdentityRequest,
    Move,
    NodeHello,
    NodeLoad,
    PeerChange,
    Peers,
    Presence,
    Resync,
    SessionInfo,
    Standing,
    Unknown,
    decode_from_control,
    decode_from_node,
    encode,
)

__all__ = [
    "IDENTITY_PATH",
    "STREAM_PATH",
    "Ack",
    "Changes",
    "Delta",
    "Drain",
    "Feed",
    "Full",
    "History",
    "IdentityAnswer",
    "IdentityRequest",
    "Move",
    "NodeHello",
    "NodeLoad",
    "PeerChange",
    "Peers",
    "Presence",
    "Resync",
    "SessionInfo",
    "Standing",
    "Unknown",
    "apply_delta",
    "decode_from_control",
    "decode_from_node",
    "diff_snapshots",
    "encode",
    "snapshot_digest",
]

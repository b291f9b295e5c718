"""What the two ends of a session say to each other about the session: hello, welcome, refusal, drain, close.

The payloads are msgpack maps. A reader ignores names it does not know and uses the default for names that are missing, so a
version may add to them; that is how an agent N speaks to an exit node N-1 and N+1. Hello and welcome say everything,
defaults included: the defaults of a later version may be others.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from edgetun_core.wire.frames import SessionBroken, name_of

VERSIONS: Final = (1,)
"""Protocol versions this code speaks."""

EXCHANGE_WINDOW_BYTES: Final = 256 * 1024
SHORT_PATH_WINDOW_BYTES: Final = 2 * 1024 * 1024
"""As far as an exchange's window is widened where a round trip takes less than 10 ms: more would only leave the processor's cache."""
MAX_EXCHANGE_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""The same on longer paths. 200 ms of 100 Mbit/s are 2.5 MB, and as much again is under way behind each lost packet until it is there."""
SESSION_WINDOW_BYTES: Final = 16 * 1024 * 1024
MAX_SESSION_WINDOW_BYTES: Final = 64 * 1024 * 1024
MIN_WINDOW_BYTES: Final = 16 * 1024
MAX_EXCHANGES: Final = 10_000
MAX_WEIGHT: Final = 100

PING_INTERVAL_S: Final = 5.0
DEAD_AFTER_S: Final = 15.0
CONNECT_TIMEOUT_S: Final = 5.0


class Windows(Struct, frozen=True, kw_only=True):
    """What one end is ready to take, announced to the other."""

    exchange_window: int = EXCHANGE_WINDOW_BYTES
    """Bytes of body in flight per exchange before the first CREDIT."""
    session_window: int = SESSION_WINDOW_BYTES
    """Bytes of body in flight over all exchanges before the first CREDIT of exchange 0."""
    max_exchanges: int = MAX_EXCHANGES
    """Exchanges of the other end's opening that may be in flight at one time."""


class Hello(Windows, frozen=True, kw_only=True):
    """The agent's first frame, and lane 0's."""

    versions: tuple[int, ...] = VERSIONS
    agent_id: str = ""
    session_id: str = ""
    """16 random bytes in hex, made once per session and kept over its reconnects."""
    credential: str = ""
    services: tuple[str, ...] = ()
    """Tunnels served, `"namespace/name"`."""
    software: str = ""
    """Name and version for people, such as `"edgetun/0.1.0"`."""
    features: tuple[str, ...] = ()
    instance: str = ""
    """Of the agent's process, made when it starts. A hello of the same agent with another one is a reason to ask whether its
    older sessions are alive."""
    weight: int = 1
    """Share of the requests beside other agents of the same tunnel, 1 to `MAX_WEIGHT`."""
    standby: bool = False
    """Serves only while no other agent does."""

    @property
    def served_weight(self) -> int:
        """The weight within its bounds, whatever was said."""
        return min(max(self.weight, 1), MAX_WEIGHT)

    def __repr__(self) -> str:
        """Without the credential: a hello may stand in a log."""
        return f"Hello(agent_id={self.agent_id!r}, session_id={self.session_id!r}, services={self.services!r})"


class Welcome(Windows, frozen=True, kw_only=True):
    """The exit node's answer to a hello it accepts."""

    version: int = 1
    """The version spoken from here on; `Session` sets it."""
    node: str = ""
    services: tuple[str, ...] = ()
    """Tunnels accepted."""
    refused: tuple[tuple[str, str], ...] = ()
    """Tunnels refused, each with a reason for people."""
    server_time: float = 0.0
    """Unix time at the exit node, for telling clock skew."""
    ping_interval_s: float = PING_INTERVAL_S
    """How often each end sends PING over every lane."""
    dead_after_s: float = DEAD_AFTER_S
    """How long each end waits without a byte before it gives the other up."""
    software: str = ""
    features: tuple[str, ...] = ()


class Refusal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The exit node's answer to a hello it does not accept; the session closes after it."""

    code: int = 0x04
    """A close code of `errors.py`."""
    reason: str = ""
    """For the person at the agent: the thing, what is wrong, what to do."""
    retry_after_s: float = 0.0
    """When trying again may help; 0 leaves it to the agent, negative means never with the same hello."""


class Drain(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """No more exchanges are opened by whoever says this, nor should the other open any.

    `last_opened` is the highest exchange id the sender has opened (0: none).
    """

    deadline_s: float = 30.0
    reason: str = ""
    last_opened: int = 0


class Close(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The session ends with this frame. `code` 0 is good order, others are those of `errors.py`."""

    code: int = 0
    reason: str = ""


ControlT = TypeVar("ControlT", Hello, Welcome, Refusal, Drain, Close)

_encoder = msgspec.msgpack.Encoder()


def encode_control(message: Hello | Welcome | Refusal | Drain | Close) -> bytes:
    """The payload of a control frame."""
    return _encoder.encode(message)


def decode_control(kind: int, payload: bytes, shape: type[ControlT]) -> ControlT:
    """Reads a control payload; raises `SessionBroken` when it has not the shape."""
    try:
        return msgspec.msgpack.decode(payload, type=shape)
    except msgspec.MsgspecError as error:
        raise SessionBroken(f"{name_of(kind)} frame cannot be read: {error}") from None
    except (ValueError, RecursionError):  # UnicodeDecodeError is no MsgspecError
        raise SessionBroken(f"{name_of(kind)} frame cannot be read") from None

"""What an exit node tells control about its sessions: what changed since it last did, gathered and bounded. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from edgetun_core.control_stream import NodeLoad, Presence, SessionInfo
from edgetun_core.control_stream.messages import (
    MOST_PORTS_PER_MESSAGE,
    MOST_SESSIONS_PER_PRESENCE,
    MOST_TUNNELS_PER_MESSAGE,
)

RTT_CHANGE: Final = 0.25
"""A round trip is told anew when it differs by this part of what was told, and by `RTT_CHANGE_S`."""
RTT_CHANGE_S: Final = 0.002


class Told:
    """What control was told over the present stream. `begin` with every new one."""

    def __init__(self) -> None:
        self._sessions: dict[str, SessionInfo] = {}
        self._load: NodeLoad | None = None
        self._ports: dict[str, str] = {}
        self._is_fresh = True

    def begin(self) -> None:
        """Control has heard nothing yet."""
        self._sessions = {}
        self._load = None
        self._ports = {}
        self._is_fresh = True

    def report(
        self, sessions: Mapping[str, SessionInfo], load: NodeLoad, ports: Mapping[str, str] | None = None
    ) -> list[Presence]:
        """The messages that bring control from what it was told to what is; none when nothing is worth telling.

        `ports`: why the node cannot listen on the port of a tunnel, by its id.
        """
        unavailable = dict(sorted((ports or {}).items())[:MOST_PORTS_PER_MESSAGE])
        opened = [info for key, info in sessions.items() if self._is_news(info, self._sessions.get(key))]
        closed = [key for key in self._sessions if key not in sessions]
        messages: list[Presence] = []
        is_load_news = load != self._load
        are_ports_news = self._is_fresh or unavailable != self._ports
        while opened or closed or is_load_news or are_ports_news or self._is_fresh:
            count = _how_many(opened)
            some, opened = tuple(opened[:count]), opened[count:]
            gone, closed = tuple(closed[:MOST_SESSIONS_PER_PRESENCE]), closed[MOST_SESSIONS_PER_PRESENCE:]
            told_ports = unavailable if are_ports_news else None
            messages.append(Presence(self._is_fresh, some, gone, load if is_load_news else None, told_ports))
            self._is_fresh = is_load_news = are_ports_news = False
            self._sessions.update((info.session_id, info) for info in some)
            for key in gone:
                self._sessions.pop(key, None)
        self._load = load
        self._ports = unavailable
        return messages

    @staticmethod
    def _is_news(info: SessionInfo, told: SessionInfo | None) -> bool:
        if told is None or _what_matters(info) != _what_matters(told):
            return True
        change_s = abs(info.rtt_s - told.rtt_s)
        return change_s > RTT_CHANGE_S and change_s > RTT_CHANGE * told.rtt_s


def _what_matters(info: SessionInfo) -> tuple[object, ...]:
    return info.transport, info.since, info.tunnels, info.weight, info.standby


def _how_many(opened: list[SessionInfo]) -> int:
    """How many of these fit in one message; at least one, if there is one."""
    tunnels = 0
    for count, info in enumerate(opened[:MOST_SESSIONS_PER_PRESENCE]):
        tunnels += len(info.tunnels)
        if tunnels > MOST_TUNNELS_PER_MESSAGE and count:
            return count
    return min(len(opened), MOST_SESSIONS_PER_PRESENCE)

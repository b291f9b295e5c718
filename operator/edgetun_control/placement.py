"""Where an agent shall hold its sessions: the seam that a fleet of regions will fill.

A server on its own has the exit nodes that it was started with, and offers all of them.
"""

from __future__ import annotations

from typing import Protocol

from edgetun_core.enrollment import Endpoint, EnrollRequest


class Placement(Protocol):
    """Chooses exit nodes for an agent."""

    def place(self, request: EnrollRequest, services: tuple[str, ...], now: float) -> tuple[Endpoint, ...]:
        """The exit nodes to connect to, best first; empty when none has room."""
        ...


class FixedPlacement:
    """The same exit nodes for everybody."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.endpoints = endpoints

    def place(self, request: EnrollRequest, services: tuple[str, ...], now: float) -> tuple[Endpoint, ...]:
        return self.endpoints

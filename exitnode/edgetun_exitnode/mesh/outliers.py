"""Which exit nodes are left out though they hold a session: those that fail again and again, and those that became slow. Pure.

As Envoy means outlier detection: each node is judged by what this one sees of it, put out for a time that grows with every
time, probed meanwhile, and taken back when it does well. A node far away is not slow: it is compared with the best that it
has shown itself. The last one that is left is never put out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

FAILURES: Final = 2
"""Lost sessions and unanswered probes in a row that put a node out."""
SLOW_S: Final = 0.25
SLOW_TIMES: Final = 5.0
"""Slow: probes take longer than `SLOW_S`, and than so many times the best."""
SMOOTHING: Final = 0.4
BEST_DRIFT: Final = 1.01
"""By how much the best grows with each probe, so that a way that became longer is judged by itself in the end."""
OUT_FIRST_S: Final = 5.0
OUT_MOST_S: Final = 120.0
FORGIVEN_S: Final = 300.0
"""How long a node must do well before its next time out is a short one again."""


@dataclass(slots=True)
class _Record:
    failures: int = 0
    best_s: float = 0.0
    smoothed_s: float = 0.0
    out_until: float = 0.0
    times_out: int = 0
    last_out: float = 0.0
    is_out: bool = False


class Outliers:
    """What is known of each peer. Times are the monotonic clock's seconds."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}
        self.ejected_total = 0

    def is_out(self, node: str) -> bool:
        """Whether a node is left out now."""
        record = self._records.get(node)
        return record is not None and record.is_out

    @property
    def out(self) -> list[str]:
        """Those that are left out now."""
        return [node for node, record in self._records.items() if record.is_out]

    def usable(self, nodes: Sequence[str]) -> list[str]:
        """Those of `nodes` that are not left out; all of them when none would be left."""
        return [node for node in nodes if not self.is_out(node)] or list(nodes)

    def answered(self, node: str, took_s: float, now: float) -> bool:
        """A probe was answered; True when the node is out or back because of it."""
        record = self._records.setdefault(node, _Record())
        record.failures = 0
        record.best_s = min(took_s, record.best_s * BEST_DRIFT) if record.best_s else took_s
        record.smoothed_s += (took_s - record.smoothed_s) * (SMOOTHING if record.smoothed_s else 1.0)
        is_slow = record.smoothed_s > max(SLOW_S, SLOW_TIMES * record.best_s)
        if record.is_out:
            if now < record.out_until or is_slow:
                return False
            record.is_out = False
            return True
        return is_slow and self._put_out(record, now)

    def failed(self, node: str, now: float) -> bool:
        """A session was lost, or a probe not answered; True when the node is out because of it."""
        record = self._records.setdefault(node, _Record())
        record.failures += 1
        if record.is_out:
            record.out_until = max(record.out_until, now + OUT_FIRST_S)
            return False
        return record.failures >= FAILURES and self._put_out(record, now)

    def forget(self, node: str) -> None:
        """The node is gone."""
        self._records.pop(node, None)

    def _put_out(self, record: _Record, now: float) -> bool:
        if now - record.last_out > FORGIVEN_S:
            record.times_out = 0
        record.out_until = now + min(OUT_MOST_S, OUT_FIRST_S * 2**record.times_out)
        record.times_out = min(record.times_out + 1, 16)
        record.last_out = now
        record.is_out = True
        self.ejected_total += 1
        return True

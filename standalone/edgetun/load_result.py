"""What a load test found out: counted while it runs, read by the live display, the report, the demo and the benchmarks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from edgetun.histogram import Histogram

MAX_BODIES: Final = 10_000  # distinct bodies told apart; what comes later counts as one more


@dataclass(slots=True)
class LoadResult:
    """Counts of one run. While it runs they grow; `elapsed_s` is then the time so far.

    `started` requests end as `answered` (a complete response with any status) or as one of `errors`, by kind, of each of which
    `examples` keeps one message. `latency` runs from when a request was due to its last byte, `connecting` from dialling to
    the connection (TLS included). `cache` counts `Cache-Status` outcomes, the empty string standing for no such field.
    """

    url: str = ""
    planned: int | None = None
    started: int = 0
    answered: int = 0
    elapsed_s: float = 0.0
    arriving_s: float = 0.0
    connections: int = 0
    open: int = 0
    peak_open: int = 0
    asking: int = 0
    peak_asking: int = 0
    body_bytes: int = 0
    cpu_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    cache: Counter[str] = field(default_factory=Counter)
    bodies: Counter[bytes] = field(default_factory=Counter)
    unlike_bodies: int = 0
    latency: Histogram = field(default_factory=Histogram)
    connecting: Histogram = field(default_factory=Histogram)

    @property
    def failed(self) -> int:
        return self.errors.total()

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def distinct_bodies(self) -> int:
        """How many different bodies came with statuses below 300; beyond 10,000 it counts no further."""
        return len(self.bodies) + (1 if self.unlike_bodies else 0)

    @property
    def is_clean(self) -> bool:
        """Everybody was answered, and nobody by a 5xx."""
        return not self.failed and self.answered > 0 and not any(status >= 500 for status in self.statuses)

    def count_body(self, digest: bytes) -> None:
        if len(self.bodies) < MAX_BODIES or digest in self.bodies:
            self.bodies[digest] += 1
        else:
            self.unlike_bodies += 1

    def as_json(self) -> dict[str, Any]:
        """The result for machines; times in milliseconds where the name says so."""
        return {
            "url": self.url,
            "requests": {"started": self.started, "answered": self.answered, "failed": self.failed},
            "elapsed_s": round(self.elapsed_s, 4),
            "arriving_s": round(self.arriving_s, 4),
            "rate_per_s": round(self.rate, 1),
            "latency_ms": _summary(self.latency),
            "connecting_ms": _summary(self.connecting),
            "connections": {"opened": self.connections, "peak_open": self.peak_open, "peak_waiting": self.peak_asking},
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "errors": dict(self.errors.most_common()),
            "error_examples": dict(self.examples),
            "cache": {outcome or "none": count for outcome, count in self.cache.most_common()},
            "bodies": {
                "distinct": self.distinct_bodies,
                "bytes": self.body_bytes,
                "most_common": [{"digest": digest.hex(), "count": n} for digest, n in self.bodies.most_common(5)],
            },
            "load_generator_cpu_s": round(self.cpu_s, 3),
            "is_clean": self.is_clean,
        }


def _summary(histogram: Histogram) -> dict[str, float]:
    return {
        "min": histogram.minimum / 1000,
        "mean": round(histogram.mean_us / 1000, 3),
        "p50": histogram.percentile(50) / 1000,
        "p90": histogram.percentile(90) / 1000,
        "p99": histogram.percentile(99) / 1000,
        "p99.9": histogram.percentile(99.9) / 1000,
        "max": histogram.maximum / 1000,
    }

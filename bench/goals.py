"""What the figures should be, and whether they are: one line per goal, worked out from the records."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Records = Mapping[str, Mapping[str, Any]]

TLS, QUIC = "edgetun TLS", "edgetun QUIC (qh3)"
DIRECT, RELAYED = "direct, TLS session", "relayed, TLS session"
NGINX = "nginx reverse proxy (no tunnel)"


@dataclass(frozen=True, slots=True)
class Goal:
    """`measure` reads the records; `at_least` (or `at_most`) is the bound."""

    text: str
    measure: Callable[[Records], float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"

    def line(self, records: Records) -> str | None:
        """A row of the table; None when nothing was recorded."""
        try:
            value = self.measure(records)
        except (KeyError, ZeroDivisionError):
            return None
        is_met = (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"| {self.text} | {bound} {self.unit} | {value:.3g} {self.unit} | {'yes' if is_met else '**no**'} |"


def _figure(script: str, subject: str, name: str) -> Callable[[Records], float]:
    return lambda records: float(statistics.median(records[script]["figures"][subject][name]))


def _ratio(script: str, name: str, ours: str, theirs: str) -> Callable[[Records], float]:
    return lambda records: _figure(script, ours, name)(records) / _figure(script, theirs, name)(records)


def _cells_met(script: str) -> Callable[[Records], float]:
    """The share of cells in which edgetun is at least as good as the best of the others, in percent."""

    def share(records: Records) -> float:
        ratios = [statistics.median(cell["ratio"]) for cell in records[script]["figures"].values() if "ratio" in cell]
        return 100 * sum(ratio >= 1 for ratio in ratios) / len(ratios)

    return share


_BAD_LINK = [
    Goal(f"over a bad link, {what}: cells in which edgetun is the best", _cells_met(script), at_least=100, unit="%")
    for what, script in (("requests", "lossy"), ("p99", "lossy-p99"), ("bulk", "lossy-bulk"))
]
_RECOVERY = [
    Goal(f"first answer after the exit node is back, {who}", _figure("recovery", name, "away"), at_most=1, unit="s")
    for who, name in (("QUIC", "edgetun"), ("TLS", "edgetun TLS"))
] + [
    Goal(f"first answer after {what}, {who}", _figure("recovery", name, case), at_most=2, unit="s")
    for what, case in (("the agent is cut off", "cut"), ("kill -9 of the agent", "agent"), ("kill -9 of the exit node", "edge"))
    for who, name in (("QUIC", "edgetun"), ("TLS", "edgetun TLS"))
]  # fmt: skip

TEN, TEN_THOUSAND = "10 tunnels", "10,000 tunnels"


def _reconcile_growth(records: Records) -> float:
    """What operator and control spend on one tunnel among 10,000, over what they do among 10."""

    def spent(subject: str) -> float:
        return sum(_figure("fleet", subject, who)(records) for who in ("operator", "control"))

    return spent(TEN_THOUSAND) / spent(TEN)


_FLEET = [
    Goal("fleet of 10,000: apply to served, p50", _figure("fleet", TEN_THOUSAND, "p50"), at_most=250, unit="ms"),
    Goal("fleet of 10,000: apply to served, p99", _figure("fleet", TEN_THOUSAND, "p99"), at_most=1000, unit="ms"),
    Goal("reconcile cost of a tunnel, among 10,000 over among 10", _reconcile_growth, at_most=1.2),
    Goal("full compile of 10,000, CPU", _figure("fleet-compile", TEN_THOUSAND, "compile"), at_most=2, unit="s"),
    Goal("one change to an exit node of 10,000", _figure("fleet", TEN_THOUSAND, "delta"), at_most=2048, unit="bytes"),
    Goal("idle API requests, 10,000 over 10", _ratio("fleet", "idle", TEN_THOUSAND, TEN), at_most=1.2),
    Goal("1,000 agents at once: all placed", _figure("fleet-agents", "1,000 agents", "all"), at_most=20, unit="s"),
    Goal("the same: errors", _figure("fleet-agents", "1,000 agents", "errors"), at_most=0, unit=""),
    Goal("operator at 10,000 tunnels, RSS", _figure("fleet-whole", "operator", "rss"), at_most=300, unit="MB"),
    Goal("control at 10,000 tunnels, RSS", _figure("fleet-whole", "control", "rss"), at_most=300, unit="MB"),
    Goal("operator restarted: objects rewritten", _figure("fleet-whole", "operator", "rewritten"), at_most=0, unit=""),
]

GOALS = [
    Goal("10,000 visitors in 2 s, TTL 1 s: origin requests", _figure("crowd", "edgetun http", "origin"), at_most=2, unit=""),
    Goal("the same: errors", _figure("crowd", "edgetun http", "errors"), at_most=0, unit=""),
    Goal("cached 1 KB, over nginx proxy_cache", _ratio("cached", "rps", "edgetun", "nginx proxy_cache"), 1.5),
    Goal("cached 1 KB over TLS 1.3, over nginx", _ratio("cached-tls", "rps", "edgetun", "nginx proxy_cache"), 1.2),
    Goal("cached 1 KB over HTTP/3, 4 x 16, over caddy", _ratio("http3", "rps", "edgetun", "caddy (respond)"), 1.5),
    Goal("the same, 64 x 10", _ratio("http3-wide", "rps", "edgetun", "caddy (respond)"), 1.5),
    Goal("cached 1 KB over HTTP/2, over nginx", _ratio("http2", "rps", "edgetun", "nginx proxy_cache"), 1.0),
    Goal("new TLS connection and request: CPU, over nginx", _ratio("cached-handshake", "cpu", "edgetun", "nginx proxy_cache"), at_most=1.3),
    Goal("cached 100 KB, HTTP/1.1: bytes per CPU second, over nginx", _ratio("cached-100k", "mb_cpu", "edgetun", "nginx proxy_cache"), 0.8),
    Goal("cached 100 KB, HTTP/2: bytes per CPU second, over nginx", _ratio("http2-100k", "mb_cpu", "edgetun", "nginx proxy_cache"), 0.8),
    Goal("a hit with 100,000 objects stored, over one with 10", _ratio("cache-scale", "hot", "100,000 objects", "10 objects"), at_most=1.1),
    Goal("the same with Vary", _ratio("cache-scale", "vary", "100,000 objects", "10 objects"), at_most=1.1),
    Goal("pass-through TLS, over nginx as a plain proxy", _ratio("passthrough", "rps", TLS, NGINX), 0.5),
    Goal("pass-through TLS, over frp tcp TLS", _ratio("passthrough", "rps", TLS, "frp tcp, TLS"), 2),
    Goal("pass-through TLS, over rathole TLS", _ratio("passthrough", "rps", TLS, "rathole TLS"), 1.5),
    Goal("pass-through TLS, over frp http TLS", _ratio("passthrough", "rps", TLS, "frp http, TLS"), 10),
    Goal("pass-through TLS, over piko", _ratio("passthrough", "rps", TLS, "piko (no TLS)"), 10),
    Goal("pass-through QUIC, over frp tcp QUIC", _ratio("passthrough", "rps", QUIC, "frp tcp, QUIC"), 1.5),
    Goal("pass-through QUIC, over frp http QUIC", _ratio("passthrough", "rps", QUIC, "frp http, QUIC"), 10),
    Goal("one visitor, p50 added, TLS", _figure("latency", TLS, "added"), at_most=0.35, unit="ms"),
    Goal("one visitor, p50 added, QUIC", _figure("latency", QUIC, "added"), at_most=0.35, unit="ms"),
    Goal("one visitor, p50 added: frp tcp TLS over ours TLS", _ratio("latency", "added", "frp tcp, TLS", TLS), 1),
    Goal("one visitor, p50 added: frp tcp QUIC over ours QUIC", _ratio("latency", "added", "frp tcp, QUIC", QUIC), 1),
    Goal("relayed by another exit node: p50 added", _figure("relay", RELAYED, "added"), at_most=0.3, unit="ms"),
    Goal("the same: CPU of everything, over a direct session", _ratio("relay", "cpu", RELAYED, DIRECT), at_most=1.3),
    Goal(
        "the same: CPU of the relaying node, over a node with the session",
        _ratio("relay", "visitors", RELAYED, DIRECT),
        at_most=1.3,
    ),
    Goal("bulk down TLS, over frp TLS", _ratio("bulk", "down1", TLS, "frp tcp, TLS"), 1.2),
    Goal("bulk up TLS, over frp TLS", _ratio("bulk", "up1", TLS, "frp tcp, TLS"), 1.2),
    Goal("bulk down QUIC, over frp QUIC", _ratio("bulk", "down1", QUIC, "frp tcp, QUIC"), 1.5),
    Goal("bulk up QUIC, over frp QUIC", _ratio("bulk", "up1", QUIC, "frp tcp, QUIC"), 1.5),
    Goal(
        "bulk TLS, 8 streams over 1",
        lambda records: _figure("bulk", TLS, "down8")(records) / _figure("bulk", TLS, "down1")(records),
        0.95,
    ),
    Goal(
        "bulk QUIC, 8 streams over 1",
        lambda records: _figure("bulk", QUIC, "down8")(records) / _figure("bulk", QUIC, "down1")(records),
        0.95,
    ),
    Goal("RSS after 1 GB, TLS", _figure("bulk-memory", TLS, "grown"), at_most=64, unit="MB"),
    Goal("RSS after 1 GB, QUIC", _figure("bulk-memory", QUIC, "grown"), at_most=64, unit="MB"),
    Goal("RSS with a slow reader, TLS", _figure("bulk-memory", TLS, "slow"), at_most=16, unit="MB"),
    Goal("RSS with a slow reader, QUIC", _figure("bulk-memory", QUIC, "slow"), at_most=16, unit="MB"),
    Goal("TCP tunnel, bulk down TLS, over rathole TLS", _ratio("streams", "down", TLS, "rathole TLS"), 1),
    Goal("TCP tunnel, bulk up TLS, over rathole TLS", _ratio("streams", "up", TLS, "rathole TLS"), 1),
    Goal("TCP tunnel, connections per second TLS, over rathole TLS", _ratio("streams", "connects", TLS, "rathole TLS"), 1),
    Goal("UDP tunnel, datagrams per second TLS, over frp TLS", _ratio("streams-udp", "rate", TLS, "frp udp, TLS"), 1),
    Goal("UDP tunnel, datagrams per second QUIC, over frp QUIC", _ratio("streams-udp", "rate", QUIC, "frp udp, QUIC"), 1),
    Goal("idle visitor, exit node", _figure("idle", TLS, "edge"), at_most=4096, unit="bytes"),
    Goal("idle visitor, plain, exit node alone", _figure("idle-tls", "edgetun, plain", "edge"), at_most=4096, unit="bytes"),
    Goal("idle visitor, TLS, exit node alone", _figure("idle-tls", "edgetun, TLS", "edge"), at_most=30_000, unit="bytes"),
    Goal("idle visitor, HTTP/2 over TLS, exit node alone", _figure("idle-tls", "edgetun, HTTP/2 over TLS", "edge"), at_most=30_000, unit="bytes"),
    Goal("idle visitor, agent", _figure("idle", TLS, "agent"), at_most=64, unit="bytes"),
    Goal("exit node with 1,000 agents (TLS) and 10,000 idle visitors, RSS", _figure("full-node", "agents over TLS", "whole"), at_most=300, unit="MB"),
    Goal("the same, visitors without TLS", _figure("full-node", "agents over TLS, visitors without TLS", "whole"), at_most=300, unit="MB"),
    Goal("the same, agents over QUIC", _figure("full-node", "agents over QUIC (qh3)", "whole"), at_most=300, unit="MB"),
    Goal("`edgetun http` ready", _figure("startup", "edgetun http, first answer from the origin", "ready"), at_most=1000, unit="ms"),
    *_BAD_LINK,
    *_RECOVERY,
    *_FLEET,
    Goal("exit node alone ready", _figure("startup", "edgetun-exitnode, first answer (404)", "ready"), at_most=300, unit="ms"),
]  # fmt: skip


def goals_section(records: Records) -> str:
    """The table of goals, as Markdown."""
    lines = [line for goal in GOALS if (line := goal.line(records)) is not None]
    rows = "\n".join(["| goal | wanted | measured | met |", "| --- | --- | --- | --- |", *lines])
    return f"## Goals\n\nMedians of the runs below; a ratio is ours over theirs.\n\n{rows}\n"

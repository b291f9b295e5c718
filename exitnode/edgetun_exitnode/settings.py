"""Settings of `edgetun-exitnode`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from edgetun_core.errors import ConfigError
from edgetun_core.settings import REQUIRED, setting


@dataclass(frozen=True, slots=True)
class ExitNodeSettings:
    """One exit node as a process of its own. It obeys a snapshot file, or follows control and serves on while that is away."""

    section: ClassVar[str] = "exitnode"

    snapshot: Path | None = setting(
        None,
        "Snapshot to obey, as `edgetun compile` writes it; taken anew when it changes. Instead of --control. "
        "A snapshot of manifests alone admits no agent: agents' keys come from control.",
    )
    control: str = setting("", "Control to follow, https://HOST:PORT. Instead of --snapshot.", metavar="URL")
    control_ca: Path | None = setting(None, "CA (PEM) of control's certificate. Default: the system's CAs.")
    control_token_file: Path = setting(
        Path("/var/run/secrets/edgetun.dev/token"),
        "File with the ServiceAccount token (audience edgetun-control) that proves this node to control.",
    )
    pool: str = setting("default", "With --control: the exit pool that this node belongs to.")
    region: str = setting("default", "With --control: the region of the pool.")
    tunnel_address: str = setting(
        "", "HOST:PORT by which agents reach this very node, where there is one.", metavar="HOST:PORT"
    )
    relay_host: str = setting(
        "",
        "With --control: address by which other exit nodes reach this one, to relay visitors to the agents that are connected "
        "here. Without it none does.",
        metavar="HOST",
    )
    relay_port: int = setting(
        7445, "Port for other exit nodes, TCP; 0 takes a free one, -1 none.", minimum=-1, maximum=65535
    )
    state: Path = setting(REQUIRED, "Folder for what a node keeps: a development CA, its identity, the last snapshot.")
    name: str = setting("exitnode", "This node's name, as agents and metrics show it.")
    listen: str = setting("0.0.0.0", "Address to listen on.")
    http_port: int = setting(8080, "Port for plain HTTP; 0 takes a free one, -1 none.", minimum=-1, maximum=65535)
    https_port: int = setting(8443, "Port for HTTPS; 0 takes a free one, -1 none.", minimum=-1, maximum=65535)
    http3: bool = setting(True, "Serve HTTP/3 on the HTTPS port over UDP, and tell visitors so (Alt-Svc).")
    tunnel_port: int = setting(
        7443, "Port for agents, TCP and UDP; 0 takes a free one, -1 none.", minimum=-1, maximum=65535
    )
    tunnel_name: tuple[str, ...] = setting(
        ("localhost", "127.0.0.1", "::1"), "Names and addresses by which agents reach this node, for its certificate."
    )
    certificate: tuple[str, ...] = setting(
        (), "CERT.pem:KEY.pem for visitors, chosen by their names; reloaded when they change.", metavar="CERT:KEY"
    )
    quic_engine: Literal["qh3", "aioquic", "none"] = setting("qh3", "QUIC implementation for agents.")
    cache_bytes: int = setting(256 * 1024 * 1024, "Memory for stored responses.", minimum=0)
    cache_bytes_per_tunnel: int = setting(0, "The most that one tunnel may hold of it; 0: no bound.", minimum=0)
    cache_disk_bytes: int = setting(
        0, "Disk for stored responses, which then outlive a restart; 0: none are kept on disk.", minimum=0
    )
    cache_folder: Path | None = setting(None, "Folder for them. Default: cache in the state folder.")
    max_connections: int = setting(15_000, "Visitors' connections per front.", minimum=1)
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz, /readyz and `edgetun purge`.", metavar="HOST:PORT")
    drain_s: float = setting(30.0, "How long requests in flight may take to end when stopped.", minimum=0)
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")


def parse_certificate_pairs(texts: Iterable[str], flag: str = "--certificate") -> list[tuple[Path, Path]]:
    """Reads CERT:KEY texts. Raises ConfigError that names the flag."""
    pairs = []
    for text in texts:
        cert, colon, key = text.partition(":")
        if not (colon and cert and key) or ":" in key:
            raise ConfigError(f'{flag}: "{text}" is not CERT:KEY', remedy="write it as cert.pem:key.pem")
        pairs.append((Path(cert), Path(key)))
    return pairs

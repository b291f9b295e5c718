"""The settings of each `edgetun` command. Light on purpose: `edgetun http` is ready within a second of its start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from edgetun_core.settings import REQUIRED, setting


def default_state_dir() -> Path:
    """Where the development CA and other things worth keeping live (XDG Base Directory)."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "edgetun"


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Puts a local HTTP server behind an exit node in this very process."""

    section: ClassVar[str] = "http"

    origin: str = setting(
        REQUIRED,
        "The local server: a port (3000), HOST:PORT, a URL, unix:///path.sock, or h2c://HOST:PORT (HTTP/2, gRPC).",
        positional=True,
    )
    host: str = setting(
        "", "Public name: one label (shop is shop.localhost) or a full hostname. Default: the folder's name."
    )
    cache_s: float = setting(
        0.0, "Keep storable answers for this long whatever the origin says (a micro-cache, e.g. 1s).", minimum=0
    )
    collapse: bool = setting(True, "Make identical requests in flight one request to the origin.")
    host_header: str = setting("preserve", "Host sent to the origin: preserve, origin, or a name.")
    origin_insecure: bool = setting(False, "Do not verify an https origin's certificate.")
    origin_ca: str = setting("", "CA file (PEM) to verify an https origin with.", metavar="FILE")
    listen: str = setting("127.0.0.1", "Address to listen on.")
    http_port: int = setting(8080, "Port for plain HTTP; 0 takes a free one, -1 none.", minimum=-1, maximum=65535)
    https_port: int = setting(8443, "Port for HTTPS; 0 takes a free one, -1 none.", minimum=-1, maximum=65535)
    http3: bool = setting(True, "Serve HTTP/3 on the HTTPS port over UDP, and tell visitors so (Alt-Svc).")
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz, /readyz and `edgetun purge`.", metavar="HOST:PORT")
    state: Path | None = setting(None, "Folder for the development CA. Default: ~/.local/share/edgetun.")
    drain_s: float = setting(10.0, "How long requests in flight may take to end after Ctrl-C.", minimum=0)
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only, and show no display.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")


@dataclass(frozen=True, slots=True)
class TcpSettings:
    """Puts a local TCP service behind an exit node in this very process: connections to --port go to it."""

    section: ClassVar[str] = "tcp"

    origin: str = setting(
        REQUIRED, "The local service: a port (5432), HOST:PORT, or unix:///path.sock.", positional=True
    )
    port: int = setting(0, "Port for visitors; 0 takes a free one.", minimum=0, maximum=65535)
    listen: str = setting("127.0.0.1", "Address to listen on.")
    proxy_protocol: Literal["none", "v1", "v2"] = setting(
        "none", "Tell the service who the visitor is, by a PROXY protocol header of this version."
    )
    max_connections: int = setting(10_000, "Connections at one time; one more is reset.", minimum=1)
    idle_s: float = setting(3600.0, "Close a connection that carried nothing for so long.", minimum=0.1)
    trusted_proxy: tuple[str, ...] = setting(
        (), "Network of a load balancer in front that says by PROXY protocol who the visitor is.", metavar="CIDR"
    )
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz and /readyz.", metavar="HOST:PORT")
    state: Path | None = setting(None, "Folder for what the admin listener needs. Default: ~/.local/share/edgetun.")
    drain_s: float = setting(10.0, "How long connections may take to end after Ctrl-C.", minimum=0)
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only, and show no display.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")


@dataclass(frozen=True, slots=True)
class UdpSettings:
    """Puts a local UDP service behind an exit node in this very process: datagrams to --port go to it, and answers back."""

    section: ClassVar[str] = "udp"

    origin: str = setting(REQUIRED, "The local service: a port (53) or HOST:PORT.", positional=True)
    port: int = setting(0, "Port for visitors; 0 takes a free one.", minimum=0, maximum=65535)
    listen: str = setting("127.0.0.1", "Address to listen on.")
    proxy_protocol: Literal["none", "v2"] = setting(
        "none", "Tell the service who the visitor is, by a PROXY protocol header before every datagram."
    )
    max_connections: int = setting(
        10_000, "Flows (visitors' addresses with ports) at one time; one more is dropped.", minimum=1
    )
    idle_s: float = setting(60.0, "Forget a flow that carried nothing for so long.", minimum=0.1)
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz and /readyz.", metavar="HOST:PORT")
    state: Path | None = setting(None, "Folder for what the admin listener needs. Default: ~/.local/share/edgetun.")
    drain_s: float = setting(1.0, "How long what is under way may take to end after Ctrl-C.", minimum=0)
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only, and show no display.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")


@dataclass(frozen=True, slots=True)
class UpSettings:
    """Runs the tunnels of manifest files in this very process."""

    section: ClassVar[str] = "up"

    file: tuple[str, ...] = setting(
        REQUIRED, "Manifest file or folder, or - for standard input.", short="-f", metavar="FILE"
    )
    pool: str = setting("", "ExitPool to be; default: the only one in the files, or a built-in one.")
    region: str = setting("", "Region of the pool to be; default: its first.")
    listen: str = setting("127.0.0.1", "Address to listen on.")
    http_port: int = setting(8080, "Port for plain HTTP; 0 takes a free one, -1 none.", minimum=-1, maximum=65535)
    https_port: int = setting(8443, "Port for HTTPS; 0 takes a free one, -1 none.", minimum=-1, maximum=65535)
    http3: bool = setting(True, "Serve HTTP/3 on the HTTPS port over UDP, and tell visitors so (Alt-Svc).")
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz, /readyz and `edgetun purge`.", metavar="HOST:PORT")
    state: Path | None = setting(None, "Folder for the development CA. Default: ~/.local/share/edgetun.")
    watch: bool = setting(True, "Take changes of the files without a restart.")
    drain_s: float = setting(10.0, "How long requests in flight may take to end after Ctrl-C.", minimum=0)
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only, and show no display.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """A public exit node with control built in, for one machine; its state is a folder."""

    section: ClassVar[str] = "serve"

    domain: str = setting("", "Domain whose subdomains agents may ask for (tunnel.example.com). Default: localhost.")
    public_host: str = setting(
        "", "Name or address by which agents reach this machine. Default: the domain, or 127.0.0.1."
    )
    listen: str = setting("0.0.0.0", "Address to listen on.")
    http_port: int = setting(80, "Port for plain HTTP; 0 takes a free one, -1 none.", minimum=-1, maximum=65535)
    https_port: int = setting(443, "Port for HTTPS; 0 takes a free one, -1 none.", minimum=-1, maximum=65535)
    http3: bool = setting(True, "Serve HTTP/3 on the HTTPS port over UDP, and tell visitors so (Alt-Svc).")
    tunnel_port: int = setting(7443, "Port for agents, TCP and UDP; 0 takes a free one.", minimum=0, maximum=65535)
    tcp_ports: str = setting(
        "20000-20099",
        "Ports that agents may take for TCP tunnels of their own, FROM-TO; empty: none.",
        metavar="FROM-TO",
    )
    udp_ports: str = setting("20000-20099", "The same for UDP.", metavar="FROM-TO")
    certificate: tuple[str, ...] = setting(
        (), "CERT.pem:KEY.pem for visitors, chosen by their names; reloaded when they change.", metavar="CERT:KEY"
    )
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz, /readyz and `edgetun purge`.", metavar="HOST:PORT")
    state: Path | None = setting(None, "State folder. Default: ~/.local/share/edgetun.")
    quic_engine: Literal["qh3", "aioquic", "none"] = setting("qh3", "QUIC implementation for agents.")
    drain_s: float = setting(30.0, "How long requests in flight may take to end when stopped.", minimum=0)
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only, and show no display.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Puts a real local server behind a crowd, and prints what reached it."""

    section: ClassVar[str] = "demo"

    visitors: int = setting(10_000, "Visitors, each with a connection of its own.", minimum=1, maximum=1_000_000)
    within_s: float = setting(2.0, "Over which time they arrive.", minimum=0)
    cache_s: float = setting(1.0, "Freshness lifetime of the micro-cache.", minimum=0)
    direct: bool = setting(True, "Send the same crowd straight to the local server too, to compare.")
    json: bool = setting(False, "Print the result as JSON.")

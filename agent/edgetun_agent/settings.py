"""Settings of `edgetun-agent`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from edgetun_core.settings import REQUIRED, setting
from edgetun_core.wire.hello import MAX_WEIGHT


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Connects a local server to the exit nodes of an edgetun server. Exit codes: 0 stopped in good order, 1 failure,
    2 a flag or setting is wrong, 3 the token or a name was refused, 4 the server or every exit node is out of reach.
    """

    section: ClassVar[str] = "agent"

    cluster_token: str = setting(REQUIRED, "Token from `edgetun token create`.", secret=True)
    origin: str = setting(
        "",
        "The local server: a port (3000), HOST:PORT, a URL, unix:///path.sock, h2c://HOST:PORT (HTTP/2, gRPC), tcp://HOST:PORT or "
        "udp://HOST:PORT. With --tunnel it replaces that tunnel's own.",
    )
    host: str = setting("", "Public name to ask for: one label, or a full hostname. Default: a generated one.")
    port: int = setting(
        0,
        "With a tcp:// or udp:// --origin: port of the exit node to ask for. Default: one that it chooses. With --host instead, "
        "TLS connections for that name go to the tcp:// --origin unopened.",
        minimum=0,
        maximum=65535,
    )
    proxy_protocol: Literal["none", "v1", "v2"] = setting(
        "none", "Tell a tcp:// or udp:// --origin who the visitor is, by a PROXY protocol header of this version."
    )
    tunnel: tuple[str, ...] = setting(
        (),
        "Tunnel to serve, NAMESPACE/NAME or a pattern (team-a/*). Default: all that the token may.",
        metavar="NS/NAME",
    )
    host_header: str = setting("preserve", "Host sent to --origin: preserve, origin, or a name.")
    origin_insecure: bool = setting(False, "Do not verify an https --origin's certificate.")
    origin_ca: str = setting("", "CA file (PEM) to verify an https --origin with.", metavar="FILE")
    cache_s: float = setting(
        0.0, "Let the exit node keep storable answers of --origin for this long (e.g. 1s).", minimum=0
    )
    transport: Literal["auto", "quic", "tls", "websocket"] = setting(
        "auto", "Transport of sessions; auto tries QUIC first, then TLS, then a WebSocket to the visitors' port."
    )
    engine: Literal["qh3", "aioquic"] = setting("qh3", "QUIC implementation.")
    proxy: str = setting(
        "",
        "Proxy to the outside, http://HOST:PORT or socks5://HOST:PORT, with USER:PASSWORD@ where it wants one. QUIC cannot take it.",
        secret=True,
        metavar="URL",
        also_env=("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"),
    )
    door: str = setting(
        "",
        "Visitors' port of an exit node that carries control too (edgetun serve): where registration goes in a WebSocket when the "
        "control URL cannot be reached or its TLS is opened on the way. Default: https://HOST of the control URL, port 443.",
        metavar="URL",
    )
    no_proxy: tuple[str, ...] = setting(
        (),
        "Name (with all below it), address, network or * that is reached without --proxy.",
        metavar="HOST",
        also_env=("NO_PROXY", "no_proxy"),
    )
    sessions: int = setting(2, "Sessions to keep open, to different exit nodes where there are.", minimum=1, maximum=16)
    spare_region: str = setting(
        "",
        "Region for the last of the sessions, beside those where the agent is placed: a region's name, or auto for the next best.",
        metavar="REGION",
    )
    weight: int = setting(
        1,
        "Share of a tunnel's requests beside other agents that serve it: with 3, three times what one with 1 gets.",
        minimum=1,
        maximum=MAX_WEIGHT,
    )
    standby: bool = setting(False, "Serve only while no other agent serves the tunnel.")
    name: str = setting("", "This agent's lasting name. Default: one made once and kept in the state folder.")
    state: Path | None = setting(None, "Folder for the agent's name. Default: ~/.local/share/edgetun.")
    metrics: str = setting("", "HOST:PORT for /metrics, /healthz and /readyz.", metavar="HOST:PORT")
    connect_timeout_s: float = setting(30.0, "How long the first connection may take before the agent gives up.")
    drain_s: float = setting(30.0, "How long requests in flight may take to end after Ctrl-C.", minimum=0)
    json: bool = setting(False, "Log as JSON lines.")
    quiet: bool = setting(False, "Log warnings and errors only.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Lowest level to log.")

"""`edgetun tcp 5432` and `edgetun udp 53`: a local service that speaks no HTTP behind an exit node, in one process."""

from __future__ import annotations

import ipaddress

from edgetun.foreground import foreground
from edgetun.local_edge import LocalEdge
from edgetun.settings import TcpSettings, UdpSettings, default_state_dir
from edgetun_agent.origin.address import read_stream_origin
from edgetun_core.errors import AddressUnavailable, ConfigError
from edgetun_core.exits import ExitCode
from edgetun_core.process import run_loop
from edgetun_core.snapshot import OriginRule, PoolRule, Snapshot, StreamRule, TunnelRule
from edgetun_exitnode.front.listening import bind_sockets, bind_udp_sockets, explain

TRIES = 5
"""A free port may be taken by somebody else before it is listened on."""


def run_tcp(settings: TcpSettings) -> int:
    """Runs until it is stopped; returns the exit code."""
    for network in settings.trusted_proxy:
        _check_network(network)
    return run_loop(_run(settings, "tcp", PoolRule(trusted_proxies=settings.trusted_proxy)))


def run_udp(settings: UdpSettings) -> int:
    """The same for UDP."""
    return run_loop(_run(settings, "udp", PoolRule()))


async def _run(settings: TcpSettings | UdpSettings, kind: str, pool: PoolRule) -> int:
    origin = OriginRule(
        "default",
        read_stream_origin(settings.origin, kind),
        proxy_protocol="" if settings.proxy_protocol == "none" else settings.proxy_protocol,
    )
    stream = StreamRule(kind, 0, settings.idle_s, settings.max_connections)
    async with foreground(settings) as shown:
        edge, port = await _listen(settings, origin, stream, pool)
        try:
            host = f"[{settings.listen}]" if ":" in settings.listen else settings.listen
            urls = [(f"{stream.kind}://{host}:{port}", origin.url)]
            await shown.serve(
                edge.node,
                lambda: urls,
                recent=edge.recent,
                origins=edge.origins,
                metrics=settings.metrics,
                state=settings.state,
            )
            await edge.drain(settings.drain_s)
        finally:
            await edge.close()
    return ExitCode.OK


async def _listen(
    settings: TcpSettings | UdpSettings, origin: OriginRule, stream: StreamRule, pool: PoolRule
) -> tuple[LocalEdge, int]:
    """An edge that listens; raises AddressUnavailable when the port that was asked for is taken."""
    for attempt in range(TRIES):
        port = settings.port or _free_port(stream.kind, settings.listen)
        edge = LocalEdge(quick_stream_snapshot(origin, stream, port, pool))
        try:
            await edge.listen(settings.listen, -1, -1, settings.state or default_state_dir())
        except AddressUnavailable as error:
            await edge.close()
            if settings.port or attempt == TRIES - 1:
                raise AddressUnavailable(error.message, remedy="choose another port with --port") from None
        except BaseException:
            await edge.close()
            raise
        else:
            return edge, port
    raise AssertionError("unreachable")


def quick_stream_snapshot(origin: OriginRule, stream: StreamRule, port: int, pool: PoolRule) -> Snapshot:
    """One tunnel at one port."""
    rule = StreamRule(
        stream.kind,
        port,
        stream.idle_timeout_s,
        stream.max_connections,
        stream.max_connections_per_address,
        stream.max_datagram_bytes,
        stream.limits,
    )
    return Snapshot(
        1, "local", "local", (TunnelRule(f"local/{stream.kind}", (), (origin,), (), stream=rule),), pool_rule=pool
    )


def _free_port(kind: str, host: str) -> int:
    try:
        sockets = bind_udp_sockets(host, 0) if kind == "udp" else bind_sockets(host, 0)
    except OSError as error:
        raise explain(error, host, 0, "--port") from error
    port = int(sockets[0].getsockname()[1])
    for sock in sockets:
        sock.close()
    return port


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f'--trusted-proxy: "{text}" is not a network', remedy="write it as 10.0.0.0/8 or 192.0.2.7"
        ) from None

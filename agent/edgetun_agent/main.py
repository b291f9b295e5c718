"""`edgetun-agent`: enrolls with the server that its token names, and stands before the local server. Only wires."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from edgetun_agent.by_websocket import WebSocketWay
from edgetun_agent.connect import Agent
from edgetun_agent.enroll import AdHocTunnel, ControlRefused, CredentialKeeper, Enrollment, EnrollRequest
from edgetun_agent.identity import default_state_dir, read_agent_id
from edgetun_agent.observe import RecentRequests
from edgetun_agent.origin.address import (
    check_ca_file,
    fit_protocol,
    read_host_header,
    read_origin,
    read_stream_origin,
    read_typed_origin,
)
from edgetun_agent.placing import Placing, renew_while_cut_off
from edgetun_agent.proxy import Proxy
from edgetun_agent.serve import Origins
from edgetun_agent.settings import AgentSettings
from edgetun_agent.tell import tell_requests
from edgetun_core import __version__
from edgetun_core.command_line import hide_arguments
from edgetun_core.credentials import ClusterToken
from edgetun_core.errors import ConfigError, EdgetunError, UpstreamUnreachable
from edgetun_core.exits import ExitCode, exit_code_of
from edgetun_core.logs import setup_logging
from edgetun_core.process import (
    StopSignals,
    parse_host_port,
    raise_open_files_limit,
    run_loop,
    seconds_since_start,
    settle,
)
from edgetun_core.settings import load_settings
from edgetun_core.snapshot import OriginRule, TunnelRule
from edgetun_core.wire.hello import Hello

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("edgetun.agent")

CARRIES = ("tcp", "udp")
SOFTWARE = f"edgetun/{__version__}"


def main() -> int:
    """Runs until it is stopped; the exit code is one of `ExitCode`."""
    started = time.monotonic()
    try:
        settings = load_settings(AgentSettings, sys.argv[1:], os.environ, prog="edgetun-agent")
        hide_arguments([settings.cluster_token, settings.proxy])
        setup_logging(json=settings.json, quiet=settings.quiet, level=settings.log_level)
        return run_loop(_run(settings, started))
    except EdgetunError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 130


async def _run(settings: AgentSettings, started: float) -> int:
    raise_open_files_limit()
    token = ClusterToken.parse(settings.cluster_token)
    request = build_request(settings, read_agent_id(settings.name, settings.state or default_state_dir()))
    proxy = Proxy(settings.proxy, settings.no_proxy) if settings.proxy else None
    if proxy is not None:
        log.info("going out through %s; sessions are on TLS where it is used", proxy)
    signals = StopSignals()
    async with AsyncExitStack() as stack:
        door = build_door(settings, proxy)
        if door is not None:
            stack.push_async_callback(door.close)
        placing = Placing(
            token, request, quic_engine=settings.engine, transport=settings.transport, proxy=proxy, websocket=door
        )
        enrollment = await _unless_stopped(placing.enroll(), signals)
        if enrollment is None:
            return ExitCode.OK
        if settings.spare_region and not any(endpoint.spare for endpoint in enrollment.endpoints):
            log.warning(
                "--spare-region %s: no such region with an exit node, beside the one where this agent is placed; "
                "all sessions go there for now",
                settings.spare_region,
            )
        if enrollment.is_by_websocket:
            log.info("registered in a WebSocket to the visitors' port, since the control URL cannot be reached")
        recent = RecentRequests()
        origins = Origins(build_tunnels(enrollment.tunnels, settings), recent=recent)
        stack.push_async_callback(origins.close)
        keeper = CredentialKeeper(
            enrollment,
            placing.renew,
            on_renewed=lambda renewed: _take(renewed, agent, origins, settings, places),
            on_failed=lambda error: _give_up_or_wait(error, agent),
        )
        websocket = WebSocketWay(lambda host: enrollment.visitors.url(f"[{host}]" if ":" in host else host), proxy)
        agent = Agent(
            endpoints=enrollment.endpoints,
            trust=enrollment.trust,
            hello=lambda session_id: Hello(
                agent_id=request.agent_id,
                session_id=session_id,
                credential=keeper.current().credential,
                services=origins.services,
                software=SOFTWARE,
                weight=settings.weight,
                standby=settings.standby,
            ),
            handler=origins,
            on_refused=lambda _: keeper.renew_soon(),
            transport=settings.transport,
            quic_engine=settings.engine,
            sessions=settings.sessions,
            way=proxy,
            websocket=websocket,
        )
        stack.push_async_callback(agent.close)
        stack.push_async_callback(websocket.close)
        places = [enrollment.placed]
        agent.start()
        keeping = _keep(keeper, placing, agent)
        stack.push_async_callback(_end, keeping)
        if await _unless_stopped(_connected(agent, settings.connect_timeout_s), signals) is None:
            return ExitCode.OK
        for url, target in _urls(enrollment, settings):
            log.info("%s -> %s", url, target)
        log.info("ready in %.2f s; Ctrl-C to stop", seconds_since_start(started))
        settle()
        _start_admin(settings, agent, origins, stack)
        showing = _show(settings, agent, origins, recent, lambda: _urls(keeper.current(), settings))
        await _until_stopped(signals, (*keeping, asyncio.create_task(showing, name="show requests")))
        log.info("stopping: requests in flight may end; Ctrl-C again to stop at once")
        await agent.drain(settings.drain_s)
    return ExitCode.OK


def build_door(settings: AgentSettings, proxy: Proxy | None) -> WebSocketWay | None:
    """The way to control in a WebSocket; none where sessions may not go in one either."""
    if settings.door and urlsplit(settings.door).scheme not in ("http", "https"):
        raise ConfigError(f'--door "{settings.door}" is not a URL', remedy="write https://HOST:PORT")
    if settings.transport not in ("auto", "websocket"):
        if settings.door:
            raise ConfigError(
                f"--door is a WebSocket, and --transport {settings.transport} allows none",
                remedy="choose --transport auto, or leave --door away",
            )
        return None
    door = settings.door.rstrip("/")
    return WebSocketWay(lambda host: door or f"https://{f'[{host}]' if ':' in host else host}", proxy)


def build_request(settings: AgentSettings, agent_id: str) -> EnrollRequest:
    """What the agent asks control for: the tunnels named, or one of its own for `--origin`, or all that the token may serve."""
    check_ca_file(settings.origin_ca, "--origin-ca")
    host_header = read_host_header(settings.host_header)
    adhoc = None
    if settings.host and (settings.tunnel or not settings.origin):
        raise ConfigError(
            "--host is for a tunnel made from --origin; a tunnel of the server has the hostnames of its manifest",
            remedy="give --origin, and no --tunnel, or leave --host away",
        )
    if settings.origin and not settings.tunnel:
        adhoc = AdHocTunnel(
            read_origin(settings.origin),
            settings.host,
            host_header,
            settings.cache_s,
            settings.port,
            "" if settings.proxy_protocol == "none" else settings.proxy_protocol,
        )
    elif settings.port or settings.proxy_protocol != "none":
        raise ConfigError(
            "--port and --proxy-protocol are for a tunnel made from --origin; a tunnel of the server has its manifest's",
            remedy="give --origin tcp://localhost:5432, and no --tunnel, or leave them away",
        )
    if settings.spare_region and settings.sessions < 2:
        raise ConfigError(
            "--spare-region takes the last of two sessions or more, and --sessions is 1",
            remedy="give --sessions 2, or leave --spare-region away",
        )
    return EnrollRequest(agent_id, settings.tunnel, adhoc, SOFTWARE, carries=CARRIES, spare=settings.spare_region)


def build_tunnels(tunnels: Iterable[TunnelRule], settings: AgentSettings) -> list[TunnelRule]:
    """The rules as this machine follows them: `--origin` and what belongs to it win over what the manifests say."""
    if not settings.origin:
        return list(tunnels)
    return [
        msgspec.structs.replace(tunnel, origins=tuple(_own_origin(tunnel, one, settings) for one in tunnel.origins))
        for tunnel in tunnels
    ]


def _own_origin(tunnel: TunnelRule, origin: OriginRule, settings: AgentSettings) -> OriginRule:
    if tunnel.stream is not None:
        return msgspec.structs.replace(origin, url=read_stream_origin(settings.origin, tunnel.stream.kind))
    typed = read_typed_origin(settings.origin)
    return msgspec.structs.replace(
        origin,
        url=typed.url,
        protocol=typed.protocol or fit_protocol(origin.protocol, typed.url),
        host_header=settings.host_header,
        tls_verify=not settings.origin_insecure,
        tls_ca_file=settings.origin_ca,
    )


async def _show(
    settings: AgentSettings,
    agent: Agent,
    origins: Origins,
    recent: RecentRequests,
    urls: Callable[[], Sequence[tuple[str, str]]],
) -> None:
    """On a terminal a live display, otherwise (or with --json or --quiet) log lines; until it is cancelled."""
    if sys.stdout.isatty() and sys.stderr.isatty() and not settings.json and not settings.quiet:
        from edgetun_agent.screen import run_screen

        await run_screen(agent, origins, recent, urls)
    else:
        await tell_requests(recent)


def _urls(enrollment: Enrollment, settings: AgentSettings) -> list[tuple[str, str]]:
    """Where visitors find what."""
    return [
        (enrollment.visitors.url_of(tunnel, name), _origin_of(tunnel, settings))
        for tunnel in enrollment.tunnels
        for name in tunnel.address_names[:1]
    ]


def _origin_of(tunnel: TunnelRule, settings: AgentSettings) -> str:
    return build_tunnels([tunnel], settings)[0].origins[0].url


def _take(renewed: Enrollment, agent: Agent, origins: Origins, settings: AgentSettings, places: list[str]) -> None:
    """Does what a renewed enrollment says. `places` holds where the agent was placed before."""
    before = set(origins.services)
    origins.update(build_tunnels(renewed.tunnels, settings))
    agent.update(renewed.endpoints, renewed.trust)
    if set(origins.services) != before:
        log.info("the tunnels to serve have changed: %s", ", ".join(origins.services) or "none")
        agent.reopen("the tunnels to serve have changed")
    elif renewed.placed != places[-1]:
        agent.reopen(f"control places this agent on {renewed.placed}")
    places[:] = [renewed.placed]
    agent.retry_now()


def _give_up_or_wait(error: EdgetunError, agent: Agent) -> None:
    """A renewal failed. Without a session and with a token that counts no longer there is nothing left to wait for."""
    if isinstance(error, ControlRefused) and error.is_final and not agent.is_connected:
        raise error
    log.warning("the credential could not be renewed yet: %s", error)


async def _connected(agent: Agent, timeout_s: float) -> bool:
    try:
        await agent.connected(timeout_s)
    except TimeoutError:
        raise agent.last_error or UpstreamUnreachable(
            f"no exit node could be reached within {timeout_s:g} s", remedy="check the network and its firewalls"
        ) from None
    return True


async def _unless_stopped(work: Any, signals: StopSignals) -> Any:
    """The result of the work, or None when a signal came first."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.create_task(signals.wait())
    await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait((task,))
    return None


def _keep(keeper: CredentialKeeper, placing: Placing, agent: Agent) -> tuple[asyncio.Task[None], ...]:
    """What goes on beside the sessions; from the start, since control may know a better place before the first one opens."""
    return (
        asyncio.create_task(keeper.run(), name="renew the credential"),
        asyncio.create_task(placing.watch(keeper.renew_soon), name="watch control"),
        asyncio.create_task(
            renew_while_cut_off(lambda: agent.is_connected, keeper.renew_soon), name="renew while cut off"
        ),
    )


async def _end(tasks: tuple[asyncio.Task[None], ...]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _until_stopped(signals: StopSignals, others: tuple[asyncio.Task[None], ...]) -> None:
    stopping = asyncio.create_task(signals.wait(), name="stop signal")
    try:
        await asyncio.wait((stopping, *others), return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            if task.done():
                task.result()  # none of them has an end of its own
    finally:
        await _end((stopping, *others))


def _start_admin(settings: AgentSettings, agent: Agent, origins: Origins, stack: AsyncExitStack) -> None:
    if not settings.metrics:
        return
    from edgetun_core.admin import start_admin

    def collect() -> Iterable[Metric]:
        from edgetun_agent.metrics import collect_agent

        return collect_agent(agent, origins)

    host, port = parse_host_port(settings.metrics, "--metrics")
    admin = start_admin(host, port, collect, lambda: readiness(agent))
    stack.callback(admin.close)
    log.info("metrics at http://%s:%d/metrics", host, admin.port)


def readiness(agent: Agent) -> tuple[bool, dict[str, Any]]:
    """Whether a session takes requests, and what stands in the way."""
    sessions = agent.sessions
    error = agent.last_error
    details: dict[str, Any] = {
        "sessions": len(sessions),
        "serving": sum(not view.is_draining for view in sessions),
        "transports": sorted({view.transport for view in sessions}),
        "paths": [
            {"node": view.node, "transport": view.transport, "state": view.path}
            | ({} if view.changes_in_s is None else {"changes_in_s": round(view.changes_in_s, 1)})
            for view in sessions
        ],
    }
    if error is not None:
        details["last_error"] = str(error)
    return agent.is_connected, details


if __name__ == "__main__":
    sys.exit(main())

"""`edgetun serve`: a public exit node with control built in, for one machine. Its state is a folder.

Agents need one port, TCP and UDP: TLS there carries sessions (ALPN `edgetun/1`) and registration (`http/1.1`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from edgetun.foreground import foreground
from edgetun.manifests import certificates_of
from edgetun.settings import ServeSettings, default_state_dir
from edgetun.tokens import ServerFacts, remember_server
from edgetun_control.control import ControlSettings
from edgetun_control.folder_control import FolderControl
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.compile import pool_rule
from edgetun_core.enrollment import Endpoint, VisitorAddress
from edgetun_core.errors import ConfigError
from edgetun_core.exits import ExitCode
from edgetun_core.pki import DevelopmentCA
from edgetun_core.process import run_loop
from edgetun_exitnode.front.certificates import CertificateStore
from edgetun_exitnode.node import ExitNode, NodeLimits
from edgetun_exitnode.settings import parse_certificate_pairs

log = logging.getLogger("edgetun.serve")


def run(settings: ServeSettings) -> int:
    """Runs until it is stopped; returns the exit code."""
    return run_loop(_run(settings))


async def _run(settings: ServeSettings) -> int:
    async with foreground(settings) as shown:
        state = settings.state or default_state_dir()
        domain = settings.domain or "localhost"
        public_host = settings.public_host or settings.domain or "127.0.0.1"
        ports = {
            "tcp": read_ports(settings.tcp_ports, "--tcp-ports"),
            "udp": read_ports(settings.udp_ports, "--udp-ports"),
        }
        ca = DevelopmentCA(state / "ca")
        control = FolderControl(
            state,
            ControlSettings(
                domain=domain, own_hostnames=frozenset({public_host, domain}), ports=lambda kind: ports.get(kind, ())
            ),
            ca_pem=ca.ca_pem,
        )
        await control.start()
        # An ExitPool among the manifests in the state folder sets this node's limits and certificates, at its start.
        pools = [found for found in control.store.state.manifests.resources if isinstance(found, ExitPool)]
        node = ExitNode("serve", limits=NodeLimits.of(pool_rule(pools[0].spec)) if pools else None)
        node.open_disk(state / "cache")
        unsubscribe = control.publisher.subscribe(node.apply)
        try:
            await _listen_for_visitors(node, settings, ca, certificates_of(pools))
            await node.listen_streams(settings.listen)
            identity = ca.identity(list(dict.fromkeys([public_host, "localhost", "127.0.0.1", "::1"])))
            tls_port, quic_port = await node.listen_tunnel(
                settings.listen,
                settings.tunnel_port,
                identity,
                quic_engine=settings.quic_engine,
                other_protocols={"http/1.1": control.make_protocol, "": control.make_protocol},
                state=state,
            )
            control.control.visitors = _visitors(node, public_host)
            control.placement.endpoints = (Endpoint(public_host, tls_port, quic_port, node=node.name),)
            control_url = f"https://{_bracketed(public_host)}:{tls_port}"
            remember_server(state, ServerFacts((control_url,), domain))
            log.info("agents register at %s; make a token with: edgetun token create --state %s", control_url, state)
            start_here = (
                f"agents register at {control_url}",
                f"no agent is connected; make a token with: edgetun token create --state {state}",
            )
            await shown.serve(
                node,
                lambda: _urls(node, public_host),
                metrics=settings.metrics,
                state=settings.state,
                notes=lambda: start_here[: 1 if node.registry.sessions else 2],
            )
            await node.drain(settings.drain_s)
        finally:
            unsubscribe()
            await node.close()
            await control.close()
    return ExitCode.OK


async def _listen_for_visitors(
    node: ExitNode, settings: ServeSettings, ca: DevelopmentCA, certificates: Sequence[tuple[Path, Path]]
) -> None:
    if settings.http_port < 0 and settings.https_port < 0:
        raise ConfigError("no visitor can come: --http-port and --https-port are both -1", remedy="give one a port")
    if settings.http_port >= 0:
        front = await node.listen_http(settings.listen, settings.http_port)
        log.info("http on %s:%d", settings.listen, front.port)
    if settings.https_port >= 0:
        pairs = [*parse_certificate_pairs(settings.certificate), *certificates]
        store = CertificateStore(
            pairs,
            development=ca,
            may_issue=lambda name: node.router.table.find(name.encode()) is not None,
        )
        front = await node.listen_https(settings.listen, settings.https_port, store, http3=settings.http3)
        log.info("https on %s:%d%s", settings.listen, front.port, ", http/3 too" if settings.http3 else "")
        if not pairs:
            log.warning("no --certificate is given: browsers will warn of the development CA %s", ca.certificate_file)


def _visitors(node: ExitNode, host: str = "") -> VisitorAddress:
    """How visitors reach this node: over TLS where it serves that."""
    fronts = {front.scheme.decode(): front.port for front in node.fronts}
    scheme = "https" if "https" in fronts else "http"
    return VisitorAddress(scheme, fronts.get(scheme, 0), host)


def _urls(node: ExitNode, host: str) -> list[tuple[str, str]]:
    visitors = _visitors(node, host)
    return [
        (visitors.url_of(plan.rule, name), plan.rule.origins[0].url)
        for plan in node.router.table.plans.values()
        for name in plan.rule.address_names
    ]


def read_ports(text: str, flag: str) -> range:
    """Reads FROM-TO, a port, or nothing. Raises ConfigError that names the flag."""
    if not text:
        return range(0)
    first, dash, last = text.partition("-")
    numbers = [
        int(word) for word in (first, last if dash else first) if word.isascii() and word.isdigit() and len(word) < 6
    ]
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1] <= 65535:
        raise ConfigError(f'{flag}: "{text}" is not FROM-TO', remedy="write it as 20000-20099, or a single port")
    return range(numbers[0], numbers[1] + 1)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

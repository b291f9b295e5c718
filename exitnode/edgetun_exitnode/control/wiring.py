"""Wires an exit node to control: identity, last snapshot, follower, and the tunnel listener once there is a certificate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import ConfigError
from edgetun_core.fleet_identity import ExitNodeName, check_exit_node_name, inner_name
from edgetun_core.pki import Trust
from edgetun_core.process import parse_host_port
from edgetun_exitnode.control.follow import Follower
from edgetun_exitnode.control.identity import NodeIdentity
from edgetun_exitnode.control.linked_node import LinkedNode
from edgetun_exitnode.mesh.joining import Membership
from edgetun_exitnode.node import ExitNode
from edgetun_exitnode.settings import ExitNodeSettings

log = logging.getLogger("edgetun.exitnode.control")


async def follow_control(node: ExitNode, settings: ExitNodeSettings, tunnel_port: int) -> asyncio.Task[None]:
    """Begins to follow; returns as soon as there is nothing to wait for. The task ends only by being cancelled."""
    name = ExitNodeName(settings.pool, settings.region, settings.name)
    check_exit_node_name(name)
    address = parse_host_port(settings.tunnel_address, "--tunnel-address") if settings.tunnel_address else None
    names = [*settings.tunnel_name, *([address[0]] if address is not None else [])]
    identity = NodeIdentity(
        settings.control.rstrip("/"),
        _trust(settings),
        settings.control_token_file,
        name,
        dict.fromkeys(names),
        state=settings.state,
    )

    def addresses() -> tuple[Endpoint, ...]:
        if address is None:
            return ()
        server_name = inner_name(settings.pool, settings.region)
        quic_port = 0 if settings.quic_engine == "none" else address[1]
        return (Endpoint(address[0], address[1], quic_port, node.name, server_name),)

    membership = Membership(node, name, settings.state)
    follower = Follower(
        LinkedNode(node),
        identity,
        settings.state,
        addresses=addresses,
        relay=lambda: node.mesh.relay if node.mesh is not None else None,
        prepare=membership.joined.wait,
    )

    def sessions_changed() -> None:
        follower.sessions_changed()
        if node.mesh is not None:
            node.mesh.sessions_changed()

    node.acceptor.on_change = sessions_changed
    node.streams.on_problems_changed = follower.sessions_changed
    if settings.relay_host:
        node.knows_enough = membership.knows_enough
    identity.resume()
    if follower.resume():
        membership.restore()
    if identity.server is not None:
        await _open(node, settings, identity, membership, tunnel_port)
    return asyncio.create_task(_run(node, settings, identity, follower, membership, tunnel_port), name="follow control")


async def _run(
    node: ExitNode,
    settings: ExitNodeSettings,
    identity: NodeIdentity,
    follower: Follower,
    membership: Membership,
    tunnel_port: int,
) -> None:
    async with _following(follower):
        if not membership.joined.is_set():
            await identity.ready.wait()
            await _open(node, settings, identity, membership, tunnel_port)
        await membership.keep()


async def _open(
    node: ExitNode, settings: ExitNodeSettings, identity: NodeIdentity, membership: Membership, tunnel_port: int
) -> None:
    """What needs a certificate: the ports for agents and for other exit nodes."""
    assert identity.server is not None
    if tunnel_port >= 0:
        await _listen(node, settings, identity, tunnel_port)
    if identity.ca_pem:
        await membership.join(
            identity.server, lambda: identity.ca_pem, settings.listen, settings.relay_host, settings.relay_port
        )
    else:
        membership.joined.set()  # no CA of the fleet is known, so no peer can be


@asynccontextmanager
async def _following(follower: Follower) -> AsyncIterator[None]:
    follower.start()
    try:
        yield
    finally:
        await follower.close()


async def _listen(node: ExitNode, settings: ExitNodeSettings, identity: NodeIdentity, port: int) -> None:
    assert identity.server is not None
    tls, quic = await node.listen_tunnel(
        settings.listen, port, identity.server, quic_engine=settings.quic_engine, state=settings.state
    )
    log.info("agents on %s, TCP %d and UDP %d", settings.listen, tls, quic)


def _trust(settings: ExitNodeSettings) -> Trust:
    if settings.control_ca is None:
        return Trust()
    try:
        return Trust(settings.control_ca.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"--control-ca {settings.control_ca}: {error.strerror}",
            remedy="give the CA that signed control's certificate",
        ) from error

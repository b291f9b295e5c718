"""Probing: real listeners on loopback, and regions that are not there."""

from __future__ import annotations

import time
from pathlib import Path

from edgetun_agent.probe import probe_offers
from edgetun_core.enrollment import Endpoint, Offer
from edgetun_core.fleet_identity import inner_name
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_exitnode.node import ExitNode
from support.cluster import free_ports


async def test_both_transports_are_measured_and_a_region_that_is_away_costs_little(tmp_path: Path) -> None:
    ca = DevelopmentCA(tmp_path / "ca")
    node = ExitNode("n1")
    try:
        name = inner_name("p", "here")
        tls, quic = await node.listen_tunnel("127.0.0.1", 0, ca.identity([name]))
        (nothing,) = free_ports(1)
        offers = [
            Offer("p", "here", (Endpoint("127.0.0.1", tls, quic, "n1", name),)),
            Offer("p", "away", (Endpoint("127.0.0.1", nothing, nothing, "n2", name),)),
            Offer("p", "tcp-only", (Endpoint("127.0.0.1", tls, 0, "n1", name),)),
        ]
        began = time.monotonic()
        here, away, tcp_only = await probe_offers(offers, Trust(ca.ca_pem))
        assert time.monotonic() - began < 5
        assert 0 < here.tcp_s < 1
        assert 0 < here.quic_s < 1
        assert (away.pool, away.region, away.tcp_s, away.quic_s) == ("p", "away", 0.0, 0.0)
        assert tcp_only.quic_s == 0.0
        assert tcp_only.tcp_s > 0
        (quic_wanted,) = await probe_offers(offers[:1], Trust(ca.ca_pem), transport="quic")
        assert quic_wanted.tcp_s == 0.0
        assert quic_wanted.quic_s > 0
        assert not node.acceptor.runners
    finally:
        await node.close()

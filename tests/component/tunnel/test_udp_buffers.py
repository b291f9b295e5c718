"""A kernel that gives UDP sockets little is told in the log once, and shown by a gauge at both ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from prometheus_client.core import CollectorRegistry

from edgetun_agent.metrics import collect_agent
from edgetun_agent.serve import Origins
from edgetun_core.transport import udp
from edgetun_exitnode.observe.metrics import collect_exit_node
from support.paths import site
from support.visitors import until
from support.whole import snapshot

SMALL_BYTES = 64 * 1024


async def test_small_socket_buffers_are_told_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(udp.UdpSocket.__init__.__kwdefaults__, "wanted_buffer_bytes", SMALL_BYTES)
    monkeypatch.setattr(udp, "_told_small_buffer", False)
    caplog.set_level(logging.INFO)
    obey = snapshot("http://127.0.0.1:9")
    async with site(tmp_path, obey) as stands:
        agent = stands.agent(obey, quic_port=stands.quic_port)
        await until(lambda: bool(agent.sessions), 15.0)
        origins = Origins([], probe=False)
        shown = {
            "exit node": samples(lambda: collect_exit_node(stands.node)),
            "agent": samples(lambda: collect_agent(agent, origins)),
        }
        await origins.close()
    assert shown == {"exit node": {"sessions": SMALL_BYTES}, "agent": {"": SMALL_BYTES}}
    said = [record.getMessage() for record in caplog.records if "rmem_max" in record.getMessage()]
    assert len(said) == 1, "once, not per socket"


def samples(collect) -> dict[str, float]:
    class Collector:
        def collect(self):
            return collect()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())  # type: ignore[arg-type]
    return {
        sample.labels.get("use", ""): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "edgetun_udp_receive_buffer_bytes"
    }

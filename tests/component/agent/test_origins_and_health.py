"""The agent's origins as a whole: which one a service means, rules that change, health that is seen without requests."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from prometheus_client import generate_latest

from edgetun_agent.metrics import collect_origins
from edgetun_agent.observe import RecentRequests, SilentListener
from edgetun_agent.origin import health as health_module
from edgetun_agent.origin.health import HealthState
from edgetun_agent.serve import Origins
from edgetun_core.admin import build_registry
from edgetun_core.errors import NotFound
from edgetun_core.snapshot import OriginRule, RouteRule, TunnelRule
from support.exchanges import PEER, request
from support.origin_server import DEADLINE_S, ScriptedConnection, Visitor, answering, response, scripted_origin


def tunnel(*origins: OriginRule, name: str = "team-a/shop") -> TunnelRule:
    return TunnelRule(name, ("shop.test",), origins, (RouteRule(),))


async def ask(origins: Origins, service: str, path: bytes = b"/") -> Visitor:
    visitor = Visitor()
    origins.open(request(path).replace(service=service), PEER, True, visitor)
    await visitor.ended()
    return visitor


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for lives on sockets
            await asyncio.sleep(0.005)


class Told(SilentListener):
    def __init__(self) -> None:
        self.changes: list[tuple[str, bool]] = []

    def on_origin_changed(self, service: str, url: str, is_up: bool, error: str) -> None:
        self.changes.append((service, is_up))


async def test_a_service_means_its_first_origin_or_the_one_named() -> None:
    async with (
        scripted_origin(answering(response(b"first"))) as first,
        scripted_origin(answering(response(b"second"))) as second,
    ):
        origins = Origins([tunnel(OriginRule("web", first.url), OriginRule("api", second.url))], probe=False)
        assert origins.services == ("team-a/shop",)
        assert (await ask(origins, "team-a/shop")).body == b"first"
        assert (await ask(origins, "team-a/shop#web")).body == b"first"
        assert (await ask(origins, "team-a/shop#api")).body == b"second"
        stranger = await ask(origins, "team-a/shop#none")
        assert isinstance(stranger.error, NotFound)
        assert '"team-a/shop#none"' in str(stranger.error)
        await origins.close()


async def test_a_rule_that_stays_keeps_its_connections_and_one_that_goes_ends_in_good_order() -> None:
    go = asyncio.Event()

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            if b"/slow" in head:
                await go.wait()
            await connection.send(response(b"%d" % connection.number))

    async with scripted_origin(script) as one, scripted_origin(answering(response(b"new"))) as two:
        kept, changed = OriginRule("kept", one.url), OriginRule("changed", one.url, connect_timeout_s=4.0)
        origins = Origins([tunnel(kept, changed)], probe=False)
        assert (await ask(origins, "team-a/shop")).body == b"0"
        under_way = Visitor()
        origins.open(request(b"/slow").replace(service="team-a/shop#changed"), PEER, True, under_way)
        await eventually(lambda: one.connections == 2)
        origins.update([tunnel(kept, msgspec.structs.replace(changed, url=two.url))])
        assert (await ask(origins, "team-a/shop")).body == b"0"
        assert (await ask(origins, "team-a/shop#changed")).body == b"new"
        go.set()
        await under_way.ended()
        assert under_way.body == b"1"
        assert one.connections == 2
        origins.update([])
        assert isinstance((await ask(origins, "team-a/shop")).error, NotFound)
        await origins.close()


async def test_an_origin_is_seen_to_go_and_come_back_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "PROBE_AGAIN_S", 0.02)
    told = Told()
    async with scripted_origin(answering(response())) as origin:
        port = int(origin.url.rpartition(":")[2])
        origins = Origins([tunnel(OriginRule("web", origin.url, health_interval_s=0.02))], listener=told)
        [client] = origins.clients
        await eventually(lambda: client.health.state is HealthState.UP)
    await eventually(lambda: client.health.state is HealthState.DOWN)
    assert "start the server" in client.health.last_error
    async with scripted_origin(answering(response()), port=port):
        await eventually(lambda: client.health.state is HealthState.UP)
        await origins.close()
    service = "team-a/shop#web"
    assert told.changes == [(service, True), (service, False), (service, True)]
    assert client.counters.requests == 0


async def test_a_health_path_that_fails_means_down_even_while_requests_are_answered() -> None:
    status = [b"200 OK"]
    asked: list[bytes] = []

    async def script(connection: ScriptedConnection) -> None:
        while head := await connection.request():
            asked.append(head)
            healthy = b"GET /health" not in head
            await connection.send(response(b"x", status=b"200 OK" if healthy else status[0]))

    recent = RecentRequests()
    async with scripted_origin(script) as origin:
        rule = OriginRule("web", origin.url, health_path="/health", health_interval_s=0.02)
        origins = Origins([tunnel(rule)], recent=recent)
        [client] = origins.clients
        await eventually(lambda: client.health.state is HealthState.UP)
        assert b"host: 127.0.0.1" in asked[0]
        status[0] = b"500 Internal Server Error"
        await eventually(lambda: client.health.state is HealthState.DOWN)
        assert "the health check /health answered 500" in client.health.last_error
        assert (await ask(origins, "team-a/shop")).status == 200
        assert client.health.state is HealthState.DOWN
        assert recent.seen == 1, "health checks are not requests"
        assert client.counters.requests == 1
        status[0] = b"204 No Content"
        await eventually(lambda: client.health.state is HealthState.UP)
        await origins.close()


async def test_the_metrics_of_origins_are_valid_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetun_agent.metrics.MAX_ORIGINS", 2)
    rules = [tunnel(OriginRule("web", "http://127.0.0.1:1"), name=f"team-a/t{number}") for number in range(5)]
    origins = Origins(rules, probe=False)
    for number in range(5):
        await ask(origins, f"team-a/t{number}")
    text = generate_latest(build_registry(lambda: collect_origins(origins))).decode()
    assert 'edgetun_origin_errors_total{kind="origin_unreachable",origin="team-a/t0#web"} 1.0' in text
    assert 'edgetun_origin_requests_total{origin="(other)"} 3.0' in text
    assert "t4" not in text
    assert 'edgetun_origin_up{origin="team-a/t1#web"} 0.0' in text
    await origins.close()

import asyncio
import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edgetun_core import admin as admin_module
from edgetun_core.admin import AdminServer, start_admin
from edgetun_core.errors import ConfigError

NUMBERS = {"requests": 3}


def collect() -> Iterable[Metric]:
    yield CounterMetricFamily("edgetun_agent_requests", "Requests.", value=NUMBERS["requests"])
    yield GaugeMetricFamily("edgetun_agent_sessions", "Sessions.", value=2)


@pytest.fixture
def admin() -> Iterator[AdminServer]:
    server = start_admin("127.0.0.1", 0, collect, lambda: (False, {"sessions": 0, "reason": "no exit node yet"}))
    yield server
    server.close()


def get(server: AdminServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_metrics_are_read_when_they_are_scraped_and_are_valid_openmetrics(admin: AdminServer) -> None:
    NUMBERS["requests"] = 41
    status, headers, body = get(admin, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["edgetun_agent_requests"].samples[0].value == 41
    own = {name for name in families if not name.startswith("process_")}
    assert own == {"edgetun_agent_requests", "edgetun_agent_sessions", "edgetun_threads", "edgetun_udp_receive_drops"}


def test_readiness_says_why_not(admin: AdminServer) -> None:
    status, _, body = get(admin, "/readyz")
    assert status == 503
    assert json.loads(body) == {"ready": False, "sessions": 0, "reason": "no exit node yet"}


def test_a_process_that_drains_is_not_ready_and_still_ready_to_who_asks_for_what_it_has_in_flight() -> None:
    state = {"draining": True}
    server = start_admin("127.0.0.1", 0, collect, lambda: (False, dict(state)))
    try:
        assert get(server, "/readyz")[0] == 503
        assert get(server, f"/readyz?{admin_module.KEPT_WHILE_DRAINING}")[0] == 200
        state["draining"] = False
        assert get(server, f"/readyz?{admin_module.KEPT_WHILE_DRAINING}")[0] == 503
    finally:
        server.close()


def test_other_paths_and_methods_are_refused(admin: AdminServer) -> None:
    assert get(admin, "/")[0] == 404
    request = urllib.request.Request(f"http://127.0.0.1:{admin.port}/metrics", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)
    assert refused.value.code == 405
    refused.value.close()


async def test_health_is_lost_while_the_event_loop_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "LOOP_PATIENCE_S", 0.1)
    server = start_admin("127.0.0.1", 0, collect, lambda: (True, {}))
    try:
        answer = await asyncio.to_thread(get, server, "/healthz")
        assert answer[0] == 200
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(get(server, "/healthz")))
        thread.start()
        deadline = time.monotonic() + 5
        while not answers and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251 - the loop is stuck on purpose
        thread.join()
        assert answers[0][0] == 503
    finally:
        await asyncio.to_thread(server.close)


def test_a_dict_that_changes_while_it_is_read_does_not_fail_the_scrape() -> None:
    tries = []

    def unsteady() -> Iterable[Metric]:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("dictionary changed size during iteration")
        return collect()

    server = start_admin("127.0.0.1", 0, unsteady, lambda: (True, {}))
    try:
        assert get(server, "/metrics")[0] == 200
    finally:
        server.close()


def test_connections_beyond_the_bound_are_closed_and_the_rest_are_served(admin: AdminServer) -> None:
    held = [socket.create_connection(("127.0.0.1", admin.port)) for _ in range(admin_module.MAX_CONCURRENT)]
    try:
        one_more = socket.create_connection(("127.0.0.1", admin.port))
        one_more.settimeout(5)
        assert one_more.recv(1) == b""
        one_more.close()
        held.pop().close()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                assert get(admin, "/metrics")[0] == 200
                break
            except (OSError, ConnectionError):
                continue
        else:
            pytest.fail("no slot became free")
    finally:
        for connection in held:
            connection.close()


def test_a_taken_port_is_an_error_for_people(admin: AdminServer) -> None:
    with pytest.raises(ConfigError, match=rf"127.0.0.1:{admin.port} .*choose another"):
        start_admin("127.0.0.1", admin.port, collect, lambda: (True, {}))


async def test_every_process_tells_its_memory_descriptors_threads_and_tasks() -> None:
    server = start_admin("127.0.0.1", 0, collect, lambda: (True, {}))
    waiting = [asyncio.create_task(asyncio.sleep(30)) for _ in range(5)]
    try:
        _, _, body = await asyncio.to_thread(get, server, "/metrics")
        told = {line.split()[0]: float(line.split()[1]) for line in body.decode().splitlines() if line[0] != "#"}
        assert told["edgetun_event_loop_tasks"] == 6  # and this test
        assert told["edgetun_threads"] >= 2
        if sys.platform == "linux":
            assert told["process_resident_memory_bytes"] > 1_000_000
            sockets = [socket.socket() for _ in range(20)]
            _, _, more = await asyncio.to_thread(get, server, "/metrics")
            for one in sockets:
                one.close()
            fds = {line.split()[0]: float(line.split()[1]) for line in more.decode().splitlines() if line[0] != "#"}
            assert fds["process_open_fds"] >= told["process_open_fds"] + 15
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.to_thread(server.close)

"""`edgetun http` as people run it."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import threading
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edgetun_core.exits import ExitCode
from support.commands import Command, Page, a_free_port, an_origin, run, visit
from support.waiting import wait_for

PORTS = ("--http-port", "0", "--https-port", "-1")


def started(origin: str, state: Path, *flags: str) -> Command:
    return Command("edgetun", "http", origin, "--host", "shop", "--state", str(state), *PORTS, *flags)


def port_of(command: Command) -> int:
    return int(command.line(r"http://shop\.localhost:(\d+)")[1])


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_ctrl_c_lets_a_request_in_flight_end_and_a_new_visitor_none(tmp_path: Path) -> None:
    got: list[Page] = []
    with an_origin(slow_s=1.5) as origin, started(origin.url, tmp_path) as edge:
        port = port_of(edge)
        assert visit(port, "/fast", host="shop.localhost").body == "origin /fast"
        visitor = threading.Thread(target=lambda: got.append(visit(port, "/slow", host="shop.localhost")))
        visitor.start()
        wait_for(lambda: "/slow" in origin.paths)
        edge.signal(signal.SIGINT)
        edge.line("stopping: requests in flight may end; Ctrl-C again to stop at once")
        wait_for(lambda: is_refused(port))
        assert edge.ended() == ExitCode.OK
        visitor.join()
        assert [(page.status, page.body) for page in got] == [(200, "origin /slow")]
        assert "Traceback" not in edge.said


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    with an_origin(slow_s=30) as origin, started(origin.url, tmp_path) as edge:
        port = port_of(edge)
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET /slow HTTP/1.1\r\nHost: shop.localhost\r\n\r\n")
            wait_for(lambda: "/slow" in origin.paths)
            edge.signal()
            edge.line("stopping")
            edge.signal()
            assert edge.ended(3) == 128 + signal.SIGINT


def test_a_port_that_is_taken_is_exit_5_and_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        edge = run("edgetun", "http", "3000", "--http-port", str(port), "--state", str(tmp_path))
    assert edge.ended() == ExitCode.PORT_TAKEN
    assert f"127.0.0.1:{port}" in edge.err
    assert "--http-port" in edge.err
    assert edge.err.startswith("error: ")
    assert "Traceback" not in edge.err


def test_an_origin_that_is_not_running_is_told_at_once_named_on_the_page_and_taken_when_it_comes(
    tmp_path: Path,
) -> None:
    origin_port = a_free_port()
    with started(str(origin_port), tmp_path) as edge:
        port = port_of(edge)
        edge.line(rf"warning: .*127\.0\.0\.1:{origin_port}|warning: .*localhost:{origin_port}")
        page = visit(port, host="shop.localhost", Accept="text/html")
        assert page.status == 502
        assert "The local server does not answer" in page.body
        assert str(origin_port) in page.body
        problem = json.loads(visit(port, host="shop.localhost").body)
        assert problem["reason"] == "OriginUnreachable"
        assert problem["side"] == "origin"
        assert problem["remedy"]
        with an_origin(port=origin_port):
            page = wait_for(lambda: (got := visit(port, host="shop.localhost")).status == 200 and got, 20)
            assert page.body == "origin /"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("nonsense port",), "no URL has"),
        (("99999",), "99999"),
        (("0",), "port 0"),
        (("ftp://localhost",), "http"),
        ((), "ORIGIN is missing"),
        (("3000", "--host", "a_b"), "not a hostname"),
        (("3000", "--cache", "soon"), "--cache"),
        (("3000", "--cache", "-1s"), "--cache"),
        (("3000", "--http-port", "70000"), "--http-port"),
        (("3000", "--http-port", "-1", "--https-port", "-1"), "--http-port"),
        (("3000", "--metrics", "9090"), "--metrics"),
        (("3000", "--drain", "x"), "--drain"),
        (("3000", "--log-level", "loud"), "--log-level"),
        (("3000", "--no-such-flag"), "--no-such-flag"),
        (("3000", "--listen", "not an address"), "--listen"),
        (("3000", "--origin-ca", "/nonexistent.pem"), "/nonexistent.pem"),
        (("3000", "--host-header", "two words"), "--host-header"),
    ],
)
def test_wrong_input_is_exit_2_and_names_what_is_wrong(flags: tuple[str, ...], says: str, tmp_path: Path) -> None:
    free = () if "--http-port" in flags else PORTS
    with Command("edgetun", "http", *flags, *free, "--state", str(tmp_path)) as edge:
        assert edge.ended() == ExitCode.USAGE, edge.said
        assert says in edge.err
        assert "Traceback" not in edge.err


def test_json_logs_are_one_object_per_line_from_first_to_last(tmp_path: Path) -> None:
    with an_origin() as origin, started(origin.url, tmp_path, "--json") as edge:
        visit(port_of(edge), "/a?key=secret", host="shop.localhost")
        edge.line("GET /a")
        assert edge.stop() == ExitCode.OK
        lines = [json.loads(line) for line in edge.said.splitlines()]
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
        assert "secret" not in edge.said


def test_quiet_says_nothing_when_nothing_is_wrong(tmp_path: Path) -> None:
    port = a_free_port()
    flags = ("--quiet", "--http-port", str(port))
    with an_origin() as origin, started(origin.url, tmp_path, *flags) as edge:
        wait_for(lambda: visit(port, host="shop.localhost").status == 200)
        assert edge.stop() == ExitCode.OK
        assert edge.said == ""


def test_metrics_are_openmetrics_and_readiness_is_told(tmp_path: Path) -> None:
    with an_origin() as origin, started(origin.url, tmp_path, "--metrics", "127.0.0.1:0") as edge:
        port = port_of(edge)
        admin = int(edge.line(r"metrics at http://127\.0\.0\.1:(\d+)/metrics")[1])
        visit(port, host="shop.localhost")
        page = visit(admin, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert page.fields["content-type"].startswith("application/openmetrics-text")
        families = {family.name: family for family in text_string_to_metric_families(page.body)}
        responses = {sample.labels["class"]: sample.value for sample in families["edgetun_visitor_responses"].samples}
        assert responses["2xx"] == 1
        assert all(family.documentation for family in families.values())
        assert visit(admin, "/healthz").status == 200
        assert json.loads(visit(admin, "/readyz").body)["ready"] is True
        assert visit(admin, "/nothing").status == 404


def test_a_metrics_port_that_is_taken_is_exit_5(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with started("3000", tmp_path, "--metrics", address) as edge:
            assert edge.ended() == ExitCode.PORT_TAKEN
            assert address in edge.err
            assert "--metrics" in edge.err
            assert "Traceback" not in edge.err


def test_https_is_verified_with_the_development_ca(tmp_path: Path) -> None:
    flags = ("--https-port", "0")
    with an_origin() as origin, started(origin.url, tmp_path, *flags) as edge:
        port = int(edge.line(r"https://shop\.localhost:(\d+)")[1])
        edge.line("https is signed by .*ca.pem; import that")
        verified = ssl.create_default_context(cafile=tmp_path / "ca" / "ca.pem")
        assert visit(port, "/tls", host="shop.localhost", tls=verified).body == "origin /tls"
        assert visit(port, "/tls", host="www.shop.localhost", tls=verified).status == 200
        with pytest.raises(ssl.SSLError):
            visit(port, host="other.localhost", tls=verified)


def test_one_origin_request_answers_many_visitors_with_a_cache(tmp_path: Path) -> None:
    with an_origin() as origin, started(origin.url, tmp_path, "--cache", "60s") as edge:
        port = port_of(edge)
        assert {visit(port, "/page", host="shop.localhost").body for _ in range(20)} == {"origin /page"}
        assert origin.paths == ["/page"]

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun.load_plan import Arrivals, ClosedLoop, Crowd, LoadPlan, OpenLoop, due, due_at, total
from edgetun.load_settings import LoadSettings, parse_connect, parse_headers, plan_from_settings
from edgetun_core.errors import ConfigError

schedules = st.one_of(
    st.builds(Crowd, visitors=st.integers(1, 5000), within_s=st.floats(0.01, 10)),
    st.builds(OpenLoop, rate=st.floats(0.5, 5000), concurrency=st.just(1), duration_s=st.floats(0.01, 5)),
)


@given(schedules)
def test_the_first_is_due_at_once_and_all_in_time(arrivals: Crowd | OpenLoop) -> None:
    span_s = arrivals.within_s if isinstance(arrivals, Crowd) else arrivals.duration_s
    assert due(arrivals, -0.1) == 0
    assert due(arrivals, 0) >= 1
    assert due(arrivals, span_s) == total(arrivals)


@given(schedules, st.floats(0, 10))
def test_nobody_is_sent_before_being_due(arrivals: Crowd | OpenLoop, elapsed_s: float) -> None:
    count = due(arrivals, elapsed_s)
    assert due_at(arrivals, count - 1) <= elapsed_s + 1e-9
    if count < total(arrivals):
        assert due_at(arrivals, count) >= elapsed_s - 1e-9


def test_all_at_once_is_due_at_once() -> None:
    assert due(Crowd(500, 0), 0) == 500
    assert due_at(Crowd(500, 0), 499) == 0


def test_the_request_names_the_host_of_the_url_whatever_is_dialled() -> None:
    plan = LoadPlan("http://shop.localhost:8080/a?b=c", connect=("127.0.0.1", 1))
    assert plan.request() == (
        b"GET /a?b=c HTTP/1.1\r\nHost: shop.localhost:8080\r\nUser-Agent: edgetun-load\r\nAccept: */*\r\n\r\n"
    )


def test_a_body_has_a_length_and_own_fields_replace_the_usual_ones() -> None:
    plan = LoadPlan("https://[::1]", method="POST", headers=(("Host", "x"), ("accept", "a/b")), body=b"hi")
    assert plan.request() == (
        b"POST / HTTP/1.1\r\nUser-Agent: edgetun-load\r\nHost: x\r\naccept: a/b\r\nContent-Length: 2\r\n\r\nhi"
    )


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost:3000", "not an http or https URL"),
        ("ftp://localhost/", "not an http or https URL"),
        ("http://localhost:99999/", "not a URL"),
        ("http:///x", "not an http or https URL"),
        ("http://localhost/a b", "percent-encode"),
        ("http://me:secret@localhost/", "holds a password"),
    ],
)
def test_a_url_that_cannot_be_asked_for_is_refused_in_words(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        LoadPlan(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("flag", "arguments"),
    [
        ("--visitors", {"arrivals": Crowd(0)}),
        ("--within", {"arrivals": Crowd(1, -1)}),
        ("--duration", {"arrivals": ClosedLoop(1, 0)}),
        ("--concurrency", {"arrivals": ClosedLoop(0, 1)}),
        ("--rate", {"arrivals": OpenLoop(0, 1, 1)}),
        ("--timeout", {"timeout_s": 0}),
        ("--method", {"method": "GET /"}),
        ("--header", {"headers": (("a", "b\r\nc: d"),)}),
        ("--header", {"headers": (("Content-Length", "5"),)}),
    ],
)
def test_a_plan_that_makes_no_sense_names_the_flag(flag: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=flag):
        LoadPlan("http://localhost/", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "arrivals"),
    [
        (LoadSettings("http://localhost/"), Crowd(10_000, 2, 1, True)),
        (LoadSettings("http://localhost/", visitors=5, within_s=0, requests=2, hold=False), Crowd(5, 0, 2, False)),
        (LoadSettings("http://localhost/", duration_s=3, concurrency=7), ClosedLoop(7, 3)),
        (LoadSettings("http://localhost/", duration_s=3, rate=9, concurrency=7), OpenLoop(9, 7, 3)),
    ],
)
def test_the_flags_choose_who_arrives_when(settings: LoadSettings, arrivals: Arrivals) -> None:
    assert plan_from_settings(settings).arrivals == arrivals


def test_a_rate_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="--duration"):
        plan_from_settings(LoadSettings("http://localhost/", rate=5))


def test_a_header_flag_is_one_field_with_its_commas() -> None:
    assert parse_headers(
        ["Accept: text/html,*/*, a/b: c", "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", "b:"]
    ) == (
        ("Accept", "text/html,*/*, a/b: c"),
        ("If-Modified-Since", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("b", ""),
    )
    for wrong in (["nonsense"], ["Accept: a", "nonsense"], [": x"], ["two words: x"]):
        with pytest.raises(ConfigError, match="--header"):
            parse_headers(wrong)


def test_connect_is_host_and_port() -> None:
    assert parse_connect("") is None
    assert parse_connect("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_connect("[::1]:80") == ("::1", 80)
    for wrong in ("localhost", ":80", "a:0", "a:70000", "a:x"):
        with pytest.raises(ConfigError, match="--connect"):
            parse_connect(wrong)


def test_visitors_who_stay_need_a_connection_each() -> None:
    assert LoadPlan("http://localhost/", Crowd(9000)).connections == 9000
    assert LoadPlan("http://localhost/", Crowd(50_000, hold=False)).connections == 1000
    assert LoadPlan("http://localhost/", ClosedLoop(10, 1)).connections == 10

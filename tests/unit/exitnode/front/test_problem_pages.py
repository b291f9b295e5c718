"""Problem pages: the right medium, the right side, the right advice, and nothing that a visitor could have put there."""

from __future__ import annotations

import json

import pytest

from edgetun_core.errors import (
    ERRORS_BY_CODE,
    Cancelled,
    EdgetunError,
    LimitExceeded,
    NoSession,
    NotFound,
    OriginBusy,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from edgetun_core.http.h1 import H1Error
from edgetun_exitnode.front.pages import build_problem, decide_media
from support.exchanges import request

BROWSER = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (BROWSER, "html"),
        (b"", "json"),
        (b"*/*", "json"),
        (b"application/json, text/plain, */*", "json"),
        (b"application/problem+json", "json"),
        (b"text/plain", "text"),
        (b"text/*;q=0.9, application/json;q=0.1", "text"),
        (b"text/html;q=0.1, application/json", "json"),
        (b"text/html;q=0, text/plain;q=0.1", "text"),
        (b"TEXT/HTML", "html"),
        (b"image/png", "json"),
        (b"text/html;q=x, ,;;=", "json"),
        (b"application/xhtml+xml; charset=x; q=1", "html"),
    ],
)
def test_the_medium_is_the_one_asked_for(accept: bytes, media: str) -> None:
    assert decide_media(accept) == media


def test_a_browser_gets_a_page_of_its_own_that_loads_nothing() -> None:
    head, body = build_problem(
        NoSession("no agent is connected for shop.example.com"), request(b"/", (b"accept", BROWSER))
    )
    text = body.decode()
    assert head.status == 503
    assert head.get(b"content-type") == b"text/html; charset=utf-8"
    assert head.get(b"content-length") == str(len(body)).encode()
    assert head.get(b"cache-control") == b"no-store"
    assert "No agent is connected for shop.example.com." in text
    assert "Agent<br>failed here" in text
    assert "edgetun-agent" in text
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_a_program_gets_a_problem_document() -> None:
    error = UpstreamUnreachable("http://localhost:3000 refuses connections", remedy="start it")
    head, body = build_problem(error, request(b"/"))
    document = json.loads(body)
    assert head.status == 502
    assert head.get(b"content-type") == b"application/problem+json"
    assert document == {
        "type": "https://edgetun.dev/problems/OriginUnreachable",
        "title": "The local server does not answer",
        "status": 502,
        "detail": "http://localhost:3000 refuses connections",
        "reason": "OriginUnreachable",
        "side": "origin",
        "remedy": "start it",
    }


def test_text_says_the_same() -> None:
    _, body = build_problem(UpstreamTimeout("no answer in 60 s"), request(b"/", (b"accept", b"text/plain")))
    assert body.startswith(b"504 The local server takes too long (OriginTimeout)\nno answer in 60 s\nWhat to do: ")


def test_what_comes_from_outside_is_escaped() -> None:
    head = request(b"/", (b"accept", b"text/html"), host=b"a")
    _, body = build_problem(NotFound('no tunnel for "<script>alert(1)</script>"', remedy="<b>"), head)
    assert b"<script>" not in body
    assert b"<b>" not in body
    assert b"&lt;script&gt;" in body


def test_retry_after_is_told_where_it_is_known() -> None:
    error = LimitExceeded("too many requests")
    error.retry_after_s = 1.2  # type: ignore[attr-defined]
    head, body = build_problem(error, request())
    assert (head.status, head.get(b"retry-after"), json.loads(body)["retryAfter"]) == (429, b"2", 2)
    assert build_problem(LimitExceeded("x"), request())[0].get(b"retry-after") is None


def test_an_error_with_a_status_of_its_own_keeps_it() -> None:
    assert build_problem(H1Error("too long", status=414), None)[0].status == 414


def test_a_status_that_no_visitor_may_see_becomes_502() -> None:
    assert build_problem(Cancelled("gone"), request())[0].status == 502


def test_without_a_head_the_accept_given_decides() -> None:
    assert build_problem(H1Error("x"), None)[0].get(b"content-type") == b"application/problem+json"
    assert build_problem(H1Error("x"), None, accept=b"text/html")[0].get(b"content-type") == b"text/html; charset=utf-8"


@pytest.mark.parametrize("kind", ERRORS_BY_CODE.values(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("accept", [b"text/html", b"application/json", b"text/plain"])
def test_every_error_has_a_page(kind: type[EdgetunError], accept: bytes) -> None:
    head, body = build_problem(kind("what happened"), request(b"/", (b"accept", accept)))
    assert 400 <= head.status < 600
    assert b"hat happened" in body
    assert head.get(b"content-length") == str(len(body)).encode()


def test_the_same_error_is_the_same_page() -> None:
    first = build_problem(OriginBusy("busy"), request(b"/a"))
    assert build_problem(OriginBusy("busy"), request(b"/b"))[0] is first[0]

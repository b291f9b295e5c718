"""RFC 9113, sections 3 to 8, demand by demand, over a real socket (the cases: http2_cases.py)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edgetun_core.http.message import ResponseHead
from edgetun_exitnode.front.context import FrontContext, FrontLimits
from edgetun_exitnode.front.servers import Front, serve_http
from support.h2_visitor import H2Visitor
from support.handlers import Asked, ScriptedHandler, echo, hello, wait

_spec = importlib.util.spec_from_file_location("http2_cases", Path(__file__).with_name("http2_cases.py"))
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
sys.modules["http2_cases"] = cases
_spec.loader.exec_module(cases)


def large(asked: Asked) -> None:
    asked.answer(200, b"x" * 100_000)


def early(asked: Asked) -> None:
    asked.answer(200, b"early")


def fields(asked: Asked) -> None:
    asked.answer(200, b"\n".join(b"%b: %b" % field for field in asked.head.fields))


def interim(asked: Asked) -> None:
    asked.client.on_interim(ResponseHead(103, ((b"link", b"</a>"),)))
    asked.client.on_head(ResponseHead(200, ((b"connection", b"close"),)), False)
    asked.client.on_data(b"body", False)
    asked.client.on_trailers(((b"x-sum", b"1"),))


def hold(asked: Asked) -> None:
    asked.client.pause_request()


def root(asked: Asked) -> None:
    (hello if asked.ended else echo)(asked)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    handler = ScriptedHandler(root, wait=wait, large=large, early=early, fields=fields, interim=interim, hold=hold)
    front = await serve_http(FrontContext(handler, FrontLimits(sweep_s=0.05, linger_s=0.2)), "127.0.0.1", 0)
    yield front
    await front.drain(0.0)
    assert front.held_bytes == 0
    assert front.queued_bytes == 0
    assert front.counters.connections_open == 0


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: f"{case.section}: {case.name}")
async def test_a_server_must(case, front: Front) -> None:
    visitor = await H2Visitor.to(front.port, greet=case.greet)
    visitor.send(case.send)
    try:
        await case.check(visitor)
    finally:
        visitor.leave()


def test_every_case_has_a_name_of_its_own() -> None:
    names = [(case.section, case.name) for case in cases.CASES]
    assert len(names) == len(set(names))


def test_the_page_shows_every_demand() -> None:
    text = cases.PATH.read_text()
    assert text == cases.embedded(text), "run: PYTHONPATH=tests .venv/bin/python tests/conformance/http2_cases.py"

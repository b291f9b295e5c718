"""What gRPC clients are told of errors."""

from __future__ import annotations

import pytest

from edgetun_core.errors import NoSession, NotFound, OriginBusy, UpstreamTimeout, UpstreamUnreachable
from edgetun_exitnode.front.grpc_status import encode_message, is_grpc
from edgetun_exitnode.front.pages import build_problem
from edgetun_exitnode.pipeline.limits import BodyTooLarge, RateExceeded
from support.exchanges import request


@pytest.mark.parametrize(
    ("content_type", "is_call"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"Application/GRPC; x=y", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/json", False),
    ],
)
def test_calls_are_told_from_other_requests(content_type, is_call):
    assert is_grpc(request(b"/", (b"content-type", content_type))) is is_call
    assert not is_grpc(request())
    assert not is_grpc(None)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoSession("x"), b"14"),
        (UpstreamUnreachable("x"), b"14"),
        (OriginBusy("x"), b"14"),
        (RateExceeded(3), b"14"),
        (UpstreamTimeout("x"), b"4"),
        (BodyTooLarge("x"), b"8"),
        (NotFound("x"), b"12"),
    ],
)
def test_an_error_is_a_status_in_an_answer_that_is_trailers_only(error, code):
    head, body = build_problem(error, request(b"/", (b"content-type", b"application/grpc")))
    assert (head.status, body) == (200, b"")
    assert head.get(b"content-type") == b"application/grpc"
    assert head.get(b"grpc-status") == code


def test_the_message_says_what_to_do_and_is_encoded_as_the_protocol_wants():
    error = UpstreamUnreachable("nothing at http://a", remedy="start it: 100% ü\n")
    head, _ = build_problem(error, request(b"/", (b"content-type", b"application/grpc")))
    assert head.get(b"grpc-message") == b"nothing at http://a; start it: 100%25 %C3%BC%0A"
    assert encode_message("") == b""


def test_grpc_web_and_browsers_get_pages():
    head, body = build_problem(NoSession("x"), request(b"/", (b"content-type", b"application/grpc-web")))
    assert head.status == 503
    assert body

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.credentials import ClusterToken
from edgetun_core.logs import redact, setup_logging

TOKEN = ClusterToken(("https://control.example.com",), "laptop", bytes(range(32)), "ab" * 32).format()


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("as_json", [False, True], ids=["plain", "json"])
@pytest.mark.parametrize("where", ["message", "argument", "extra", "traceback"])
def test_a_token_never_reaches_a_log_line_by_any_way(as_json: bool, where: str) -> None:
    out = io.StringIO()
    setup_logging(json=as_json, stream=out)
    log = logging.getLogger("edgetun_agent.main")
    match where:
        case "message":
            log.warning(f"refused {TOKEN}")
        case "argument":
            log.warning("refused %s", {"token": TOKEN})
        case "extra":
            log.warning("refused", extra={"token": TOKEN})
        case _:
            try:
                raise ValueError(TOKEN)
            except ValueError:
                log.exception("refused")
    line = out.getvalue()
    assert "refused" in line
    assert TOKEN[8:40] not in line


@given(st.binary(min_size=32, max_size=32), st.integers(min_value=1, max_value=60))
def test_a_token_is_masked_even_when_it_was_cut_off(secret: bytes, cut: int) -> None:
    token = ClusterToken(("https://c.example",), "t", secret).format()
    shown = redact(f'"{token[: len(token) - cut]}"')
    assert shown == '"edgetun_<redacted>"'


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer abc.def-ghi",
        "authorization=Basic dXNlcjpwYXNz",
        "{'authorization': 'abcdefgh'}",
        "(b'authorization', b'Bearer abcdefgh')",
        "Proxy-Authorization: Digest abcdefgh",
        "sent Bearer abcdefgh12345",
        "A" * 60 + "." + "B" * 86,
    ],
)
def test_authorization_values_and_credentials_are_masked(line: str) -> None:
    shown = redact(line)
    assert "redacted" in shown
    assert not re.search(r"abc|dXNl|AAAA|BBBB", shown)


@pytest.mark.parametrize("name", ["edgetun_exitnode.front.tls", "edgetun_visitor_connections_refused", "edgetun-agent"])
def test_module_and_metric_names_are_not_mistaken_for_tokens(name: str) -> None:
    assert redact(name) == name


def test_a_json_line_holds_time_level_logger_message_and_the_extra_fields() -> None:
    out = io.StringIO()
    setup_logging(json=True, stream=out)
    logging.getLogger("edgetun_agent").info("listening on %d", 8080, extra={"port": 8080})
    line = json.loads(out.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "logger": "edgetun_agent", "message": "listening on 8080", "port": 8080}


def test_quiet_leaves_warnings() -> None:
    out = io.StringIO()
    setup_logging(quiet=True, stream=out)
    logging.getLogger("edgetun_agent").info("one")
    logging.getLogger("edgetun_agent").warning("two")
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: two\n", out.getvalue())

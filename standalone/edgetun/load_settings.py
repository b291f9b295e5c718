"""The flags of `edgetun load`, and the plan they make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgetun.load_plan import Arrivals, ClosedLoop, Crowd, LoadPlan, OpenLoop
from edgetun_core.errors import ConfigError
from edgetun_core.settings import REQUIRED, setting

_STARTS_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:")


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """Sends visitors to a server of yours and measures what they get.

    By default a crowd: 10,000 visitors arrive within 2 s, each on a connection of its own. With --duration, --concurrency
    visitors ask again and again; with --rate as well, so many requests start every second, whether answers come or not.
    """

    section: ClassVar[str] = "load"

    url: str = setting(REQUIRED, "What to ask for, http or https; *.localhost is this machine.", positional=True)
    visitors: int = setting(10_000, "Visitors of the crowd.", minimum=1, maximum=1_000_000)
    within_s: float = setting(2.0, "Over which time they arrive; 0s is all at once.", minimum=0)
    requests: int = setting(1, "Requests of each visitor, one after the other.", minimum=1)
    hold: bool = setting(True, "Visitors stay connected until the last one was answered, as browsers do.")
    duration_s: float | None = setting(None, "Ask for this long instead of once per visitor.")
    concurrency: int = setting(64, "Connections used with --duration.", minimum=1, maximum=1_000_000)
    rate: float | None = setting(None, "Requests per second to start, with --duration.")
    method: str = setting("GET", "Request method.")
    header: tuple[str, ...] = setting((), 'Field to send, "Name: value".', short="-H", metavar="FIELD")
    body: str = setting("", "Body to send; @FILE reads it from a file.")
    timeout_s: float = setting(10.0, "How long a request may take, dialling included.")
    connect: str = setting("", "Dial this instead of the URL's host and port.", metavar="HOST:PORT")
    cacert: Path | None = setting(None, "Certificates (PEM) to trust besides the system's.")
    insecure: bool = setting(False, "Do not verify the server's certificate.")
    i_own_this_host: bool = setting(False, "Allow a host that is not this machine. Only for servers of your own.")
    json: bool = setting(False, "Print the result as JSON.")
    quiet: bool = setting(False, "Show nothing while it runs.")


def plan_from_settings(settings: LoadSettings) -> LoadPlan:
    """The plan that the flags describe, but for whom to trust; raises `ConfigError` where they contradict each other."""
    return LoadPlan(
        url=settings.url,
        arrivals=_arrivals(settings),
        method=settings.method,
        headers=parse_headers(settings.header),
        body=_body(settings.body),
        timeout_s=settings.timeout_s,
        connect=parse_connect(settings.connect),
        insecure=settings.insecure,
        owns_host=settings.i_own_this_host,
    )


def _arrivals(settings: LoadSettings) -> Arrivals:
    if settings.duration_s is None:
        if settings.rate is not None:
            raise ConfigError("--rate says how often, not for how long", remedy="add --duration 10s")
        return Crowd(settings.visitors, settings.within_s, settings.requests, settings.hold)
    if settings.rate is not None:
        return OpenLoop(settings.rate, settings.concurrency, settings.duration_s)
    return ClosedLoop(settings.concurrency, settings.duration_s)


def parse_headers(pieces: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`Name: value` texts as pairs. A flag's value is one field, commas and all; raises `ConfigError` for what is none."""
    fields: list[tuple[str, str]] = []
    for piece in pieces:
        if not _STARTS_HEADER.match(piece):
            raise ConfigError(
                f"--header {piece!r} is not a header field",
                remedy='write "Name: value", each with a --header of its own (EDGETUN_HEADER ends a field at a comma)',
            )
        name, _, value = piece.partition(":")
        fields.append((name, value.strip()))
    return tuple(fields)


def parse_connect(text: str) -> tuple[str, int] | None:
    """`HOST:PORT`, with an IPv6 address in brackets; None for the empty string."""
    if not text:
        return None
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not separator or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"--connect {text!r} is not HOST:PORT", remedy="write it as 127.0.0.1:8080 or [::1]:8080")
    return host, int(port)


def _body(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise ConfigError(f"--body {text}: {error.strerror}", remedy="check the path") from None

"""Log lines of every edgetun process: plain ones for people or JSON for machines, on stderr, with secrets masked.

Masking works on the finished line, so neither an argument, an extra field nor a traceback can carry a secret past it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, Final, TextIO

# A token holds an upper-case letter or a digit early on (it is base64 of msgpack); module and metric names do not.
_SECRETS: Final = (
    (re.compile(r"edgetun_(?=[a-z_\-]{0,16}[A-Z0-9])[A-Za-z0-9_\-]{8,}"), "edgetun_<redacted>"),
    (
        re.compile(
            r"(?i)((?:proxy-)?authorization[\"']?\s{0,4}[:=,]\s{0,4}b?[\"']?)(?:[a-z]{1,20} +)?[^\s\"',]{1,8192}"
        ),
        r"\1<redacted>",
    ),
    (re.compile(r"(?i)\b(bearer|basic) +[a-z0-9+/=._~\-]{8,}"), r"\1 <redacted>"),
    # A session credential: claims, a dot, an Ed25519 signature.
    (re.compile(r"\b[A-Za-z0-9_\-]{40,}\.[A-Za-z0-9_\-]{86}(?![A-Za-z0-9_\-])"), "<redacted credential>"),
)

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NOISY: Final = ("asyncio", "aiohttp", "qh3", "aioquic", "quic")
"""Libraries whose own chatter is kept to warnings unless somebody debugs."""


def redact(text: str) -> str:
    """Masks cluster tokens, session credentials and `Authorization` values in a text on its way to people."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class PlainFormatter(logging.Formatter):
    """`12:30:05 warning: message`, with colour for the level on a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._colours = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m"} if is_terminal else {}

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        if record.levelno != logging.INFO:
            colour = self._colours.get(min(record.levelno, logging.ERROR), "")
            level = record.levelname.lower()
            message = f"{colour}{level}:\x1b[0m {message}" if colour else f"{level}: {message}"
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        return redact(f"{at} {message}")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time` (UTC), `level`, `logger`, `message`, then the extra fields, `exception` when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in line:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return redact(json.dumps(line, default=str, ensure_ascii=False))


def setup_logging(json: bool = False, quiet: bool = False, level: str = "info", stream: TextIO | None = None) -> None:
    """Sends all logging to stderr. `quiet` leaves warnings and errors; `level` is debug, info, warning or error.

    Called again, it replaces what it had set up.
    """
    chosen = max(logging.getLevelNamesMapping()[level.upper()], logging.WARNING if quiet else 0)
    target = stream if stream is not None else sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(JsonFormatter() if json else PlainFormatter(target.isatty()))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(chosen)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(chosen, logging.WARNING) if chosen > logging.DEBUG else chosen)
    logging.captureWarnings(True)

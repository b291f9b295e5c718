"""Durations, sizes and rates as people write them: `500ms`, `1m30s`, `8Mi`, `10MB`, `100/s`.

Shared by resources, settings and command lines; imports nothing heavy, because an exit node reads its settings with it. Every
function raises `ValueError` with a message for a person. The patterns are those the CRDs will carry; durations are also
readable by Go's and CEL's `duration()`.
"""

from __future__ import annotations

import re
from typing import Final

DURATION_PATTERN: Final = r"^([0-9]{1,7}(\.[0-9]{1,3})?(h|ms|m|s)){1,4}$"
BYTES_PATTERN: Final = r"^[0-9]{1,16}(\.[0-9]{1,3})?((k|K|M|G|T)i?)?B?$"
RATE_PATTERN: Final = r"^[0-9]{1,9}(\.[0-9]{1,3})?/(s|m|h)$"

MAX_DURATION_S: Final = 10 * 365 * 86400.0
MAX_BYTES: Final = 1 << 50

_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_UNIT_BYTES: Final = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "ki": 1 << 10,
    "Mi": 1 << 20,
    "Gi": 1 << 30,
    "Ti": 1 << 40,
}

_duration = re.compile(DURATION_PATTERN, re.ASCII)
_duration_part = re.compile(r"([0-9.]+)(h|ms|m|s)", re.ASCII)
_bytes = re.compile(r"^([0-9]{1,16}(?:\.[0-9]{1,3})?)((?:k|K|M|G|T)?i?)B?$", re.ASCII)
_rate = re.compile(r"^([0-9]{1,9}(?:\.[0-9]{1,3})?)/(s|m|h)$", re.ASCII)


def quoted(value: object) -> str:
    """A value as a message shows it: quoted, on one line, and not too long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "an empty value"
    if isinstance(value, int | float):
        return str(value) if abs(value) < 1e18 else "a very large number"
    if not isinstance(value, str):
        return "a list" if isinstance(value, list | tuple) else "a mapping"
    text = one_line(value).replace('"', '\\"')
    return f'"{text}"'


def one_line(text: str, longest: int = 60) -> str:
    """Text that people wrote, without what would break a message: line ends, control characters, great length."""
    short = text if len(text) <= longest else text[: longest - 3] + "..."
    return short if short.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in short)


def parse_duration(value: object) -> float:
    """Seconds of a duration such as `500ms`, `2s`, `1m30s`, `1h`."""
    if not isinstance(value, str) or not _duration.match(value) or value[-1] == "\n":
        raise ValueError(f"{quoted(value)} is not a duration; write 2s, 500ms or 1m")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _duration_part.findall(value))
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{quoted(value)} is longer than ten years; write a shorter duration")
    return round(seconds, 6)


def format_duration(seconds: float) -> str:
    """The shortest way to write a duration that `parse_duration` reads back (to the millisecond)."""
    ms = round(seconds * 1000)
    if ms == 0:
        return "0s"
    parts = []
    for unit in ("h", "m", "s", "ms"):
        count, ms = divmod(ms, _UNIT_MS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def parse_bytes(value: object) -> int:
    """Bytes of a size such as `8Mi` (1024s), `10MB` (1000s), `512k` or a plain number."""
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value) if abs(value) <= MAX_BYTES else "x"
    else:
        text = value if isinstance(value, str) else "x"
    match = _bytes.match(text)
    if match is None or text[-1] == "\n" or match[2] == "i":
        raise ValueError(f"{quoted(value)} is not a size; write 8Mi, 10MB or 65536")
    size = int(float(match[1]) * _UNIT_BYTES[match[2].replace("K", "k")])
    if size > MAX_BYTES:
        raise ValueError(f"{quoted(value)} is more than 1024Ti; write a smaller size")
    return size


def format_bytes(size: int) -> str:
    """The shortest exact way to write a size: `8Mi`, `10M`, `1000001`."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if size and size % _UNIT_BYTES[unit.replace("K", "k")] == 0:
            return f"{size // _UNIT_BYTES[unit.replace('K', 'k')]}{unit}"
    for unit in ("T", "G", "M", "k"):
        if size and size % _UNIT_BYTES[unit] == 0:
            return f"{size // _UNIT_BYTES[unit]}{unit}"
    return str(size)


def parse_rate(value: object) -> float:
    """Events per second of a rate such as `100/s`, `600/m`, `10/h`."""
    match = _rate.match(value) if isinstance(value, str) else None
    if match is None or match.string[-1] == "\n":
        raise ValueError(f"{quoted(value)} is not a rate; write 100/s, 600/m or 10/h")
    return float(match[1]) / _UNIT_S[match[2]]


def format_rate(per_second: float) -> str:
    """A rate that `parse_rate` reads back: per second, minute or hour, whichever needs no fraction."""
    for unit in ("s", "m", "h"):
        count = round(per_second * _UNIT_S[unit], 6)
        if count == int(count):
            return f"{int(count)}/{unit}"
    return f"{round(per_second * 3600.0, 3)}/h"

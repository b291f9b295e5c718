"""HTTP dates (RFC 9110 §5.6.7): strict reading of the three formats, writing of the one."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Final

_MONTHS: Final = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_DAYS: Final = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTH_NUMBER: Final = {name.lower(): number for number, name in enumerate(_MONTHS, 1)}
_MONTH: Final = b"|".join(_MONTHS)

_FIRST_OF_LAST_CENTURY: Final = (time.gmtime().tm_year + 51) % 100
"""Two-digit years more than 50 years ahead are past ones (RFC 9110 §5.6.7); no process runs long enough to see this move."""

# Case does not count (RFC 9111 §4.2), but zones other than GMT do not count as dates at all.
_IMF = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d\d) (" + _MONTH + rb") (\d{4}) (\d\d):(\d\d):(\d\d) GMT", re.IGNORECASE
)
_RFC850 = re.compile(
    rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (\d\d)-(" + _MONTH + rb")-(\d\d) (\d\d):(\d\d):(\d\d) GMT",
    re.IGNORECASE,
)
_ASCTIME = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) (" + _MONTH + rb") ([ \d]\d) (\d\d):(\d\d):(\d\d) (\d{4})", re.IGNORECASE
)


def parse_http_date(value: bytes) -> float | None:
    """Seconds since 1970 (UTC), or None for anything that is not an HTTP-date."""
    if match := _IMF.fullmatch(value):
        day, month, year, hour, minute, second = match.groups()
    elif match := _RFC850.fullmatch(value):
        day, month, year, hour, minute, second = match.groups()
        year = (b"20" if int(year) < _FIRST_OF_LAST_CENTURY else b"19") + year
    elif match := _ASCTIME.fullmatch(value):
        month, day, hour, minute, second, year = match.groups()
    else:
        return None
    try:
        # A leap second (60) counts as the second before it.
        moment = datetime(
            int(year),
            _MONTH_NUMBER[month.lower()],
            int(day),
            int(hour),
            int(minute),
            59 if second == b"60" else int(second),
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return moment.timestamp()


def format_http_date(wall_s: float) -> bytes:
    """IMF-fixdate of a moment given in seconds since 1970."""
    moment = time.gmtime(wall_s)
    return b"%s, %02d %s %04d %02d:%02d:%02d GMT" % (
        _DAYS[moment.tm_wday],
        moment.tm_mday,
        _MONTHS[moment.tm_mon - 1],
        moment.tm_year,
        moment.tm_hour,
        moment.tm_min,
        moment.tm_sec,
    )

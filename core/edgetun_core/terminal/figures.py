"""Figures for people: times, sizes, shares."""

from __future__ import annotations


def format_us(value_us: float) -> str:
    """A time for a person, three digits and a unit: `178 us`, `1.48 ms`, `13.2 ms`, `2.05 s`."""
    if value_us < 999.5:
        return f"{value_us:.0f} us"
    unit, value = ("ms", value_us / 1e3) if value_us < 999_500 else ("s", value_us / 1e6)
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def format_size(size: float) -> str:
    """A size for a person: `512 B`, `1.2 KiB`, `3.4 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def percent(part: int, whole: int) -> str:
    """A share that says 100 % only when it is all, and 0 % only when it is nothing."""
    share = 100 * part / whole if whole else 0.0
    for digits in (1, 2, 3):
        text = f"{share:.{digits}f}"
        if part in {0, whole} or float(text) not in {0.0, 100.0}:
            return f"{text.rstrip('0').rstrip('.')} %"
    return f"{'more' if part * 2 < whole else 'less'} than {'0' if part * 2 < whole else '100'} %"

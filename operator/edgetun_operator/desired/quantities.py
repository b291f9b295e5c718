"""Amounts of resources in the form in which the API server gives them back, so that nothing looks changed that is not."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

_DECIMAL: Final = {"m": Fraction(1, 1000), "": Fraction(1), "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15)}  # fmt: skip
_BINARY: Final = {"Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40), "Pi": Fraction(2**50)}  # fmt: skip


def canonical_quantity(value: str | int) -> str:
    """`0.5` is `500m`, `1024Mi` is `1Gi`, `5000` is `5k`: the largest unit that leaves a whole number.

    Text that is no quantity (or has more digits than milli holds) comes back as it is; the API server has its own word on that.
    """
    text = str(value)
    number = text.rstrip("mkMGTPi")
    unit = text[len(number) :]
    factor = _DECIMAL.get(unit) or _BINARY.get(unit)
    try:
        amount = Fraction(number) * factor if factor is not None else None
    except (ValueError, ZeroDivisionError):
        amount = None
    if amount is None:
        return text
    if unit in _BINARY and amount >= 1024 and amount.denominator == 1:
        return _largest(amount, {"": Fraction(1), **_BINARY})
    return _largest(amount, _DECIMAL) or text


def _largest(amount: Fraction, units: dict[str, Fraction]) -> str:
    if not amount:
        return "0"
    for unit, factor in sorted(units.items(), key=lambda item: -item[1]):
        if (amount / factor).denominator == 1:
            return f"{amount / factor}{unit}"
    return ""

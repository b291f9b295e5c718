"""Duration, Bytes and Rate as types of model fields: text in YAML, seconds, bytes and events per second in Python."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from edgetun_core.quantities import (
    BYTES_PATTERN,
    DURATION_PATTERN,
    RATE_PATTERN,
    format_bytes,
    format_duration,
    format_rate,
    parse_bytes,
    parse_duration,
    parse_rate,
)

FROM_TEXT = "edgetun-from-text"
"""Validation context of everything that people wrote. Without it, Python code may give seconds and rates as numbers."""


def _number_from_python(value: object, info: ValidationInfo) -> bool:
    return info.context != FROM_TEXT and isinstance(value, int | float) and not isinstance(value, bool)


def _read_duration(value: object, info: ValidationInfo) -> float:
    return float(value) if _number_from_python(value, info) else parse_duration(value)  # type: ignore[arg-type]


def _read_rate(value: object, info: ValidationInfo) -> float:
    return float(value) if _number_from_python(value, info) else parse_rate(value)  # type: ignore[arg-type]


Duration = Annotated[
    float,
    BeforeValidator(_read_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN, "maxLength": 48, "x-edgetun-type": "duration"}),
]

Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    PlainSerializer(format_bytes, return_type=str),
    WithJsonSchema({"x-kubernetes-int-or-string": True, "pattern": BYTES_PATTERN, "x-edgetun-type": "size"}),
]

Rate = Annotated[
    float,
    BeforeValidator(_read_rate),
    PlainSerializer(format_rate, return_type=str),
    WithJsonSchema({"type": "string", "pattern": RATE_PATTERN, "maxLength": 16, "x-edgetun-type": "rate"}),
]

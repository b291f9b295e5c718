"""What a test needs from the machine: without it the test is skipped and says so, and under EDGETUN_REQUIRE_ALL=1 it fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def must_have_all() -> bool:
    return os.environ.get("EDGETUN_REQUIRE_ALL", "0") not in {"", "0"}


def missing(what: str) -> NoReturn:
    """Ends the test that cannot run here; `what` says what is missing and how to get it."""
    if must_have_all():
        pytest.fail(f"EDGETUN_REQUIRE_ALL is set, and this is missing: {what}", pytrace=False)
    pytest.skip(what)

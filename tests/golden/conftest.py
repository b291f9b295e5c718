"""`pytest tests/golden --update-golden` writes what the compiler says now into the `.out.yaml` files."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.out.yaml")

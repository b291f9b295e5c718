"""A running `edgetun serve` that the tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.serving import Server, start_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("server")
    with start_server(state) as command:
        yield Server(command, state)

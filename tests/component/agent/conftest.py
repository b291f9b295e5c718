"""Every test here runs on uvloop, which the agent uses, and on asyncio's own loop, which it must work on too."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from edgetun_core.pki import DevelopmentCA, ServerIdentity


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCA:
    return DevelopmentCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def identity(authority: DevelopmentCA) -> ServerIdentity:
    return authority.identity(["127.0.0.1"])

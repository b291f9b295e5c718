"""Every `*.in.yaml` here (one ExitPool) becomes the objects in its `*.out.yaml`.

The first line may change the installation: `# http3=yes certificates=shop-tls,other-tls pull_secrets=registry`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.load import load_text
from edgetun_operator.desired.fleet import Fleet
from edgetun_operator.desired.pool import build_pool

HERE = Path(__file__).parent
INPUTS = sorted(HERE.glob("*.in.yaml"))


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def rendered(path: Path) -> str:
    text = path.read_bytes()
    asked: dict[str, str] = dict(re.findall(r"(\w+)=(\S+)", text.partition(b"\n")[0].decode()))
    loaded = load_text(text, path.name)
    assert not loaded.problems
    (pool,) = loaded.resources
    assert isinstance(pool, ExitPool)
    fleet = Fleet(
        namespace="edgetun-system",
        image="registry.example.com/edgetun:1.0",
        pull_secrets=_words(asked.get("pull_secrets")),
        control="https://edgetun-control.edgetun-system.svc:7444",
        ca_pem="-----BEGIN CERTIFICATE-----\n",
        http3=asked.get("http3") == "yes",
    )
    objects = [
        {"apiVersion": desired.kind.api_version, "kind": desired.kind.kind, **desired.object}
        for desired in build_pool(pool, fleet, _words(asked.get("certificates")))
    ]
    return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=160, allow_unicode=True)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name.removesuffix(".in.yaml"))
def test_a_pool_becomes_its_golden_objects(path: Path, request: pytest.FixtureRequest) -> None:
    golden = path.with_name(path.name.replace(".in.yaml", ".out.yaml"))
    got = rendered(path)
    if request.config.getoption("--update-golden", default=False):
        golden.write_text(got, encoding="utf-8")
    assert got == golden.read_text(encoding="utf-8")


def test_there_are_golden_files() -> None:
    assert len(INPUTS) >= 6

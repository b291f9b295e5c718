"""Every `*.in.yaml` here compiles to its `*.out.yaml`: the snapshot (defaults left out) and the problems.

The first line of an input may say which pool and region: `# pool=default region=eu-west`, and, for a cluster, its namespaces with
their labels and edgetun's own: `namespaces=team-a:edge=public;team-b system=edgetun-system`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from edgetun_core.api.load import load_text
from edgetun_core.compile import compile_region
from edgetun_core.problem import sort_problems
from edgetun_core.snapshot import decode_snapshot, encode_snapshot

HERE = Path(__file__).parent
INPUTS = sorted(HERE.glob("*.in.yaml"))


def namespaces(text: str) -> dict[str, dict[str, str]]:
    """`team-a:edge=public,tier=1;team-b` as labels by namespace."""
    entries = (entry.partition(":") for entry in text.split(";"))
    return {name: dict(label.split("=") for label in labels.split(",") if label) for name, _, labels in entries}


def rendered(path: Path) -> str:
    text = path.read_bytes()
    asked: dict[str, str] = dict(re.findall(r"(\w+)=(\S+)", text.partition(b"\n")[0].decode()))
    loaded = load_text(text, path.name)
    snapshot, problems = compile_region(
        loaded.resources,
        asked.get("pool", "default"),
        asked.get("region", "eu-west"),
        version=1,
        namespaces=namespaces(asked["namespaces"]) if "namespaces" in asked else None,
        system_namespace=asked.get("system", ""),
    )
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot
    everything = sort_problems([*loaded.problems, *(loaded.place(problem) for problem in problems)])
    out: dict[str, Any] = {
        "problems": [{**msgspec.to_builtins(problem), "rendered": problem.render()} for problem in everything],
        "snapshot": msgspec.to_builtins(snapshot),
    }
    for problem in out["problems"]:
        del problem["message"], problem["file"], problem["line"]
    return yaml.safe_dump(out, sort_keys=False, width=160, allow_unicode=True)


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.name.removesuffix(".in.yaml"))
def test_compiles_to_its_golden_file(path: Path, request: pytest.FixtureRequest) -> None:
    golden = path.with_name(path.name.replace(".in.yaml", ".out.yaml"))
    got = rendered(path)
    if request.config.getoption("--update-golden", default=False):
        golden.write_text(got, encoding="utf-8")
    assert golden.exists(), f"{golden.name} is missing; run pytest tests/golden --update-golden and read it"
    assert got == golden.read_text(encoding="utf-8"), "run pytest tests/golden --update-golden when this is meant"


def test_there_are_enough_cases() -> None:
    assert len(INPUTS) >= 12

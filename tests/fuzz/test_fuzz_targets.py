"""Every fuzz target loads and survives its seeds and a few hundred mutations of them; `make fuzz` goes on from there."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("fuzz_run", Path(__file__).with_name("run.py"))
assert _spec is not None
assert _spec.loader is not None
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)


@pytest.mark.parametrize("path", run.targets(), ids=lambda path: path.stem)
def test_a_target_survives_a_short_run(path: Path):
    module = run.load(path)
    rng = random.Random(2024)
    seeds = [*getattr(module, "SEEDS", ()), b"", bytes(16)]
    for seed in seeds:
        module.fuzz(seed)
    for _ in range(200):
        module.fuzz(run.mutate(rng.choice(seeds), seeds, rng))


def test_a_finding_is_found_and_handed_over():
    def fuzz(data: bytes) -> None:
        if len(data) > 20 and data[0] == 0xFF:
            raise ValueError

    _, failed = run.mutation_loop(fuzz, [bytes(30)], 10.0, random.Random(1))
    assert failed is not None
    assert failed[0] == 0xFF


def test_the_targets_are_all_there_and_can_be_named():
    assert [path.stem for path in run.targets(["wire"])] == ["fuzz_wire"]
    assert {"fuzz_wire", "fuzz_h1"} <= {path.stem for path in run.targets()}

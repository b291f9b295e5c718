"""Runs every `fuzz_*.py` beside this file for so many seconds each: `python tests/fuzz/run.py --seconds 60 [name ...]`.

A target is a module with `fuzz(data: bytes) -> None`, in which any exception is a finding, and perhaps `SEEDS`. With atheris
(coverage-guided) installed it is used; without, the bytes come from the mutation loop below. The first line of each run
says which. Findings are written to a file, printed, and make the exit code 1.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
FINDINGS = Path(tempfile.gettempdir()) / "edgetun-fuzz"
MAX_BYTES = 4096
SLOW_S = 5.0


def targets(names: Iterable[str] = ()) -> list[Path]:
    """The target files, all or those named (`wire`, `fuzz_wire` or a path)."""
    found = sorted(HERE.glob("fuzz_*.py"))
    wanted = {Path(name).stem.removeprefix("fuzz_") for name in names}
    return [path for path in found if not wanted or path.stem.removeprefix("fuzz_") in wanted]


def load(path: Path) -> ModuleType:
    """Imports a target by its file."""
    for folder in (str(HERE.parent), str(HERE)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A changed copy: bits, bytes, runs, numbers at the edge of something, pieces of others."""
    result = bytearray(data)
    for _ in range(1 << rng.randrange(4)):
        place = rng.randrange(len(result) + 1)
        match rng.randrange(8):
            case 0 if result:
                result[place % len(result)] ^= 1 << rng.randrange(8)
            case 1 if result:
                result[place % len(result)] = rng.choice(
                    (0, 1, 2, 0x0A, 0x0D, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256))
                )
            case 2:
                result[place:place] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                del result[place : place + rng.randrange(1, 9)]
            case 4:
                size = rng.choice((1, 2, 4, 8))
                result[place : place + size] = (
                    rng.choice((0, 1, 0xFF, 0x7F, 1 << 15, 1 << 16)) % (1 << 8 * size)
                ).to_bytes(size, "big")
            case 5:
                stop = place + rng.randrange(1, 33)
                result[place:place] = result[place:stop] * rng.randrange(1, 5)
            case 6:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                result[place:place] = other[start : start + rng.randrange(1, 65)]
            case _:
                result[place:] = rng.choice(others)
    return bytes(result[:MAX_BYTES])


def mutation_loop(
    fuzz: Callable[[bytes], None], seeds: list[bytes], seconds: float, rng: random.Random
) -> tuple[int, bytes | None]:
    """Runs until the time is up or something is found: (inputs tried, the input that failed)."""
    corpus = seeds or [b"", b"\0" * 16]
    until = time.monotonic() + seconds
    tried = 0
    for data in list(corpus):
        tried += 1
        if not _survives(fuzz, data):
            return tried, data
    while time.monotonic() < until:
        data = mutate(rng.choice(corpus), corpus, rng)
        tried += 1
        if not _survives(fuzz, data):
            return tried, data
        # Without coverage nothing says what is interesting; a drifting corpus at least goes on to where seeds do not reach.
        if rng.random() < 0.02:
            if len(corpus) < 200 + len(seeds):
                corpus.append(data)
            else:
                corpus[rng.randrange(len(seeds), len(corpus))] = data
    return tried, None


def _survives(fuzz: Callable[[bytes], None], data: bytes) -> bool:
    started = time.monotonic()
    try:
        fuzz(data)
    except Exception:
        traceback.print_exc()
        return False
    took = time.monotonic() - started
    if took > SLOW_S:
        print(f"an input of {len(data)} bytes took {took:.1f} s", file=sys.stderr)
        return False
    return True


def run_one(path: Path, seconds: float, seed: int) -> int:
    """Fuzzes one target in this process; returns the exit code (atheris ends the process itself)."""
    if importlib.util.find_spec("atheris") is not None:
        return _run_atheris(path, seconds)
    print(f"{path.stem}: {seconds:g} s with the built-in mutation loop (atheris is not installed)", flush=True)
    module = load(path)
    tried, failed = mutation_loop(module.fuzz, list(getattr(module, "SEEDS", ())), seconds, random.Random(seed))
    print(f"{path.stem}: {tried} inputs, {'nothing found' if failed is None else 'one finding'}", flush=True)
    if failed is None:
        return 0
    FINDINGS.mkdir(exist_ok=True)
    file = FINDINGS / f"{path.stem}-{hashlib.sha256(failed).hexdigest()[:16]}"
    file.write_bytes(failed)
    print(f"{path.stem}: the input is in {file}: {failed[:200]!r}", flush=True)
    return 1


def _run_atheris(path: Path, seconds: float) -> int:
    import atheris  # type: ignore[import-not-found, unused-ignore]

    print(f"{path.stem}: {seconds:g} s with atheris", flush=True)
    with atheris.instrument_imports(
        include=["edgetun_core", "edgetun_exitnode", "edgetun_agent", "edgetun_control", path.stem]
    ):
        module = load(path)
    FINDINGS.mkdir(exist_ok=True)
    corpus = FINDINGS / f"corpus-{path.stem}"
    corpus.mkdir(exist_ok=True)
    for seed in getattr(module, "SEEDS", ()):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = [f"-max_total_time={max(1, int(seconds))}", f"-max_len={MAX_BYTES}", f"-timeout={int(SLOW_S)}"]
    options += [f"-artifact_prefix={FINDINGS}/{path.stem}-", "-verbosity=0", "-print_final_stats=1", str(corpus)]
    atheris.Setup([sys.argv[0], *options], module.fuzz)
    atheris.Fuzz()
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Fuzz every parser of network bytes.")
    parser.add_argument("names", nargs="*", help="targets, such as wire; all when none is named")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=None, help="of the built-in mutation loop")
    parser.add_argument("--in-this-process", action="store_true", help="one target, not in a process of its own")
    options = parser.parse_args(arguments)
    chosen = targets(options.names)
    if not chosen:
        print(f"there is no such target; there are {', '.join(path.stem for path in targets())}", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    if options.in_this_process:
        return run_one(chosen[0], options.seconds, seed)
    failed = []
    for path in chosen:
        command = [
            sys.executable,
            __file__,
            "--in-this-process",
            f"--seconds={options.seconds}",
            f"--seed={seed}",
            path.stem,
        ]
        if subprocess.run(command, check=False).returncode:
            failed.append(path.stem)
    print(f"{len(chosen)} targets, {'no findings' if not failed else 'findings in ' + ', '.join(failed)} (seed {seed})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`edgetun validate -f FILE...`: says everything that is wrong with resource files, with file and line.

`edgetun up` reads its files through `validate_files` too, so both say the same.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Final, NamedTuple, TextIO

from edgetun_core.api.exitpool import ExitPool, ExitPoolSpec, Region
from edgetun_core.api.load import AnyResource, load_files
from edgetun_core.api.meta import Metadata
from edgetun_core.api.streams import every_port
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.compile import Plan
from edgetun_core.problem import Problem, has_errors, sort_problems
from edgetun_core.settings import REQUIRED, setting

OK: Final = 0
WRONG: Final = 1
USAGE: Final = 2

LOCAL_REGION: Final = "local"
ASSUMED: Final = "edgetun.dev/assumed"
"""Label of pools that no file has."""

_OTHERS: Final = {"AgentToken": "agent token", "Agent": "agent", "HostnameReservation": "reservation"}


@dataclass(frozen=True, slots=True)
class ValidateSettings:
    """Checks manifest files and says what is wrong in them, with file and line."""

    section: ClassVar[str] = "validate"

    file: tuple[str, ...] = setting(
        REQUIRED, "Manifest files or folders, or - for standard input.", short="-f", metavar="FILE", several=True
    )
    json: bool = setting(False, "Print each problem as a line of JSON.")


class Validation(NamedTuple):
    """What a set of files comes to. `resources` have the pools that were assumed for them at the end."""

    problems: tuple[Problem, ...]
    resources: tuple[AnyResource, ...]

    @property
    def is_servable(self) -> bool:
        """Whether nothing keeps a resource or a part of one from being served."""
        return not has_errors(self.problems)


def validate_files(paths: Iterable[str | Path], *, stdin: BinaryIO | None = None) -> Validation:
    """Reads and compiles files, folders and `-`.

    Files without any ExitPool are meant for pools that stand elsewhere: whatever pool and regions their tunnels name is
    assumed to exist and to allow every hostname.
    """
    loaded = load_files(paths, stdin)
    resources = loaded.resources
    if not any(isinstance(resource, ExitPool) for resource in resources):
        resources = (*resources, *assumed_pools(loaded.resources))
    found = [loaded.place(problem) for problem in Plan(resources).problems]
    return Validation(sort_problems([*loaded.problems, *found]), resources)


def assumed_pools(resources: Iterable[AnyResource]) -> tuple[ExitPool, ...]:
    """The pools that tunnels name, with the regions they name and one called `local`, open to every hostname and port."""
    regions: dict[str, dict[str, None]] = {}
    for resource in resources:
        if isinstance(resource, Tunnel):
            choice = resource.spec.pool
            named = regions.setdefault(choice.name, {LOCAL_REGION: None})
            named.update(dict.fromkeys([*choice.regions.allow, *choice.regions.deny]))
    return tuple(
        ExitPool.model_construct(
            metadata=Metadata(name=name, labels={ASSUMED: "true"}),
            spec=ExitPoolSpec.model_construct(
                regions=[Region.model_construct(name=region) for region in named],
                domains=["*"],
                ports=every_port(),
            ),
        )
        for name, named in sorted(regions.items())
    )


def run(
    settings: ValidateSettings,
    *,
    stdin: BinaryIO | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> int:
    """The command: 0 when all is well (warnings are), 1 when something is wrong, 2 when a file cannot be read."""
    out, err = stdout or sys.stdout, stderr or sys.stderr
    if not settings.file:
        err.write("error: no file is named; write edgetun validate -f tunnel.yaml\n")
        return USAGE
    problems, resources = validate_files(settings.file, stdin=stdin)
    for problem in problems:
        if settings.json:
            out.write(json.dumps(asdict(problem)) + "\n")
        else:
            err.write(f"{problem.severity}: {problem.render()}\n")
    errors = [problem for problem in problems if problem.severity == "error"]
    if any(problem.reason == "Unreadable" for problem in errors):
        return USAGE
    if errors:
        return WRONG
    if not settings.json:
        kinds: Counter[str] = Counter(
            resource.kind for resource in resources if ASSUMED not in resource.metadata.labels
        )
        others = [_count(kinds[kind], noun) for kind, noun in _OTHERS.items() if kinds[kind]]
        listed = [_count(kinds["Tunnel"], "tunnel"), *others, _count(kinds["ExitPool"], "exit pool")]
        out.write(f"{', '.join(listed[:-1])} and {listed[-1]}: all is well\n")
    return OK


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

"""Problem: what is wrong with a resource, for the person who wrote it. The loader and the compiler both speak it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding. `reason` is the CamelCase reason of a condition; `field` a path such as `spec.routes[0].origin`.

    `resource` is `"Tunnel team-a/shop"` or `"ExitPool public"`, empty when the text could not be read that far. `file` and
    `line` (from 1) are there when the resource came from a file.
    """

    severity: Severity
    resource: str
    field: str
    reason: str
    message: str
    file: str = ""
    line: int = 0

    def render(self) -> str:
        """One line: `tunnel.yaml:14: spec.cache.ttl: ...`, or led by the resource where there is no file."""
        place = f"{self.file}:{self.line}" if self.line else self.file or self.resource
        parts = [part for part in (place, self.field, self.message) if part]
        return ": ".join(parts)


def sort_problems(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """By file, line, resource and field, without repetitions: the order in which a person mends them."""
    unique = dict.fromkeys(problems)
    return tuple(sorted(unique, key=lambda p: (p.file, p.line, p.resource, _natural(p.field), p.reason, p.message)))


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether something in there keeps a resource, or a part of it, from being served."""
    return any(problem.severity == "error" for problem in problems)


def _natural(field: str) -> tuple[tuple[int, str], ...]:
    """Sorts `routes[10]` after `routes[9]`."""
    parts = field.replace("]", "").replace("[", ".").split(".")
    return tuple((int(part), "") if part.isdigit() and len(part) < 10 else (-1, part) for part in parts)

"""docs/caching.md names the tests that hold each requirement: they exist, and no requirement is without one."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "caching.md").read_text()
TESTS = {
    name
    for path in (ROOT / "tests" / "unit" / "exitnode" / "cache").glob("test_*.py")
    for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
}


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 100
    assert named - TESTS == set()


def test_every_requirement_of_rfc_9111_has_a_test():
    found = rows("RFC 9111, sentence by sentence")
    assert len(found) > 70
    for cells in found:
        section, requirement, tests = cells
        assert section.startswith("§"), cells
        assert requirement, cells
        assert "`test_" in tests, cells


def test_every_section_with_requirements_is_there():
    sections = {part for cells in rows("RFC 9111, sentence by sentence") for part in re.findall(r"§[\d.]+", cells[0])}
    wanted = "2 3 3.1 3.2 3.3 3.4 3.5 4 4.1 4.2 4.2.1 4.2.2 4.2.3 4.2.4 4.3.1 4.3.2 4.3.3 4.3.4 4.3.5 4.4 5.1 5.2 5.2.1.1 5.2.1.2"
    wanted += (
        " 5.2.1.3 5.2.1.4 5.2.1.5 5.2.1.7 5.2.2 5.2.2.2 5.2.2.3 5.2.2.4 5.2.2.5 5.2.2.7 5.2.2.8 5.2.2.10 5.2.3 5.3 5.4"
    )
    assert {f"§{number}" for number in wanted.split()} <= sections


def test_every_promise_of_the_collapser_has_a_test():
    found = rows("What the collapser promises")
    assert len(found) >= 18
    assert all("`test_" in cells[1] for cells in found)

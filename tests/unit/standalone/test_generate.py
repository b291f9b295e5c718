"""The generated pages: complete, and checked against the code."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from edgetun.cli import COMMANDS, GROUPS
from edgetun.generate import build_commands_page, build_pages, build_resources_page, build_settings_page, main
from edgetun_core.exits import MEANINGS, ExitCode

ROOT = Path(__file__).parents[3]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "pyproject.toml").write_text("")
    assert main(["--root", str(tmp_path)]) == 0
    return tmp_path


def test_check_passes_on_what_was_just_written(copy: Path) -> None:
    assert main(["--root", str(copy), "--check"]) == 0


def test_check_fails_with_the_name_of_each_file_that_differs_and_what_to_run(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "docs/reference/resources.md").write_text("old")
    (copy / "examples/README.md").unlink()
    capsys.readouterr()
    assert main(["--root", str(copy), "--check"]) == 1
    err = capsys.readouterr().err
    assert "docs/reference/resources.md is not what the code says; run make generate and commit it" in err
    assert "examples/README.md" in err
    assert "settings.md" not in err
    assert (copy / "docs/reference/resources.md").read_text() == "old"


def test_somewhere_else_than_the_repository_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--root", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []
    assert "is not the repository" in capsys.readouterr().err


def test_the_resource_page_has_every_field_of_both_kinds() -> None:
    page = build_resources_page()
    for field in (
        "spec.hostnames",
        "spec.pool.regions.allow",
        "spec.origin.timeouts.response",
        "spec.origins[].name",
        "spec.routes[].path.prefix",
        "spec.cache.staleIfError",
        "spec.collapse.patience",
        "spec.limits.ratePerVisitor",
        "spec.headers.response.add",
        "spec.reconnectGrace",
        "spec.domains",
        "spec.certificates[].keyFile",
        "spec.limits.cacheBytes",
    ):
        assert f"| `{field}` |" in page, field


def test_tables_are_not_broken_by_what_stands_in_them() -> None:
    for name, text in build_pages(ROOT).items():
        columns = 0
        for line in text.splitlines():
            if not line.startswith("|"):
                columns = 0
                continue
            count = line.replace("\\|", "").count("|")
            assert columns in (0, count), f"{name}: {line}"
            columns = count


def test_the_commands_page_names_every_command_and_every_exit_code() -> None:
    page = build_commands_page()
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    groups = [f"edgetun {group} {name}" for group, (_, members) in GROUPS.items() for name in members]
    for command in (
        *(f"edgetun {name}" for name in COMMANDS),
        *groups,
        *(name for name in scripts if name != "edgetun"),
    ):
        assert f"`{command}`" in page
    for code in ExitCode:
        assert f"| {int(code)} | {MEANINGS[code]} |" in page


def test_every_link_of_the_commands_page_is_a_heading_of_the_settings_page() -> None:
    headings = {line[3:].replace(" ", "-") for line in build_settings_page().splitlines() if line.startswith("## ")}
    assert set(re.findall(r"settings\.md#([a-z-]+)", build_commands_page())) <= headings

"""`edgetun validate`: what it prints and how it ends."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from edgetun.validate import ValidateSettings, run, validate_files
from edgetun_core.api.exitpool import ExitPool
from edgetun_core.api.tunnel import Tunnel
from edgetun_core.compile import Plan

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))

GOOD = """\
apiVersion: edgetun.dev/v1alpha1
kind: Tunnel
metadata: {name: good}
spec: {hostnames: [good.localhost], origin: {url: http://localhost:3000}}
"""
POOL = """\
---
apiVersion: edgetun.dev/v1alpha1
kind: ExitPool
metadata: {name: default}
spec: {regions: [{name: eu}], domains: ["*.example.com"]}
"""


def validate(*files: str, stdin: str = "", as_json: bool = False) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = run(ValidateSettings(file=files, json=as_json), stdin=io.BytesIO(stdin.encode()), stdout=out, stderr=err)
    return code, out.getvalue(), err.getvalue()


def test_what_is_right_ends_with_zero() -> None:
    assert validate("-", stdin=GOOD) == (0, "1 tunnel and 0 exit pools: all is well\n", "")


def test_what_is_wrong_ends_with_one_and_a_line_per_problem() -> None:
    code, out, err = validate("-", stdin=GOOD.replace("http://", "") + "  # x\n---\nx: off\n")
    assert (code, out) == (1, "")
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["error", "error"]
    assert "error: stdin:4: spec.origin.url: " in err


def test_a_file_that_cannot_be_read_ends_with_two(tmp_path: Path) -> None:
    code, _, err = validate(str(tmp_path / "no.yaml"))
    assert code == 2
    assert "no.yaml: cannot be read (no such file or directory); check the path and its permissions" in err


def test_no_file_at_all_ends_with_two() -> None:
    assert validate()[0] == 2


def test_a_warning_is_printed_and_ends_with_zero() -> None:
    code, _, err = validate("-", stdin="apiVersion: v1\nkind: Secret\n---\n" + GOOD)
    assert code == 0
    assert err.startswith("warning: stdin:1: apiVersion: ")


def test_what_only_the_whole_set_can_break_has_a_line_too() -> None:
    code, _, err = validate("-", stdin=GOOD + POOL)
    assert code == 1
    assert err.startswith(
        'error: stdin:4: spec.hostnames[0]: "good.localhost" is outside the domains of ExitPool default'
    )


def test_files_without_a_pool_are_meant_for_pools_elsewhere() -> None:
    text = GOOD.replace("spec: {", "spec: {pool: {name: far, regions: {allow: [mars]}}, ")
    problems, resources = validate_files(["-"], stdin=io.BytesIO(text.encode()))
    assert problems == ()
    assert [resource.ref for resource in resources if isinstance(resource, ExitPool)] == ["ExitPool far"]
    assert len(Plan(resources).snapshot("far", "mars", 1).tunnels) == 1


def test_problems_can_be_read_by_programs() -> None:
    code, out, err = validate("-", stdin=GOOD.replace("good.localhost", "Good.localhost"), as_json=True)
    assert (code, err) == (1, "")
    (line,) = out.splitlines()
    told = json.loads(line)
    assert told["file"] == "stdin"
    assert told["line"] == 4
    assert told["field"] == "spec.hostnames[0]"


def test_there_is_an_example_for_every_feature() -> None:
    said = "".join(path.read_text() for path in EXAMPLES)
    for name in (
        "hostnames",
        "routes",
        "stripPrefix",
        "origins",
        "hostHeader",
        "tls",
        "unix:///",
        "health",
        "timeouts",
    ):
        assert name in said, name
    for name in ("cache", "staleIfError", "collapse", "limits", "headers", "forceHttps", "reconnectGrace", "regions"):
        assert name in said, name
    for name in ("ExitPool", "domains", "certificates", "cacheBytes"):
        assert name in said, name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid_on_its_own_and_says_what_it_shows(path: Path) -> None:
    problems, resources = validate_files([path])
    assert problems == ()
    assert resources
    assert path.read_text().startswith("# ")


def test_the_examples_are_valid_together() -> None:
    problems, resources = validate_files([ROOT / "examples"])
    assert problems == ()
    served = Plan(resources).everything("default", "eu-west", 1).tunnels
    assert len(served) == sum(isinstance(resource, Tunnel) for resource in resources)

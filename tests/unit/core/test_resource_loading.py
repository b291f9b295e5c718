"""Files, folders and standard input: everything wrong is told at once, with file and line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetun_core.api.load import MAX_PROBLEMS, load_files, load_text, parse_resource
from edgetun_core.problem import Problem, has_errors, sort_problems
from fuzz.fuzz_resources import SEEDS, fuzz

TUNNEL = """\
apiVersion: edgetun.dev/v1alpha1
kind: Tunnel
metadata:
  name: {name}
spec:
  hostnames: [{name}.example.com]
  origin:
    url: http://localhost:3000
"""


def lines_of(text: str) -> list[str]:
    return [problem.render() for problem in load_text(text.encode(), "t.yaml").problems]


def test_the_message_names_file_line_field_what_is_wrong_and_what_to_write() -> None:
    text = TUNNEL.format(name="shop") + "  cache:\n    mode: override\n    ttl: 2 seconds\n"
    assert lines_of(text) == ['t.yaml:11: spec.cache.ttl: "2 seconds" is not a duration; write 2s, 500ms or 1m']


def test_all_problems_of_all_files_come_at_once_sorted(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(TUNNEL.format(name="b") + "  forceHttps: 1\n  forceHttp: 1\n---\na: [\n")
    (tmp_path / "a.yml").write_text(TUNNEL.format(name="a").replace("url: http", "url: ftp"))
    (tmp_path / "c.yaml").write_text(TUNNEL.format(name="c"))
    (tmp_path / "notes.txt").write_text("not: [read")
    loaded = load_files([tmp_path, tmp_path / "missing.yaml"])
    assert [resource.ref for resource in loaded.resources] == ["Tunnel default/c"]
    assert [problem.render().removeprefix(f"{tmp_path}/").partition(": ")[0] for problem in loaded.problems] == [
        "a.yml:8",
        "b.yaml:9",
        "b.yaml:10",
        "b.yaml:13",
        "missing.yaml",
    ]


def test_a_missing_field_is_told_at_what_should_hold_it() -> None:
    text = "apiVersion: edgetun.dev/v1alpha1\nkind: Tunnel\nmetadata:\n  labels: {}\nspec:\n  hostnames: [a.b]\n"
    assert lines_of(text) == [
        "t.yaml:3: metadata.name: is missing; add name: shop",
        "t.yaml:5: spec.origin: is missing; add origin: {url: http://localhost:3000}",
    ]


def test_files_in_a_folder_are_read_by_name_and_not_deeper(tmp_path: Path) -> None:
    for name in ("z", "a"):
        (tmp_path / f"{name}.yaml").write_text(TUNNEL.format(name=name))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.yaml").write_text(TUNNEL.format(name="d"))
    assert [resource.metadata.name for resource in load_files([tmp_path]).resources] == ["a", "z"]


def test_standard_input_is_a_file_called_stdin() -> None:
    loaded = load_files(["-"], io.BytesIO(TUNNEL.format(name="Bad").encode()))
    assert loaded.problems[0].render().startswith('stdin:4: metadata.name: "Bad" is not a name')


def test_json_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(
        '{"apiVersion": "edgetun.dev/v1alpha1", "kind": "ExitPool", "metadata": {"name": "p"},\n'
        '\t"spec": {"regions": [{"name": "eu"}], "domains": ["*"]}}'
    )
    assert [resource.ref for resource in load_files([file]).resources] == ["ExitPool p"]


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "---\n---\n"])
def test_a_file_without_a_resource_is_told(text: str) -> None:
    assert lines_of(text) == ["t.yaml: holds no resource; write one that begins with apiVersion: edgetun.dev/v1alpha1"]


def test_an_empty_document_beside_a_resource_is_nothing() -> None:
    assert lines_of("---\n---\n" + TUNNEL.format(name="a") + "---\n") == []


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    (problem,) = load_files([tmp_path]).problems
    assert "holds no .yaml, .yml or .json file" in problem.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just words", '"just words" stands where a resource should'),
        ("- a\n- b", "a list stands where a resource should"),
        ("kind: Tunnel", "apiVersion: is missing; add apiVersion: edgetun.dev/v1alpha1"),
        (
            "apiVersion: edgetun.dev/v1alpha1",
            "kind: is missing; add kind: Tunnel, ExitPool, AgentToken, Agent or HostnameReservation",
        ),
        ("apiVersion: edgetun.dev/v2\nkind: Tunnel", '"edgetun.dev/v2" is not a version this edgetun reads'),
        (
            "apiVersion: edgetun.dev/v1alpha1\nkind: Tunel",
            '"Tunel" is not a kind; write Tunnel, ExitPool, AgentToken, Agent or HostnameReservation',
        ),
        ("apiVersion: edgetun.dev/v1alpha1\nkind: Tunnel\nmetadata: 5\nspec: {}", "metadata: is not a mapping"),
    ],
)
def test_what_is_no_resource_is_told(text: str, message: str) -> None:
    assert message in lines_of(text)[0]


def test_resources_of_others_are_left_alone_with_a_warning() -> None:
    loaded = load_text(b"apiVersion: apps/v1\nkind: Deployment\n---\n" + TUNNEL.format(name="a").encode(), "t.yaml")
    assert [problem.severity for problem in loaded.problems] == ["warning"]
    assert not has_errors(loaded.problems)
    assert len(loaded.resources) == 1


def test_the_second_resource_of_a_name_is_told_where_the_first_is() -> None:
    text = TUNNEL.format(name="a") + "---\n" + TUNNEL.format(name="a")
    assert lines_of(text) == [
        "t.yaml:13: metadata.name: Tunnel default/a is there already, at t.yaml:1; rename or remove one of them"
    ]


def test_a_list_as_kubectl_prints_it_is_its_items() -> None:
    items = "".join("- " + TUNNEL.format(name=name).replace("\n", "\n  ").rstrip() + "\n" for name in ("a", "b"))
    loaded = load_text(f"apiVersion: v1\nkind: List\nitems:\n{items}".encode(), "t.yaml")
    assert loaded.problems == ()
    assert [resource.metadata.name for resource in loaded.resources] == ["a", "b"]


def test_a_problem_found_later_gets_the_line_of_its_field() -> None:
    loaded = load_text(TUNNEL.format(name="a").encode(), "t.yaml")
    later = Problem("error", "Tunnel default/a", "spec.hostnames[0]", "HostnameConflict", "is held by another")
    assert loaded.place(later).render() == "t.yaml:6: spec.hostnames[0]: is held by another"
    stranger = Problem("error", "Tunnel default/b", "spec", "X", "y")
    assert loaded.place(stranger).render() == "Tunnel default/b: spec: y"


def test_problems_beyond_counting_are_summed_up() -> None:
    problems = load_text(b"---\nx\n" * (MAX_PROBLEMS + 50), "t.yaml").problems
    assert len(problems) == MAX_PROBLEMS + 1
    assert problems[-1].reason == "TooManyProblems"


def test_an_object_from_an_api_server_needs_no_file() -> None:
    resource, problems = parse_resource(
        {"apiVersion": "edgetun.dev/v1alpha1", "kind": "Tunnel", "metadata": {"name": "a"}}
    )
    assert resource is None
    assert [problem.render() for problem in problems] == [
        "Tunnel default/a: spec: is missing; add spec: {hostnames: [...], origin: {url: ...}}"
    ]


def test_problems_are_sorted_as_people_count_and_not_repeated() -> None:
    def at(line: int, field: str) -> Problem:
        return Problem("error", "T", field, "R", "m", "f", line)

    given = [at(2, "a[10]"), at(2, "a[9]"), at(1, "z"), at(2, "a[9]")]
    assert [(problem.line, problem.field) for problem in sort_problems(given)] == [(1, "z"), (2, "a[9]"), (2, "a[10]")]


@given(st.sampled_from(SEEDS), st.binary(max_size=20), st.integers(0, 400), st.integers(0, 30))
@settings(max_examples=200)
def test_whatever_is_done_to_a_file_only_problems_come_of_it(seed: bytes, put: bytes, at: int, take: int) -> None:
    fuzz(seed[:at] + put + seed[at + take :])


@given(st.text(alphabet="abc:-[]{}&*!#|>'\"?%@,. \n\t0", max_size=80))
def test_whatever_is_written_only_problems_come_of_it(text: str) -> None:
    fuzz(text.encode())

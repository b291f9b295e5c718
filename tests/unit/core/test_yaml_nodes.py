"""YAML text to values with lines: what is read, what is refused, and what bounds hold against hostile text."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgetun_core.api.yaml_nodes import MAX_ALIASED_VALUES, MAX_DEPTH, MAX_TEXT_BYTES, Node, YamlError, read_documents


def values(text: str | bytes) -> list[Any]:
    found = []
    for document in read_documents(text.encode() if isinstance(text, str) else text):
        assert isinstance(document, Node), document
        found.append(document.value)
    return found


def errors(text: str | bytes) -> list[tuple[int, str]]:
    documents = list(read_documents(text.encode() if isinstance(text, str) else text))
    return [(error.line, str(error)) for error in documents if isinstance(error, YamlError)]


def test_plain_values_are_read_as_yaml_1_2_reads_them() -> None:
    text = (
        "{a: 1, b: -2, c: 1.5, d: true, e: False, f: null, g: ~, h: , i: x, j: '5', k: \"y\", l: 1e3, m: 12:30, n: 1_0}"
    )
    expected = {"a": 1, "b": -2, "c": 1.5, "d": True, "e": False, "f": None, "g": None, "h": None, "i": "x", "j": "5"}
    assert values(text) == [{**expected, "k": "y", "l": 1000.0, "m": "12:30", "n": "1_0"}]


def test_dates_and_versions_stay_text() -> None:
    assert values("[2026-01-01, 2026-01-01T00:00:00Z, 1.2.3]") == [["2026-01-01", "2026-01-01T00:00:00Z", "1.2.3"]]


@pytest.mark.parametrize("word", ["yes", "No", "on", "OFF", "off"])
def test_a_word_that_is_a_truth_value_to_kubectl_must_be_quoted(word: str) -> None:
    (found,) = errors(f"a:\n  b: {word}\n")
    assert found == (
        2,
        f'"{word}" is a truth value to some readers of YAML and a word to others; write true or false, or put it in quotes',
    )
    assert values(f"a: '{word}'") == [{"a": word}]


def test_a_number_that_is_octal_to_kubectl_must_be_quoted() -> None:
    assert errors("a: 0755")[0][1].startswith('"0755" is octal to some readers of YAML')
    assert values("a: '0755'") == [{"a": "0755"}]


def test_every_document_comes_and_one_that_is_wrong_does_not_hide_the_next() -> None:
    documents = list(read_documents(b"a: 1\n---\na: 1\na: 2\n---\nb: 3\n---\n"))
    assert [type(document) for document in documents] == [Node, YamlError, Node, Node]


def test_a_duplicate_key_is_an_error_that_names_both_lines() -> None:
    assert errors("a: 1\nb: 2\na: 3\n") == [(3, '"a" is there already, on line 1; keep one of them')]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5: a", "5 stands where a field's name should"),
        ("[a]: b", "a list or mapping stands where a field's name should"),
        ("<<: {a: 1}", "merge keys (<<) are not supported"),
        ("a: !!python/object:os.system x", 'the tag "tag:yaml.org,2002:python/object:os.system" is not supported'),
        ("a: !secret x", 'the tag "!secret" is not supported'),
        ("a: !!set {x}", 'the tag "tag:yaml.org,2002:set" is not supported'),
        ("a: *x", "*x has no &x that ends before it"),
        ("a: &x [*x]", "*x has no &x that ends before it"),
        ("a: " + "1" * 40, "is longer than any number here"),
    ],
)
def test_what_resources_do_not_need_is_refused(text: str, message: str) -> None:
    ((line, told),) = errors(text)
    assert line == 1
    assert message in told


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\ta: 1", "a: 'x", "{a: 1", "- a\nb", "%YAML 9.9", "a: @x"])
def test_a_breach_of_yaml_is_told_with_its_line(text: str) -> None:
    found = errors("ok: 1\n---\n" + text)
    assert len(found) == 1
    assert "not YAML" in found[0][1]
    assert found[0][0] >= 2


def test_text_that_is_not_utf8_is_told_with_its_line() -> None:
    assert errors(b"a: 1\nb: \xff\n") == [(2, "not UTF-8 text; save the file as UTF-8")]


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert values(b"\xef\xbb\xbfa: 1") == [{"a": 1}]


def test_anchors_repeat_a_value_where_it_was_written() -> None:
    (node,) = read_documents(b"a: &x {b: 1}\nc: *x\n")
    assert isinstance(node, Node)
    assert node.value == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_line_is_known_for_every_field_and_for_what_is_missing() -> None:
    (node,) = read_documents(b"a:\n  b:\n  - c: 1\n  - c: 2\n")
    assert isinstance(node, Node)
    assert node.line_of(("a", "b", 1, "c")) == 4
    assert node.line_of(("a", "b", 0)) == 3
    assert node.line_of(("a", "missing", "deeper")) == 1
    assert node.line_of(("a", "b", 7)) == 2


def test_a_billion_laughs_are_cut_short() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} [{', '.join(['*' + before] * 9)}]")
    ((_, told),) = errors("\n".join(lines))
    assert f"aliases stand for more than {MAX_ALIASED_VALUES} values" in told


def test_aliases_are_counted_over_all_documents_of_a_text() -> None:
    big = "[" + "x, " * 999 + "x]"
    text = "\n---\n".join(f"a: &a {big}\nb: [*a, *a]" for _ in range(10))
    assert "aliases stand for more than" in errors(text)[-1][1]


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "[{a: "])
def test_deep_nesting_is_refused_before_it_costs(opening: str) -> None:
    def cpu_s(times: int) -> float:
        started = time.process_time()
        found = errors(opening * times)
        assert f"more than {MAX_DEPTH} levels deep" in found[-1][1]
        return time.process_time() - started

    cpu_s(5_000)
    assert cpu_s(200_000) < 100 * cpu_s(5_000) + 1, (
        "the work grew with the square of the depth, which would be 1,600 times"
    )


def test_a_text_beyond_the_bound_is_not_read() -> None:
    assert errors(b"#" * (MAX_TEXT_BYTES + 1)) == [(1, "larger than 16 MiB; split it into several files")]


NUMBER = re.compile(r"[-+]?[0-9.][-+0-9.eE]*")


def is_told_apart(text: str) -> bool:
    """PyYAML writes by YAML 1.1, where 0E0 and 08 are text and need no quotes; YAML 1.2, as it is read here, has numbers there."""
    return not NUMBER.fullmatch(text) or yaml.safe_dump(text)[0] in "'\""


texts = st.text(st.characters(codec="utf-8"), max_size=20).filter(is_told_apart)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdefgh", min_size=1, max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(plain)
def test_what_pyyaml_writes_is_read_back(value: Any) -> None:
    assert values(yaml.safe_dump(value, allow_unicode=False)) == [value]


@given(st.binary(max_size=200))
def test_any_bytes_give_values_or_errors_and_nothing_else(data: bytes) -> None:
    for document in read_documents(data):
        assert isinstance(document, Node | YamlError)

"""YAML text to plain values that know their lines, for text that nobody vouches for.

Built from libyaml's events in one pass with a stack of our own, so that depth, size and aliases are bounded before anything
grows. What YAML 1.1 and 1.2 read differently (`off`, `010`) is refused, because the same file also goes to `kubectl`, which
reads it the old way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from edgetun_core.errors import ConfigError
from edgetun_core.quantities import quoted

MAX_TEXT_BYTES: Final = 16 * 1024 * 1024
MAX_DEPTH: Final = 40
MAX_VALUES: Final = 1_000_000
"""Values of one text; 10,000 tunnels with a dozen fields each are half of it."""
MAX_ALIASED_VALUES: Final = 10_000
"""Values that aliases may stand for in one text, counted as often as they are repeated."""

_PARSER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUTHS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DOUBTFUL: Final = re.compile(r"(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)\Z", re.ASCII)
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z", re.ASCII)
_OCTAL: Final = re.compile(r"[-+]?0[0-9oO_]+\Z", re.ASCII)
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", re.ASCII)


class YamlError(ConfigError):
    """The text is not YAML, or not the part of YAML that resources are written in. `line` counts from 1."""

    def __init__(self, message: str, line: int, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.line = line


def _too_deep(line: int) -> YamlError:
    return YamlError(f"nested more than {MAX_DEPTH} levels deep", line, remedy="a resource needs no more than ten")


class Node:
    """A value and where it stands. A mapping has `fields` (name -> its line and node), a sequence has `items`."""

    __slots__ = ("fields", "items", "line", "size", "value")

    def __init__(self, value: Any, line: int) -> None:
        self.value = value
        self.line = line
        self.size = 1
        self.fields: dict[str, tuple[int, Node]] | None = None
        self.items: list[Node] | None = None

    def line_of(self, location: tuple[str | int, ...]) -> int:
        """The line of a field below this node, or of what is nearest above it when it is not there."""
        node, line = self, self.line
        for part in location:
            if node.fields is not None and part in node.fields:
                line, node = node.fields[str(part)]
            elif node.items is not None and isinstance(part, int) and 0 <= part < len(node.items):
                node = node.items[part]
                line = node.line
            else:
                break
        return line


class _Open:
    """A collection whose end has not come yet."""

    __slots__ = ("anchor", "key", "node")

    def __init__(self, node: Node, anchor: str | None) -> None:
        self.node = node
        self.anchor = anchor
        self.key: tuple[str, int] | None = None


def read_documents(data: bytes) -> Iterator[Node | YamlError]:
    """Every document of a text: its root, or what is wrong with it. After a breach of YAML itself nothing more comes.

    An empty document comes as a node whose value is `None`.
    """
    if len(data) > MAX_TEXT_BYTES:
        yield YamlError(f"larger than {MAX_TEXT_BYTES >> 20} MiB", 1, remedy="split it into several files")
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield YamlError("not UTF-8 text", line, remedy="save the file as UTF-8")
        return
    builder: _Builder | None = None
    refused: YamlError | None = None
    aliased = events = depth = 0
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            events += 1
            if events > MAX_VALUES:
                yield YamlError(
                    f"holds more than {MAX_VALUES} values", _line(event), remedy="split it into several files"
                )
                return
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    # Also within a document that is refused already: libyaml's work grows with the square of the depth.
                    yield _too_deep(_line(event))
                    return
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if isinstance(event, yaml.DocumentStartEvent):
                builder, refused = _Builder(aliased), None
            elif isinstance(event, yaml.DocumentEndEvent):
                assert builder is not None
                aliased = builder.aliased
                yield refused if refused is not None else builder.root()
                builder = None
            elif builder is not None and refused is None:
                try:
                    builder.take(event)
                except YamlError as error:
                    if builder.is_hostile:
                        yield error
                        return
                    refused = error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(error.problem or error.context or "cannot be read").split())
        line = mark.line + 1 if mark is not None else 1
        if "nesting depth" in what:  # newer releases of libyaml have a bound of their own, and read ahead of the events
            yield _too_deep(line)
            return
        yield YamlError(f"not YAML: {what}", line, remedy="check indentation, colons and quotes around this line")
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())[:120]
        yield YamlError(f"not YAML: {what}", 1, remedy="remove characters that text does not hold")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


class _Builder:
    """Builds one document from its events."""

    def __init__(self, aliased: int) -> None:
        self.aliased = aliased
        self.is_hostile = False
        """Set when going on reading would cost what the bounds are there to save."""
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._root: Node | None = None

    def root(self) -> Node:
        return self._root if self._root is not None else Node(None, 1)

    def take(self, event: Any) -> None:
        line = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            node = Node(_scalar(event, line), line)
            if event.anchor is not None:
                self._anchors[event.anchor] = node
            self._add(node, line)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = self._stack.pop()
            if done.anchor is not None:
                self._anchors[done.anchor] = done.node
            self._add(done.node, done.node.line)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor, line)

    def _open(self, event: Any, line: int) -> None:
        if len(self._stack) >= MAX_DEPTH:
            self.is_hostile = True
            raise _too_deep(line)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        plain = _TAG + ("map" if is_mapping else "seq")
        if event.tag is not None and event.tag not in ("!", plain):
            raise _unknown_tag(event.tag, line)
        if self._stack and self._stack[-1].node.fields is not None and self._stack[-1].key is None:
            raise YamlError("a list or mapping stands where a field's name should", line, remedy="write name: value")
        node = Node({} if is_mapping else [], line)
        if is_mapping:
            node.fields = {}
        else:
            node.items = []
        self._stack.append(_Open(node, event.anchor))

    def _alias(self, anchor: str | None, line: int) -> None:
        node = self._anchors.get(anchor or "")
        if node is None:
            # libyaml refuses unknown anchors only while composing; an open one would contain itself.
            raise YamlError(f"*{anchor} has no &{anchor} that ends before it", line, remedy="write the value out")
        self.aliased += node.size
        if self.aliased > MAX_ALIASED_VALUES:
            self.is_hostile = True
            raise YamlError(
                f"aliases stand for more than {MAX_ALIASED_VALUES} values", line, remedy="write the values out"
            )
        self._add(node, line)

    def _add(self, node: Node, line: int) -> None:
        if not self._stack:
            self._root = node
            return
        parent = self._stack[-1]
        into = parent.node
        if into.items is not None:
            into.items.append(node)
            into.value.append(node.value)
            into.size += node.size
            return
        assert into.fields is not None
        if parent.key is None:
            parent.key = (self._key(node.value, into.fields, line), line)
            return
        name, key_line = parent.key
        parent.key = None
        into.fields[name] = (key_line, node)
        into.value[name] = node.value
        into.size += node.size

    def _key(self, name: object, fields: dict[str, tuple[int, Node]], line: int) -> str:
        if not isinstance(name, str):
            raise YamlError(
                f"{quoted(name)} stands where a field's name should",
                line,
                remedy="write names as text, in quotes if need be",
            )
        if name == "<<":
            raise YamlError("merge keys (<<) are not supported", line, remedy="write the fields out")
        if name in fields:
            raise YamlError(
                f"{quoted(name)} is there already, on line {fields[name][0]}", line, remedy="keep one of them"
            )
        return name


def _scalar(event: Any, line: int) -> Any:
    text: str = event.value
    tag: str | None = event.tag
    if tag is not None and tag != "!":
        if tag == _TAG + "str":
            return text
        if tag.removeprefix(_TAG) not in ("int", "float", "bool", "null"):
            raise _unknown_tag(tag, line)
    elif not event.implicit[0]:
        return text
    if text in _NULLS:
        return None
    if text in _TRUTHS:
        return _TRUTHS[text]
    if _DOUBTFUL.match(text):
        raise YamlError(
            f"{quoted(text)} is a truth value to some readers of YAML and a word to others",
            line,
            remedy="write true or false, or put it in quotes",
        )
    first = text[0]
    if first not in "+-.0123456789":
        return text
    if _INTEGER.match(text):
        return _number(text, int, line)
    if _OCTAL.match(text):
        raise YamlError(
            f"{quoted(text)} is octal to some readers of YAML and decimal to others",
            line,
            remedy="write it without the leading zero, or put it in quotes",
        )
    if _FLOAT.match(text):
        return _number(text, float, line)
    return text


def _number(text: str, kind: type[int | float], line: int) -> int | float:
    if len(text) > 30:
        raise YamlError(f"{quoted(text)} is longer than any number here", line, remedy="put it in quotes if it is text")
    return kind(text)


def _unknown_tag(tag: str, line: int) -> YamlError:
    return YamlError(
        f"the tag {quoted(tag)} is not supported", line, remedy="remove it; resources hold plain values only"
    )

"""YAML text as plain values that know their lines, and a list that gathers everything that is wrong with a file.

Only the nodes of ruamel.yaml are used: no tag builds an object, and aliases, which make a small file grow without end,
are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from text2seg.errors import OntologyError

Way = tuple[str | int, ...]  # from a value to one inside it: keys of mappings, places in lists

_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq")}
_MOST = 20  # faults that one message lists


@dataclass(slots=True)
class Faults:
    """What is wrong with a file, to be said all at once."""

    file: str
    found: dict[tuple[int, str], str] = field(default_factory=dict)

    def add(self, line: int, key: str, message: str) -> None:
        """The first fault of a place counts; others only follow from it."""
        self.found.setdefault((line, key), f"{key}: {message}" if key else message)

    def raise_if_any(self) -> None:
        """Raises `OntologyError` with one line for each fault, in the order of the file."""
        lines = [f"{self.file}:{line}: {text}" for (line, _), text in sorted(self.found.items(), key=_line)]
        if len(lines) > _MOST:
            lines = [*lines[:_MOST], f"{self.file}: and {len(lines) - _MOST} more"]
        if lines:
            raise OntologyError("\n".join(lines))


def _line(fault: tuple[tuple[int, str], str]) -> int:
    return fault[0][0]


def line_of(node: Node) -> int:
    """Counted from 1."""
    return int(node.start_mark.line) + 1


def compose(text: str, file: str) -> Node | None:
    """The nodes of the one YAML document in a text; `None` where it holds nothing but comments.

    Raises `OntologyError`, naming file and line, where it is no YAML.
    """
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = error.problem or error.context
        raise OntologyError(f"{where}: is neither YAML nor JSON: {problem}") from error
    except (YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise OntologyError(f"{file}: is neither YAML nor JSON: {problem}") from error
    except RecursionError as error:
        raise OntologyError(f"{file}: lists and mappings are nested too deeply") from error
    return node


@dataclass(slots=True)
class Reading:
    """Turns nodes into plain values: text, numbers, lists, dicts. Faults are gathered, and their values left out."""

    faults: Faults
    _seen: set[int] = field(default_factory=set)
    _yaml: YAML = field(default_factory=lambda: YAML(typ="safe", pure=True))

    def pairs(self, node: MappingNode, key: str) -> dict[str, tuple[Node, Node]]:
        """Key and value nodes of a mapping, by the text of the key; a second key of the same text is a fault."""
        found: dict[str, tuple[Node, Node]] = {}
        for name, value in node.value:
            if not isinstance(name, ScalarNode):
                self.faults.add(line_of(name), key, "a key must be a text")
            elif name.value in found:
                first = line_of(found[name.value][0])
                self.faults.add(line_of(name), join(key, name.value), f"is there twice, first in line {first}")
            else:
                found[name.value] = (name, value)
        return found

    def plain(self, node: Node, key: str, way: Way, lines: dict[Way, int]) -> Any:
        """The value of a node; `lines` takes in where each value inside begins (of a mapping: where its key does)."""
        lines.setdefault(way, line_of(node))
        if id(node) in self._seen:
            self.faults.add(lines[way], key, "aliases (*name) are not read; write out what is meant")
            return None
        self._seen.add(id(node))
        if node.tag not in _TAGS:
            self.faults.add(lines[way], key, f"tags such as {node.tag} are not read; write a plain value")
            return None
        if isinstance(node, MappingNode):
            values = {}
            for name, (name_node, value) in self.pairs(node, key).items():
                inner: Way = (*way, name)
                lines[inner] = line_of(name_node)
                values[name] = self.plain(value, join(key, name), inner, lines)
            return values
        if isinstance(node, SequenceNode):
            return [self.plain(each, join(key, place), (*way, place), lines) for place, each in enumerate(node.value)]
        return self._scalar(node, key)

    def _scalar(self, node: Node, key: str) -> Any:
        if node.tag == "tag:yaml.org,2002:timestamp":  # a text that happens to look like a date
            return node.value
        try:
            value = self._yaml.constructor.construct_object(node)
        except (YAMLError, ValueError, ArithmeticError, OverflowError) as error:
            problem = " ".join(str(error).split())
            self.faults.add(line_of(node), key, f"cannot be read as {str(node.tag).rpartition(':')[2]}: {problem}")
            return None
        if not isinstance(value, str):
            return value
        # JSON writes letters beyond the first 65,536 as two escapes, which YAML reads as two halves of a letter.
        joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if joined != value and "\ufffd" in joined:
            self.faults.add(line_of(node), key, "holds half a letter (a lone surrogate)")
        return joined


def join(key: str, inner: str | int) -> str:
    """The name of a place in the file: `categories[0].queries[1]`."""
    if isinstance(inner, int):
        return f"{key}[{inner}]"
    return f"{key}.{inner}" if key else inner

"""Read ontology files from YAML. All errors of a file are reported at once, each with its line.

Only the nodes of ruamel.yaml are used, so that no tag can build an object. Aliases are refused, because they can make
a small file grow without limit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from text2seg.errors import OntologyError
from text2seg.io.files import read_file
from text2seg.io.storage import Url, read_bytes
from text2seg.ontology.categories import Category, Entry, Ontology, check_entry, did_you_mean, wording

KeyPath = tuple[str | int, ...]  # keys of mappings and indices of lists that lead to a value

_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq")}
_MOST = 20  # faults that one message lists


@dataclass(slots=True)
class Faults:
    """The errors of a file, collected to be raised together."""

    file: str
    found: dict[tuple[int, str], str] = field(default_factory=dict)

    def add(self, line: int, key: str, message: str) -> None:
        """Add an error. Only the first of a line and key is kept; others follow from it."""
        self.found.setdefault((line, key), f"{key}: {message}" if key else message)

    def raise_if_any(self) -> None:
        """Raise `OntologyError` with one line per error, in the order of the file, if there are any."""
        lines = [f"{self.file}:{line}: {text}" for (line, _), text in sorted(self.found.items(), key=_line)]
        if len(lines) > _MOST:
            lines = [*lines[:_MOST], f"{self.file}: and {len(lines) - _MOST} more"]
        if lines:
            raise OntologyError("\n".join(lines))


def _line(fault: tuple[tuple[int, str], str]) -> int:
    return fault[0][0]


def line_of(node: Node) -> int:
    """Return the line of a node, counted from 1."""
    return int(node.start_mark.line) + 1


CHECK = "check indentation (spaces, not tabs), colons, commas, brackets and quotes near this line"


def compose(text: str, file: str) -> Node | None:
    """Return the root node of the YAML document in a text, or None if it has only comments.

    Raises:
        OntologyError: the text is not YAML.
    """
    try:
        node: Node | None = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = error.problem or error.context
        raise OntologyError(f"{where}: is neither YAML nor JSON; {CHECK} ({problem})") from error
    except (YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise OntologyError(f"{file}: is neither YAML nor JSON: {problem}") from error
    except RecursionError as error:
        raise OntologyError(f"{file}: lists and mappings are nested too deeply") from error
    return node


@dataclass(slots=True)
class Reading:
    """Turns nodes into plain values: text, numbers, lists, dicts. Values with errors are left out."""

    faults: Faults
    _seen: set[int] = field(default_factory=set)
    _yaml: YAML = field(default_factory=lambda: YAML(typ="safe", pure=True))

    def pairs(self, node: MappingNode, key: str) -> dict[str, tuple[Node, Node]]:
        """Return key and value nodes of a mapping by the text of the key. A repeated key is an error."""
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

    def plain(self, node: Node, key: str, keys: KeyPath, lines: dict[KeyPath, int]) -> Any:
        """Return the value of a node, and add to `lines` where each value in it begins (in mappings: its key)."""
        lines.setdefault(keys, line_of(node))
        if id(node) in self._seen:
            self.faults.add(lines[keys], key, "aliases (*name) are not read; write out what is meant")
            return None
        self._seen.add(id(node))
        if node.tag not in _TAGS:
            self.faults.add(lines[keys], key, f"tags such as {node.tag} are not read; write a plain value")
            return None
        if isinstance(node, MappingNode):
            values = {}
            for name, (name_node, value) in self.pairs(node, key).items():
                inner: KeyPath = (*keys, name)
                lines[inner] = line_of(name_node)
                values[name] = self.plain(value, join(key, name), inner, lines)
            return values
        if isinstance(node, SequenceNode):
            return [self.plain(each, join(key, place), (*keys, place), lines) for place, each in enumerate(node.value)]
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
        # JSON escapes characters beyond U+FFFF as surrogate pairs, which YAML reads as two characters.
        joined = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if joined != value and "\ufffd" in joined:
            self.faults.add(line_of(node), key, "contains half a character (a lone surrogate)")
        return joined


def join(key: str, inner: str | int) -> str:
    """Return the name of a place in the file, such as `categories[0].queries[1]`."""
    if isinstance(inner, int):
        return f"{key}[{inner}]"
    return f"{key}.{inner}" if key else inner


LIMIT = 1_000_000
"""Limit of a file's size, bytes; enough for thousands of categories."""

EXAMPLE = "such as: categories: [dog, cat]"


@dataclass(slots=True)
class Item:
    """One category of a file: the name of its place, its node, its values and their lines. `is_keyed` if its name is
    the key of a mapping (`categories: {dog: …}`)."""

    key: str
    node: Node
    is_keyed: bool
    values: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    entry: Entry | None = None

    def line(self, keys: KeyPath) -> int:
        """Return the line of a value, or of the nearest outer value that has one."""
        while keys not in self.lines:
            keys = keys[:-1]
        return self.lines[keys]

    @property
    def folded_name(self) -> str:
        return _folded(str(self.values.get("name")))


def read_ontology(path: str | os.PathLike[str] | Url) -> Ontology:
    """Read the ontology in a YAML or JSON file, local or at a URL.

    Raises:
        OntologyError: the file is missing, larger than `LIMIT`, not UTF-8, or neither YAML nor JSON; keys are unknown
            or repeated; values are out of range; categories share a name, id or wording. The message has one line
            `file:line: key: what is wrong` per error.
    """
    return parse(read_text(path), str(path))[0]


def ontology_from_dict(recorded: Mapping[str, Any]) -> Ontology:
    """Return the ontology that `Ontology.to_dict` wrote, with ids counted from 1 in the order of the categories.

    Raises:
        OntologyError: it has no list of categories, or a category is damaged.
    """
    entries = recorded.get("categories")
    if not isinstance(entries, list):
        raise OntologyError("it has no list of categories")
    categories = []
    for number, values in enumerate(entries, start=1):
        # Ids are left out: those taken from a COCO file may be 0 or negative.
        known = {key: value for key, value in values.items() if key != "id"} if isinstance(values, Mapping) else {}
        entry, faults = check_entry(known)
        if entry is None or not entry.queries:
            (keys, words), *_ = [*faults, (("queries",), "is missing")]
            raise OntologyError(f"category {number}: {keys[0]} {words}")
        categories.append(entry.category(number))
    return Ontology(tuple(categories))


def read_text(path: str | os.PathLike[str] | Url) -> str:
    """Return the text of the file with line ends and byte order mark. Raises `OntologyError` if it cannot be read."""
    if isinstance(path, Url):
        content = read_bytes(path, OntologyError)
    else:
        content = read_file(path, OntologyError, limit=LIMIT + 1)
    if len(content) > LIMIT:
        raise OntologyError(f"{path} is over the limit of {LIMIT:,} bytes; is it an ontology?")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise OntologyError(f"{path}:{line}: is not UTF-8 text; save it as UTF-8") from error


def parse(text: str, file: str) -> tuple[Ontology, list[Item]]:
    """Return the ontology in a text, and the place of each category. Raises `OntologyError`, naming `file`."""
    faults = Faults(file)
    root = compose(_as_yaml(text, file), file)
    items = list(_items(root, faults))
    for item in items:
        item.entry, found = check_entry(item.values)
        for keys, message in found:
            faults.add(item.line(keys), _key(item, keys), message)
        if item.entry and not item.entry.queries:
            try:
                wording(item.entry.name)
            except ValueError as error:
                faults.add(
                    item.line(("name",)), _key(item, ("name",)), f"{item.entry.name!r} {error}, or give it queries"
                )
    for what in ("name", "id"):
        _refuse_shared(items, what, faults)
    _refuse_shared_wordings(items, faults)
    faults.raise_if_any()
    return Ontology(tuple(_categories([item.entry for item in items if item.entry]))), items


def _as_yaml(text: str, file: str) -> str:
    """Return the text so that YAML can read it, at the same positions: tabs in JSON become spaces."""
    body = text.removeprefix("\ufeff")
    if file.lower().endswith(".json"):
        try:
            json.loads(body)
        except ValueError as error:
            line, why = getattr(error, "lineno", 1), getattr(error, "msg", error)
            raise OntologyError(f"{file}:{line}: is not JSON; check commas, brackets and quotes ({why})") from error
        except RecursionError as error:
            raise OntologyError(f"{file}: lists and mappings are nested too deeply") from error
        body = body.replace("\t", " ")
    return body


def _items(root: Node | None, faults: Faults) -> Iterator[Item]:
    """Yield every category of the file, in any of the three forms."""
    if root is None or (isinstance(root, ScalarNode) and not root.value):
        faults.add(1, "", f"is empty; it should list categories, {EXAMPLE}")
        return
    if not isinstance(root, MappingNode):
        faults.add(line_of(root), "", f"must begin with the key categories, {EXAMPLE}")
        return
    reading = Reading(faults)
    keys = reading.pairs(root, "")
    for name, (node, _) in keys.items():
        if name != "categories":
            hint = did_you_mean(name, ["categories"])
            faults.add(line_of(node), name, f"is not a key of an ontology{hint}; it knows categories")
    if "categories" not in keys:
        faults.add(line_of(root), "categories", f"is missing, {EXAMPLE}")
        return
    node = keys["categories"][1]
    if not isinstance(node, MappingNode | SequenceNode) or not node.value:
        faults.add(line_of(keys["categories"][0]), "categories", f"must list at least one category, {EXAMPLE}")
    elif isinstance(node, SequenceNode):
        for place, each in enumerate(node.value):
            yield _listed(each, join("categories", place), reading)
    else:
        for name, (name_node, each) in reading.pairs(node, "categories").items():
            yield _keyed(name, name_node, each, reading)


def _listed(node: Node, key: str, reading: Reading) -> Item:
    """Return the category of a list entry: `- dog`, or `- name: dog` with further keys."""
    lines: dict[KeyPath, int] = {}
    values = reading.plain(node, key, (), lines)
    return Item(key, node, False, values if isinstance(values, dict) else {"name": values}, lines)


def _keyed(name: str, name_node: Node, node: Node, reading: Reading) -> Item:
    """Return the category of a mapping entry: `dog:` alone, with a list of wordings, or with further keys."""
    key = join("categories", name)
    lines: dict[KeyPath, int] = {(): line_of(name_node)}
    inner: dict[KeyPath, int] = {}
    values = reading.plain(node, key, (), inner)
    if not isinstance(values, dict):
        lines |= {("queries", *keys): line for keys, line in inner.items()}
        return Item(key, node, True, {"name": name} | ({} if values is None else {"queries": values}), lines)
    if "name" in values:
        reading.faults.add(inner["name",], f"{key}.name", "is given twice, the key above being the name; leave it out")
    return Item(key, node, True, values | {"name": name}, inner | lines)


def _key(item: Item, keys: KeyPath) -> str:
    """Return the name of a place as the file writes it; short forms have no keys of their own."""
    if keys == ("name",) and keys not in item.lines:
        return item.key if item.is_keyed or not isinstance(item.node, MappingNode) else f"{item.key}.name"
    key = item.key
    for step in keys:
        key = join(key, step)
    return key


def _refuse_shared(items: list[Item], what: str, faults: Faults) -> None:
    """Add an error for each name (ignoring case) or id that two categories share."""
    first: dict[Any, Item] = {}
    for item in items:
        value = item.values.get(what)
        if not isinstance(value, str if what == "name" else int):
            continue
        other = first.setdefault(_folded(value) if isinstance(value, str) else value, item)
        if other is not item:
            line = other.line((what,))
            faults.add(item.line((what,)), _key(item, (what,)), f"{value!r} is there already, in line {line}")


def _refuse_shared_wordings(items: list[Item], faults: Faults) -> None:
    """Add an error for each wording that is in two categories, twice in one, or also a negative of its category."""
    first: dict[str, tuple[Item, int]] = {}
    for item in items:
        own: set[str] = set()
        for keys, text in _texts(item, "queries") or _texts(item, "name"):
            line = item.line(keys)
            other, there = first.setdefault(_folded(text), (item, line))
            if _folded(text) in own:
                faults.add(line, _key(item, keys), f"{text!r} is there already, in line {there}")
            elif other is not item and item.folded_name != other.folded_name:  # shared names are reported elsewhere
                name = other.values.get("name")
                faults.add(
                    line,
                    _key(item, keys),
                    f"{text!r} is a wording of {name!r} too, in line {there}; a pixel cannot be both, "
                    "so leave it to one of them",
                )
            own.add(_folded(text))
        for keys, text in _texts(item, "negative_queries"):
            if _folded(text) in own:
                faults.add(item.line(keys), _key(item, keys), f"{text!r} is wanted by the same category; leave one out")


def _texts(item: Item, key: str) -> list[tuple[KeyPath, str]]:
    """Return the texts under a key, without values that are not text."""
    value = item.values.get(key)
    if key == "name":
        return [((key,), value)] if isinstance(value, str) else []
    if not isinstance(value, list):
        return []
    return [((key, place), text) for place, text in enumerate(value) if isinstance(text, str)]


def _folded(text: str) -> str:
    """Return a form that is equal for wordings with the same meaning."""
    return "+".join(sorted(" ".join(part.casefold().split()) for part in text.split("+")))


def _categories(entries: list[Entry]) -> Iterator[Category]:
    """Yield the categories; entries without an id get the lowest free ids."""
    taken = {entry.id for entry in entries}
    free = (number for number in range(1, 2 * len(entries) + 1) if number not in taken)
    for entry in entries:
        yield entry.category(next(free) if entry.id is None else entry.id)

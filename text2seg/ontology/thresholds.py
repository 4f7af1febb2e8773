"""Write thresholds into an ontology file. Comments and layout are kept."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace

from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from text2seg.errors import OntologyError
from text2seg.io.writing import write_atomically
from text2seg.ontology.categories import did_you_mean
from text2seg.ontology.read import Item, parse, read_text

Edit = tuple[int, int, str]  # start, end and replacement of text[start:end]

_MARK = "\ufeff"


def write_thresholds(path: str | os.PathLike[str], thresholds: Mapping[str, float]) -> None:
    """Set the thresholds of the named categories, in (0, 1]. The others keep theirs. The file is replaced in one step.

    Raises:
        OntologyError: the file cannot be read, has no such category, or has a layout into which a threshold cannot be
            written; or a threshold is out of range.
        OutputError: the file cannot be written.
    """
    file = os.fspath(path)
    text = read_text(path)
    ontology, items = parse(text, file)
    for name, value in thresholds.items():
        if name not in ontology.names:
            raise OntologyError(f"{file}: there is no category {name!r}{did_you_mean(name, ontology.names)}")
        if not 0 < value <= 1:
            raise OntologyError(f"{name}: the threshold must be above 0 and at most 1, got {value}")
    body = text.removeprefix(_MARK)
    edits = [
        _edit(item, float(thresholds[item.entry.name]), body, is_json=file.lower().endswith(".json"))
        for item in items
        if item.entry and item.entry.name in thresholds
    ]
    for start, end, new in sorted(edits, reverse=True):
        body = body[:start] + new + body[end:]
    expected = [
        replace(each, threshold=float(thresholds.get(each.name, each.threshold or 0)) or None)
        for each in ontology.categories
    ]
    try:
        written = list(parse(body, file)[0].categories)
    except OntologyError:
        written = []
    if written != expected:  # an unforeseen layout must not damage the file
        raise OntologyError(
            f"{file}: the thresholds cannot be written into its layout; write `- name: …` and each key on a line of "
            "its own, or add them by hand: " + ", ".join(f"{name}: {value:g}" for name, value in thresholds.items())
        )
    kept = _MARK if text.startswith(_MARK) else ""
    write_atomically(path, [(kept + body).encode("utf-8")])


def _edit(item: Item, value: float, text: str, *, is_json: bool) -> Edit:
    """Return the edit that sets the threshold of a category."""
    number = json.dumps(value)
    key = _quoted_like("threshold", text, is_json=is_json)
    node = item.node
    if not isinstance(node, MappingNode):
        return _from_short_form(item, number, text, is_json=is_json)
    for name, old in node.value:
        if name.value == "threshold":
            start, end = _span(old)
            if start == end:  # nothing after the colon
                start = end = text.index(":", name.end_mark.index) + 1
                number = f" {number}"
            return start, end, number
    if node.flow_style:
        return _into_braces(node, f"{key}: {number}", text)
    column = " " * node.value[0][0].start_mark.column
    line_end = "\r\n" if "\r\n" in text else "\n"
    for name, old in node.value:
        if name.value == "name" and isinstance(old, ScalarNode) and old.style not in ("|", ">"):
            rest = re.match(r"[^\r\n]*", text[_span(old)[1] :])
            at = _span(old)[1] + (rest.end() if rest else 0)
            return at, at, f"{line_end}{column}{key}: {number}"
    at = node.value[0][0].start_mark.index
    return at, at, f"{key}: {number}{line_end}{column}"


def _into_braces(node: MappingNode, pair: str, text: str) -> Edit:
    """Return the edit that adds a pair at the end of `{…}`, separated like the pairs before it."""
    if not node.value:
        start, end = _span(node)
        return start, end, f"{{{pair}}}"
    at = _span(node.value[-1][1])[1]
    gap = ", "
    if len(node.value) > 1:
        between = text[_span(node.value[-2][1])[1] : node.value[-1][0].start_mark.index]
        gap = between if re.fullmatch(r"\s*,\s*", between) else gap
    elif re.fullmatch(r"\s*\n\s*", before := text[_span(node)[0] + 1 : node.value[0][0].start_mark.index]):
        gap = f",{before}"
    return at, at, f"{gap}{pair}"


def _from_short_form(item: Item, number: str, text: str, *, is_json: bool) -> Edit:
    """Return the edit that turns `dog` or `dog: [dog, puppy]` into a mapping and keeps its text."""
    node = item.node
    start, end = _span(node)
    old = text[start:end]
    threshold = _quoted_like("threshold", text, is_json=is_json)
    if not item.is_keyed:
        name = _quoted_like("name", text, is_json=is_json)
        plain = old if old[0] in "\"'" or not re.search(r"[,\[\]{}\n]", old) else json.dumps(node.value)
        return start, end, f"{{{name}: {plain}, {threshold}: {number}}}"
    if isinstance(node, SequenceNode):
        queries = _quoted_like("queries", text, is_json=is_json)
        if not node.flow_style:
            old = json.dumps([each.value for each in node.value], ensure_ascii=False)
            end = _span(node.value[-1])[1]
            before = text[:start].rstrip()  # the list moves up behind its key
            return len(before), end, f" {{{queries}: {old}, {threshold}: {number}}}"
        return start, end, f"{{{queries}: {old}, {threshold}: {number}}}"
    if start == end:  # `dog:` alone; its empty node is before the next token
        at = len(text[:start].rstrip())
        return at, at, f" {{{threshold}: {number}}}"
    return start, end, f"{{{threshold}: {number}}}"


def _quoted_like(key: str, text: str, *, is_json: bool) -> str:
    """Return the key, in quotes if the file is JSON."""
    return f'"{key}"' if is_json or text.lstrip().startswith("{") else key


def _span(node: Node) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index

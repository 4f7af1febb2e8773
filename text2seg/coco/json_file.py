"""JSON files of datasets: read with clear errors and limits, and written piece by piece, so that memory does not grow
with the number of images and annotations."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np

from text2seg.errors import DatasetError, OutputError
from text2seg.io.files import json_fault, read_file
from text2seg.io.storage import Url, read_bytes
from text2seg.io.writing import write_atomically

Json = dict[str, Any]

MAX_DEPTH = 100
"""Limit of nested brackets in a file, so that recursive code does not exhaust the stack."""

_BOMS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 4, 4

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)

_log = logging.getLogger(__name__)


# ---- reading


def read_json(path: str | os.PathLike[str] | Url) -> Any:
    """Return the content of a JSON file.

    Raises:
        DatasetError: the file is missing, cannot be read, is not JSON, is nested deeper than `MAX_DEPTH`, or repeats a
            key at the top level.
    """
    text = _text(path)
    repeated: list[tuple[str, Any]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.append((Counter(key for key, _ in pairs).most_common(1)[0][0], found))
        return found

    if _depth(text) > MAX_DEPTH and _depth(_STRING.sub("", text)) > MAX_DEPTH:
        raise DatasetError(f"{path} is not a JSON file of a dataset: it is nested more than {MAX_DEPTH} deep")
    try:
        content = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not a JSON file: {json_fault(error)}") from error
    except ValueError as error:  # Python's own message is advice to programmers
        digits = sys.get_int_max_str_digits()
        raise DatasetError(f"{path} is not a JSON file of a dataset: a number has over {digits} digits") from error
    for key, found in repeated:
        if found is content:
            raise DatasetError(f"{path} has the key {short(key)} twice; only one of them can be read, so join them")
    notes = Notes(str(path))
    for key, found in repeated:
        number = found.get("id")
        what = "an object in it" if number is None else f"an object in it, with the id {short(number)},"
        notes.add("twice", f"{what} has the key {short(key)} twice; the last one counts")
    notes.say()
    return content


class Notes:
    """Warnings about odd entries of a file, collected so that each kind is logged once."""

    def __init__(self, name: str, *, is_logged: bool = False) -> None:
        """
        Args:
            name: name of the file in the messages.
            is_logged: the warnings were logged when the file was read, so do not log them again.
        """
        self.name, self._is_logged = name, is_logged
        self._found: dict[str, list[Any]] = {}  # by kind: count and sentence of the first

    def add(self, kind: str, sentence: str) -> None:
        """Count one more of a kind. `sentence` names the entry and says how it is read."""
        self._found.setdefault(kind, [0, sentence])[0] += 1

    def say(self) -> None:
        """Log the sentence of the first entry of each kind, with the number of further ones."""
        for count, sentence in () if self._is_logged else self._found.values():
            more = f" (and {count - 1} more like it)" if count > 1 else ""
            _log.warning("%s: %s%s", self.name, sentence, more)


def short(value: Any) -> str:
    """Return a value as text for a message, cut to a few words."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"of {int(value.bit_length() * 0.30103) + 1} digits"
    return _SHORT.repr(value)


def _text(path: str | os.PathLike[str] | Url) -> str:
    content = read_bytes(path, DatasetError) if isinstance(path, Url) else read_file(path, DatasetError)
    encoding = next((encoding for bom, encoding in _BOMS.items() if content.startswith(bom)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not a JSON file: not {error.encoding} text (byte {error.start})") from error
    if encoding != "utf-8-sig":
        _log.warning("%s is written in %s; JSON should be UTF-8", path, encoding.upper())
    return text


def _depth(text: str) -> int:
    """Return how deep brackets are nested; brackets in strings count too."""
    level = deepest = 0
    step = np.zeros(256, np.int8)
    step[[ord("["), ord("{")]], step[[ord("]"), ord("}")]] = 1, -1
    for start in range(0, len(text), 1 << 20):
        piece = np.frombuffer(text[start : start + (1 << 20)].encode("latin-1", "replace"), np.uint8)
        levels = np.cumsum(step[piece], dtype=np.int64)
        deepest = max(deepest, level + int(levels.max()))
        level += int(levels[-1])
    return deepest


# ---- writing


def write_json(
    path: str | os.PathLike[str], content: Mapping[str, Any], *, before_replacing: Callable[[Path], None] | None = None
) -> Path:
    """Write an object as UTF-8 JSON in one line and return the path. The same content gives the same bytes.

    Args:
        content: the object; iterators among its values are written as lists, one item at a time.
        before_replacing: see `write_atomically`.

    Raises:
        OutputError: the content is not JSON, or the file cannot be written.
    """
    return write_atomically(path, json_chunks(Path(path), content), before_replacing=before_replacing)


def json_chunks(path: Path, content: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the bytes that `write_json` writes, piece by piece."""
    yield b"{"
    for position, (key, value) in enumerate(content.items()):
        yield (b", " if position else b"") + _json(path, str(key)) + b": "
        if isinstance(value, (list, tuple, Iterator)):
            yield b"["
            for number, item in enumerate(value):
                yield (b", " if number else b"") + _json(path, item)
            yield b"]"
        else:
            yield _json(path, value)
    yield b"}\n"


def _json(path: Path, value: Any) -> bytes:
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: the dataset is not JSON: {error}") from error
    # Python holds file names that are not Unicode as lone surrogates; JSON can hold their escapes and reads them back.
    return text.encode("utf-8", "backslashreplace")


def plain_json(what: str, value: Mapping[str, Any]) -> Json:
    """Return a copy in plain JSON types: settings become dicts, paths text, numpy scalars numbers.

    Args:
        what: name of the value in messages.

    Raises:
        OutputError: the value holds something else.
    """

    def convert(each: object) -> object:
        if dataclasses.is_dataclass(each) and not isinstance(each, type):
            return dataclasses.asdict(each)
        if isinstance(each, PurePath):
            return each.as_posix()
        if isinstance(each, (np.generic, np.ndarray)):
            return each.tolist()
        raise TypeError(f"{type(each).__name__} is not JSON")

    try:
        return cast(Json, json.loads(json.dumps(dict(value), default=convert, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise OutputError(f"the {what} cannot be written: {error}") from error


def plain_number(value: float | np.floating) -> float:
    """Return the shortest decimal number that is the same float32: 0.9, not 0.8999999761581421."""
    return float(str(np.float32(value)))

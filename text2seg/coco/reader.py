"""COCO files of anyone, read and checked in one place for every command.

What is odd but clear is read as what it means, and one sentence in the log says so; what is not clear is refused with a
`DatasetError` that names file and entry. What other tools keep beside COCO's own keys goes through as it is, so whoever
uses it looks at its type. Masks are checked when they are needed, by `text2seg.coco.rle`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from text2seg.coco.rle import LARGEST, MOST_PIXELS, MOST_SIDE, is_number
from text2seg.errors import DatasetError
from text2seg.io.files import read_file
from text2seg.io.storage import Url, read_bytes

Entry = Mapping[str, Any]

LARGEST_ID = 2**63 - 1
MOST_DEPTH = 100
"""JSON that is nested deeper is refused, so that nothing that walks through it runs out of stack."""

_BOMS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,18})(\.0*)?\s*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 2, 4, 4

_log = logging.getLogger(__name__)


class Dataset(dict[str, Any]):
    """A checked COCO dataset; `name` is what messages call it, its file as a rule.

    `images` have a whole `id`, a `file_name`, and a `height` and `width` that are whole or `None`. `annotations` have
    a whole `id` of their own, whole `image_id` and `category_id`, an `iscrowd` of 0 or 1, and where they have them a
    `score` and an `area` that are numbers and a `bbox` of four. `categories` have a whole `id` and a `name`. `info` is
    an object. Annotations may be of images or categories that are not listed (see `check_references`), and categories
    may share a name (see `kept_categories`).
    """

    __slots__ = ("name",)

    def __init__(self, content: Mapping[str, Any], name: str) -> None:
        super().__init__(content)
        self.name = name


def read_dataset(path: str | os.PathLike[str] | Url) -> Dataset:
    """A COCO dataset file, checked. Raises `DatasetError`, naming the file, where it is missing, may not be read, is no
    JSON, no COCO dataset, or an entry is damaged."""
    return check_dataset(read_json(path), str(path))


def check_dataset(content: Any, name: str) -> Dataset:
    """A dataset that is in memory, checked as `read_dataset` does; the content itself is not changed. One that has been
    read keeps the name of its file."""
    name = content.name if isinstance(content, Dataset) else name
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        raise DatasetError(f"{name} is not a COCO dataset: it should hold an object, not a {kind}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DatasetError(f"{name} is not a COCO dataset: it has no list of {key}")
    notes = Notes(name, said=isinstance(content, Dataset))
    images = [_image(entry, place, notes) for place, entry in _objects(content["images"], "images", name)]
    categories = [
        _category(entry, place, notes) for place, entry in _objects(content["categories"], "categories", name)
    ]
    for key, entries in (("images", images), ("categories", categories)):
        number, count = Counter(entry["id"] for entry in entries).most_common(1)[0] if entries else (0, 1)
        if count > 1:
            raise DatasetError(f"{name}: two of the {key} have the id {number}; give each its own")
    _note_shared_names(categories, notes)
    annotations = [
        _annotation(entry, place, notes) for place, entry in _objects(content["annotations"], "annotations", name)
    ]
    annotations = _single(_numbered(annotations, notes), notes)
    others = {key: value for key, value in content.items() if key not in ("images", "annotations", "categories")}
    content = {**content, **_made_finite(others, "the file", notes)}
    notes.say()
    checked = {"images": images, "annotations": annotations, "categories": categories}
    return Dataset({**content, "info": _info(content.get("info"), name), **checked}, name)


def check_results(content: Sequence[Any], name: str) -> list[Entry]:
    """A flat list of results {image_id, category_id, segmentation, score}, checked like annotations. Raises
    `DatasetError`, naming the entry."""
    notes = Notes(name)
    results = [_annotation(entry, place, notes) for place, entry in _objects(content, "results", name)]
    notes.say()
    return results


def check_references(dataset: Dataset, keys: Iterable[str] = ("image_id", "category_id")) -> None:
    """Raises `DatasetError`, naming the annotation, where one is of an image or a category that the dataset does not
    list."""
    for key in keys:
        among = {"image_id": "images", "category_id": "categories"}[key]
        known = {entry["id"] for entry in dataset[among]}
        for annotation in dataset["annotations"]:
            if annotation[key] not in known:
                raise DatasetError(
                    f"{dataset.name}: annotation {annotation['id']}: its {key} {annotation[key]} is not among the "
                    f"{among} of its own file"
                )


def kept_categories(dataset: Dataset) -> dict[int, int]:
    """For every category id the one that it is read as: itself or, of several with one name, the first that has
    annotations, else the first."""
    by_name: dict[str, list[int]] = {}
    for entry in dataset["categories"]:
        by_name.setdefault(entry["name"], []).append(entry["id"])
    used: set[int] = set()
    if len(by_name) < len(dataset["categories"]):
        used = {annotation["category_id"] for annotation in dataset["annotations"]}
    kept: dict[int, int] = {}
    for ids in by_name.values():
        one = next((number for number in ids if number in used), ids[0])
        kept |= dict.fromkeys(ids, one)
    return kept


def size_of(image: Entry, name: str) -> tuple[int, int]:
    """(rows, columns) of a checked image. Raises `DatasetError` where the dataset does not say."""
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        raise DatasetError(f"{name}: image {image['id']} needs a height and a width, got {height} and {width}")
    return height, width


def attributes_of(entry: Entry) -> Entry:
    """The `attributes` of an image or annotation; empty where it has none or they are no object."""
    attributes = entry.get("attributes")
    return attributes if isinstance(attributes, Mapping) else {}


def score_of(annotation: Entry) -> float | None:
    """The score of an annotation, from where COCO's results or our attributes have it; `None` where there is none."""
    for place in (annotation, attributes_of(annotation)):
        score = place.get("score")
        if is_number(score):
            return float(score)
    return None


def read_json(path: str | os.PathLike[str] | Url) -> Any:
    """What a JSON file holds. Raises `DatasetError`, naming the file, where it is missing, may not be read, is no JSON,
    or is nested deeper than `MOST_DEPTH`."""
    text = _text(path)
    repeated: list[tuple[str, Any]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.append((Counter(key for key, _ in pairs).most_common(1)[0][0], found))
        return found

    if _depth(text) > MOST_DEPTH and _depth(_STRING.sub("", text)) > MOST_DEPTH:
        raise DatasetError(f"{path} is not a JSON file of a dataset: it is nested more than {MOST_DEPTH} deep")
    try:
        content = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path} is not a JSON file: {error if text.strip() else 'it is empty'}") from error
    except ValueError as error:  # what Python's own limit says of it is advice to programmers
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
    """What is odd in a file but can be read, gathered so that each kind takes one sentence."""

    def __init__(self, name: str, *, said: bool = False) -> None:
        """`said`: all of it was said when the file was read."""
        self.name, self._said = name, said
        self._found: dict[str, list[Any]] = {}  # by kind: how many, and the first one's sentence

    def add(self, kind: str, sentence: str) -> None:
        """Note one more of a kind; `sentence` names the entry and says how it is read."""
        self._found.setdefault(kind, [0, sentence])[0] += 1

    def say(self) -> None:
        """Log one sentence for each kind: that of its first entry."""
        for count, sentence in () if self._said else self._found.values():
            more = f" (and {count - 1} more like it)" if count > 1 else ""
            _log.warning("%s: %s%s", self.name, sentence, more)


def _text(path: str | os.PathLike[str] | Url) -> str:
    content = read_bytes(path, DatasetError) if isinstance(path, Url) else read_file(path, DatasetError)
    encoding = next((encoding for bom, encoding in _BOMS.items() if content.startswith(bom)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not a JSON file: it is no {error.encoding} text (byte {error.start})") from error
    if encoding != "utf-8-sig":
        _log.warning("%s is written in %s; JSON should be UTF-8", path, encoding.upper())
    return text


def _depth(text: str) -> int:
    """How deep brackets are nested, those in strings counted too."""
    level = deepest = 0
    step = np.zeros(256, np.int8)
    step[[ord("["), ord("{")]], step[[ord("]"), ord("}")]] = 1, -1
    for start in range(0, len(text), 1 << 20):
        piece = np.frombuffer(text[start : start + (1 << 20)].encode("latin-1", "replace"), np.uint8)
        levels = np.cumsum(step[piece], dtype=np.int64)
        deepest = max(deepest, level + int(levels.max()))
        level += int(levels[-1])
    return deepest


def _objects(entries: Iterable[Any], key: str, name: str) -> Iterator[tuple[str, Entry]]:
    """Entries with the words for their place in the list."""
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            raise DatasetError(f"{name}: no. {place} of the {key} is no object but {short(entry)}")
        yield f"no. {place} of the {key}", entry


def _image(entry: Entry, place: str, notes: Notes) -> Entry:
    changed: dict[str, Any] = {}
    number = _id(entry, "id", place, notes, changed)
    where = f"image {number}"
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        what = "no file_name" if name is None or name == "" else f"the file_name {short(name)}, which is no text"
        raise DatasetError(f"{notes.name}: {where} has {what}; images are known by it, so give it one")
    if not _is_writable(name) or len(name) > 4096 or max(map(len, os.fsencode(name).split(b"/"))) > 255:
        raise DatasetError(f"{notes.name}: {where} has the file_name {short(name)}, which no file can have")
    for side in ("height", "width"):
        _side(entry, side, where, notes, changed)
    height, width = ({**entry, **changed}.get(side) for side in ("height", "width"))
    if height and width and (height * width > MOST_PIXELS or max(height, width) > MOST_SIDE):
        raise DatasetError(
            f"{notes.name}: {where} is said to be {short(width)} x {short(height)} pixels, over the limit of "
            f"{MOST_PIXELS:,} pixels and {MOST_SIDE:,} a side"
        )
    changed |= _made_finite({key: value for key, value in entry.items() if key not in changed}, where, notes)
    return {**entry, **changed} if changed else entry


def _side(entry: Entry, side: str, where: str, notes: Notes, changed: dict[str, Any]) -> None:
    value = entry.get(side)
    if (type(value) is int and value > 0) or value is None:
        return
    number = _whole(value)
    if number is None or number < 0:
        raise DatasetError(f"{notes.name}: {where} has the {side} {short(value)}, which is no number of pixels")
    changed[side] = number or None
    if not number:
        notes.add("no size", f"{where} has the {side} {short(value)}, so its size counts as unknown")
    else:
        notes.add("size", f"{where} has the {side} {short(value)}, which is read as {number}")


def _category(entry: Entry, place: str, notes: Notes) -> Entry:
    changed: dict[str, Any] = {}
    number = _id(entry, "id", place, notes, changed)
    name, above = entry.get("name"), entry.get("supercategory")
    if is_number(name):
        changed["name"] = str(name)
        notes.add("name", f"category {number} has the number {short(name)} as its name, which is read as text")
    elif not isinstance(name, str) or not name:
        what = "no name" if name is None or name == "" else f"the name {short(name)}, which is no text"
        raise DatasetError(f"{notes.name}: category {number} has {what}; give it one")
    elif not _is_writable(name):
        raise DatasetError(f"{notes.name}: category {number} has the name {short(name)}, which cannot be written")
    if above is not None and not isinstance(above, str):
        changed["supercategory"] = None
        notes.add("above", f"category {number} has the supercategory {short(above)}, which is no text; it is left out")
    if number < 0:
        notes.add("negative", f"category {number} has an id below 0, which some tools take for none; here it counts")
    rest = {key: value for key, value in entry.items() if key not in changed}
    changed |= _made_finite(rest, f"category {number}", notes)
    return {**entry, **changed} if changed else entry


def _annotation(entry: Entry, place: str, notes: Notes) -> Entry:
    changed: dict[str, Any] = {}
    gone: list[str] = []
    number = entry.get("id")
    if number is None:
        where = place
    elif type(number) is int and abs(number) <= LARGEST_ID:
        where = f"annotation {number}"
    else:
        where = place
        if isinstance(number, str) and _whole(number) is None:
            changed["id"] = None  # nothing refers to it
        else:
            where = f"annotation {_id(entry, 'id', place, notes, changed)}"
    for key in ("image_id", "category_id"):
        value = entry.get(key)
        if type(value) is not int or abs(value) > LARGEST_ID:
            _id(entry, key, where, notes, changed)
    crowd = entry.get("iscrowd")
    if type(crowd) is not int or crowd not in (0, 1):
        _crowd(crowd, where, notes, changed)
    if entry.get("score") is not None:
        _score(entry["score"], where, notes, changed)
    area, box = entry.get("area"), entry.get("bbox")
    if area is not None and not (is_number(area) and area >= 0):
        gone.append("area")
        notes.add("area", f"{where} has the area {short(area)}, which is none; the pixels of its mask are counted")
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        gone.append("bbox")
        notes.add("box", f"{where} has the bbox {short(box)}, which is not four numbers; it is left out")
    if not _is_finite(entry.get("segmentation")):
        raise DatasetError(f"{notes.name}: {where}: its mask holds something that is no finite number")
    rest = {key: value for key, value in entry.items() if key not in changed and key not in gone}
    changed |= _made_finite(rest, where, notes)
    if not changed and not gone:
        return entry
    return {key: value for key, value in {**entry, **changed}.items() if key not in gone}


def _made_finite(entry: Entry, where: str, notes: Notes) -> dict[str, Any]:
    """The values of an entry that hold NaN or Infinity, with null in their place: Python reads and writes them, but
    they are no JSON, so nothing else reads the file."""
    changed = {key: _with_nulls(value) for key, value in entry.items() if not _is_finite(value)}
    for key in changed:
        notes.add("not finite", f"{where} has a number in its {short(key)} that is not finite; it is read as null")
    return changed


def _with_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_nulls(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_nulls(each) for each in value]
    return value if _is_finite(value) else None


def _is_finite(value: Any) -> bool:
    """Whether there is no NaN or Infinity in a value of JSON."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if not isinstance(value, (list, tuple)):
        return True
    try:
        if math.isfinite(sum(value)):  # most are long lists of numbers
            return True
    except (TypeError, OverflowError):  # it holds something else, or integers beyond floats
        pass
    return all(map(_is_finite, value))


def _crowd(value: Any, where: str, notes: Notes, changed: dict[str, Any]) -> None:
    number = int(value) if isinstance(value, bool) else 0 if value is None else _whole(value)
    if number not in (0, 1):
        raise DatasetError(f"{notes.name}: {where} has the iscrowd {short(value)}, which is neither 0 nor 1")
    if value is not None:
        changed["iscrowd"] = number
        notes.add("iscrowd", f"{where} has the iscrowd {short(value)}, which is read as {number}")


def _score(value: Any, where: str, notes: Notes, changed: dict[str, Any]) -> None:
    if is_number(value):
        return
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    if not is_number(number):
        raise DatasetError(f"{notes.name}: {where}: its score {short(value)} is no finite number up to {LARGEST:.0e}")
    changed["score"] = number
    notes.add("score", f"{where} has the score {short(value)}, which is read as a number")


def _id(entry: Entry, key: str, where: str, notes: Notes, changed: dict[str, Any]) -> int:
    """The whole number under a key. Text that is none gives a number of its own, the same in every file."""
    value = entry.get(key)
    if type(value) is int and abs(value) <= LARGEST_ID:
        return value
    number = _whole(value)
    if number is not None and abs(number) <= LARGEST_ID:
        notes.add(f"{key} {type(value).__name__}", f"{where} has the {key} {short(value)}, which is read as {number}")
    elif isinstance(value, str) and value and number is None:
        number = int.from_bytes(hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()[:6], "big")
        notes.add(f"{key} text", f"{where} has the {key} {short(value)}, a text; it is read as the number {number}")
    elif value is None or value == "":
        raise DatasetError(f"{notes.name}: {where} has no {key}; it should be a whole number")
    elif number is not None:
        raise DatasetError(f"{notes.name}: {where} has the {key} {short(value)}, over the limit of 2^63 - 1")
    else:
        raise DatasetError(f"{notes.name}: {where} has the {key} {short(value)}, which is no whole number")
    changed[key] = number
    return number


def _numbered(annotations: list[Entry], notes: Notes) -> list[Entry]:
    """Annotations each with an id of its own: without one, or with that of an earlier one, they are numbered anew."""
    seen: set[int] = set()
    again: list[int] = []
    for place, annotation in enumerate(annotations):
        number = annotation.get("id")
        if number is None:
            notes.add("no id", f"no. {place + 1} of the annotations has no number as its id, so it is numbered anew")
            again.append(place)
        elif number in seen:
            notes.add("same id", f"two annotations have the id {number}; the later one is numbered anew")
            again.append(place)
        else:
            seen.add(number)
            if number <= 0:
                what = "COCO's own scoring takes such a one for missed, here it counts"
                notes.add("low id", f"annotation {number} has the id {number}, below 1; {what}")
    number = 0
    for place in again:
        number += 1
        while number in seen:
            number += 1
        annotations[place] = {**annotations[place], "id": number}
    return annotations


def _single(annotations: list[Entry], notes: Notes) -> list[Entry]:
    """Where every annotation is a crowd, as one tool writes all masks that are run lengths, none is."""
    if not annotations or not all(annotation.get("iscrowd") for annotation in annotations):
        return annotations
    notes.add("crowds", "every annotation says iscrowd 1, as some tools write; each is read as a single thing")
    return [{**annotation, "iscrowd": 0} for annotation in annotations]


def _note_shared_names(categories: Sequence[Entry], notes: Notes) -> None:
    first: dict[str, int] = {}
    for entry in categories:
        if entry["name"] in first:
            both = f"categories {first[entry['name']]} and {entry['id']}"
            notes.add("one name", f"{both} are both called {entry['name']!r}, so they are read as one")
        first.setdefault(entry["name"], entry["id"])


def _info(info: Any, name: str) -> dict[str, Any]:
    if isinstance(info, Mapping) or info is None:
        return dict(info or {})
    what = "read as its description" if isinstance(info, str) else "left out"
    _log.warning("%s: its info should be an object and is %s; it is %s", name, short(info), what)
    return {"description": info} if isinstance(info, str) else {}


def _whole(value: Any) -> int | None:
    """The whole number that a value stands for, be it 60, 60.0 or "60"; `None` where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= 2**63 else None
    match = _WHOLE.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def _is_writable(name: str) -> bool:
    """Whether a text can be written into files, or be the name of one; bytes that are no Unicode can."""
    try:
        return b"\0" not in name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def short(value: Any) -> str:
    """A value in a message, cut to a few words."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"of {int(value.bit_length() * 0.30103) + 1} digits"
    return _SHORT.repr(value)

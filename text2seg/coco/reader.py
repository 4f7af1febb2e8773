"""COCO files from any source, read and checked in one place for all commands.

Odd but clear values are read as what they mean, with one warning per kind. Unclear values are refused with a
`DatasetError` that names file and entry. Keys that are not COCO's pass unchanged, so check the type of their values
before use. Masks are checked by `text2seg.coco.rle` when they are needed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from text2seg.coco.json_file import Notes, read_json, short
from text2seg.coco.rle import MAX_NUMBER, MAX_PIXELS, MAX_SIDE, is_number
from text2seg.errors import DatasetError
from text2seg.io.storage import Url

Entry = Mapping[str, Any]

LARGEST_ID = 2**63 - 1
_WHOLE = re.compile(r"\s*([+-]?[0-9]{1,18})(\.0*)?\s*")

_log = logging.getLogger(__name__)


class Dataset(dict[str, Any]):
    """A checked COCO dataset. `name` is its name in messages, usually the path of its file.

    images: `id` (int, unique), `file_name`, `height` and `width` (int or None).
    annotations: `id` (int, unique), `image_id` and `category_id` (int), `iscrowd` (0 or 1); optional `score` and `area`
        (numbers) and `bbox` (four numbers).
    categories: `id` (int, unique), `name`.
    info: a dict.

    Annotations may refer to images or categories that are not listed (see `check_references`), and categories may
    share a name (see `kept_categories`).
    """

    __slots__ = ("name",)

    def __init__(self, content: Mapping[str, Any], name: str) -> None:
        super().__init__(content)
        self.name = name


def read_dataset(path: str | os.PathLike[str] | Url) -> Dataset:
    """Read and check a COCO dataset file.

    Raises:
        DatasetError: the file is missing, cannot be read, is not JSON or not a COCO dataset, or an entry is damaged.
    """
    return check_dataset(read_json(path), str(path))


def check_dataset(content: Any, name: str) -> Dataset:
    """Check a dataset in memory as `read_dataset` does, and return the checked copy.

    Args:
        content: the dataset; it is not changed.
        name: its name in messages; a `Dataset` keeps its own.

    Raises:
        DatasetError: it is not a COCO dataset, or an entry is damaged.
    """
    name = content.name if isinstance(content, Dataset) else name
    if not isinstance(content, Mapping):
        kind = type(content).__name__
        way = "; text2seg.coco.reader.read_dataset reads a file" if isinstance(content, str | os.PathLike) else ""
        raise DatasetError(f"{name} is not a COCO dataset: it should hold an object, not a {kind}{way}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise DatasetError(f"{name} is not a COCO dataset: it has no list of {key}")
    notes = Notes(name, is_logged=isinstance(content, Dataset))
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
    """Check a flat list of results {image_id, category_id, segmentation, score} like annotations.

    Raises:
        DatasetError: an entry is damaged.
    """
    notes = Notes(name)
    results = [_annotation(entry, place, notes) for place, entry in _objects(content, "results", name)]
    notes.say()
    return results


def check_references(dataset: Dataset, keys: Iterable[str] = ("image_id", "category_id")) -> None:
    """Raise `DatasetError` if an annotation refers to an image or category that the dataset does not list."""
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
    """Return the id that each category id is read as.

    It is the id itself unless several categories share a name; then it is the first of them that has annotations, or
    else the first.
    """
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
    """Return (rows, columns) of a checked image. Raises `DatasetError` if the dataset does not give them."""
    height, width = image.get("height"), image.get("width")
    if height is None or width is None:
        raise DatasetError(f"{name}: image {image['id']} needs a height and a width, got {height} and {width}")
    return height, width


def attributes_of(entry: Entry) -> Entry:
    """Return the `attributes` of an image or annotation; empty if there are none or they are not an object."""
    attributes = entry.get("attributes")
    return attributes if isinstance(attributes, Mapping) else {}


def score_of(annotation: Entry) -> float | None:
    """Return the score of an annotation, its own or that of its attributes, or None if there is none."""
    for place in (annotation, attributes_of(annotation)):
        score = place.get("score")
        if is_number(score):
            return float(score)
    return None


def _objects(entries: Iterable[Any], key: str, name: str) -> Iterator[tuple[str, Entry]]:
    """Yield each entry with the description of its place in the list."""
    for place, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping):
            raise DatasetError(f"{name}: no. {place} of the {key} is not an object but {short(entry)}")
        yield f"no. {place} of the {key}", entry


def _image(entry: Entry, place: str, notes: Notes) -> Entry:
    changed: dict[str, Any] = {}
    number = _id(entry, "id", place, notes, changed)
    where = f"image {number}"
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        what = "no file_name" if name is None or name == "" else f"the file_name {short(name)}, which is not text"
        raise DatasetError(f"{notes.name}: {where} has {what}; images are identified by it, so add one")
    if not _is_writable(name) or len(name) > 4096 or max(map(len, os.fsencode(name).split(b"/"))) > 255:
        raise DatasetError(f"{notes.name}: {where} has the file_name {short(name)}, which no file can have")
    for side in ("height", "width"):
        _side(entry, side, where, notes, changed)
    height, width = ({**entry, **changed}.get(side) for side in ("height", "width"))
    if height and width and (height * width > MAX_PIXELS or max(height, width) > MAX_SIDE):
        raise DatasetError(
            f"{notes.name}: {where} is said to be {short(width)} x {short(height)} pixels, over the limit of "
            f"{MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side"
        )
    changed |= _made_finite({key: value for key, value in entry.items() if key not in changed}, where, notes)
    return {**entry, **changed} if changed else entry


def _side(entry: Entry, side: str, where: str, notes: Notes, changed: dict[str, Any]) -> None:
    value = entry.get(side)
    if (type(value) is int and value > 0) or value is None:
        return
    number = _whole(value)
    if number is None or number < 0:
        raise DatasetError(f"{notes.name}: {where} has the {side} {short(value)}, which is not a number of pixels")
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
        what = "no name" if name is None or name == "" else f"the name {short(name)}, which is not text"
        raise DatasetError(f"{notes.name}: category {number} has {what}; give it one")
    elif not _is_writable(name):
        raise DatasetError(f"{notes.name}: category {number} has the name {short(name)}, which cannot be written")
    if above is not None and not isinstance(above, str):
        changed["supercategory"] = None
        notes.add("above", f"category {number} has the supercategory {short(above)}, which is not text; it is left out")
    if number < 0:
        notes.add("negative", f"category {number} has an id below 0, which some tools ignore; it is read")
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
        notes.add(
            "area", f"{where} has the area {short(area)}, which is not a number; the pixels of its mask are counted"
        )
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        gone.append("bbox")
        notes.add("box", f"{where} has the bbox {short(box)}, which is not four numbers; it is left out")
    if not _is_finite(entry.get("segmentation")):
        raise DatasetError(f"{notes.name}: {where}: its mask holds a value that is not a finite number")
    rest = {key: value for key, value in entry.items() if key not in changed and key not in gone}
    changed |= _made_finite(rest, where, notes)
    if not changed and not gone:
        return entry
    return {key: value for key, value in {**entry, **changed}.items() if key not in gone}


def _made_finite(entry: Entry, where: str, notes: Notes) -> dict[str, Any]:
    """Return the values of an entry that hold NaN or Infinity, with None instead: Python reads and writes them, but
    they are not JSON, so other tools cannot read the file."""
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
    """Return whether a JSON value holds neither NaN nor Infinity."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if not isinstance(value, (list, tuple)):
        return True
    try:
        if math.isfinite(sum(value)):  # most are long lists of numbers
            return True
    except (TypeError, OverflowError):  # it holds something else, or integers too large for a float
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
        raise DatasetError(
            f"{notes.name}: {where}: its score {short(value)} is not a finite number of at most {MAX_NUMBER:.0e}"
        )
    changed["score"] = number
    notes.add("score", f"{where} has the score {short(value)}, which is read as a number")


def _id(entry: Entry, key: str, where: str, notes: Notes, changed: dict[str, Any]) -> int:
    """Return the int under a key. Text that is not a number gives a hash, the same in every file."""
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
        raise DatasetError(f"{notes.name}: {where} has the {key} {short(value)}, which is not a whole number")
    changed[key] = number
    return number


def _numbered(annotations: list[Entry], notes: Notes) -> list[Entry]:
    """Return the annotations with unique ids: those without an id, or with a used one, get a free one."""
    seen: set[int] = set()
    again: list[int] = []
    for place, annotation in enumerate(annotations):
        number = annotation.get("id")
        if number is None:
            notes.add("no id", f"no. {place + 1} of the annotations has no number as its id, so it gets a new one")
            again.append(place)
        elif number in seen:
            notes.add("same id", f"two annotations have the id {number}; the later one gets a new id")
            again.append(place)
        else:
            seen.add(number)
            if number <= 0:
                what = "COCO's own scoring counts it as missed; it is read"
                notes.add("low id", f"annotation {number} has the id {number}, below 1; {what}")
    number = 0
    for place in again:
        number += 1
        while number in seen:
            number += 1
        annotations[place] = {**annotations[place], "id": number}
    return annotations


def _single(annotations: list[Entry], notes: Notes) -> list[Entry]:
    """Return the annotations without `iscrowd` if all have it: some tools set it on every RLE mask."""
    if not annotations or not all(annotation.get("iscrowd") for annotation in annotations):
        return annotations
    notes.add("crowds", "every annotation has iscrowd 1, as some tools write; each is read as a single object")
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
    """Return the int that a value stands for, such as 60, 60.0 or "60", or None if it stands for none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= 2**63 else None
    match = _WHOLE.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None


def _is_writable(name: str) -> bool:
    """Return whether a text can be written to a file or be a file name; bytes that are not Unicode can."""
    try:
        return b"\0" not in name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False

"""Inputs of a job: the images and the ontology."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image as PillowImage
from ruamel.yaml import YAML

from text2seg.app.folder.archives import UploadLimit, checked_path, unpack
from text2seg.app.segment.session import SCENES
from text2seg.app.settings import FORMATS
from text2seg.demo import IMAGES
from text2seg.errors import OntologyError, Text2SegError
from text2seg.io.files import is_file, resolve_path
from text2seg.io.names import listed, unique_names
from text2seg.ontology import Category, Ontology, ontology_of_queries, queries_of
from text2seg.ontology.read import parse

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg
    from text2seg.vocabulary import ClosedVocabulary


EXAMPLES = tuple(IMAGES / name for name in SCENES)
"""Images that a visitor can label to try the tab."""
FOLDERS = 500
"""Largest number of folders to choose from."""


class Upload(NamedTuple):
    """An uploaded file, and its name on the visitor's machine: relative to the folder that was chosen, if one was."""

    path: Path
    name: str


def common_folder(uploads: Sequence[Upload]) -> str:
    """Return the folder of the visitor's machine that all uploads come from, or "" if they come from several places."""
    tops = {upload.name.partition("/")[0] if "/" in upload.name else "" for upload in uploads}
    return tops.pop() if len(tops) == 1 else ""


def copy_uploads(uploads: Sequence[Upload], into: Path, room: UploadLimit) -> tuple[str, ...]:
    """Copy images and unpack zip files into a folder. Return one note for each kind of skipped or renamed file.

    Images of a chosen folder keep their places in it. If there are several uploads, each zip gets a folder with its
    name.

    Raises:
        Text2SegError: there are no images, or too many; or a zip is refused.
    """
    known, unique = suffixes(), unique_names()
    count, size = 0, 0
    notes: list[str] = []
    others, renamed = [], []
    top = common_folder(uploads)
    for upload, given in uploads:
        folder_name, _, base = given.removeprefix(f"{top}/").rpartition("/")
        name, suffix = base.lstrip("."), Path(base).suffix.lower()  # hidden files are not labelled
        left = UploadLimit(room.images - count, room.total - size)
        if suffix == ".zip":
            folder = into / unique(checked_path(Path(name).stem), "") if len(uploads) > 1 else into
            folder.mkdir(exist_ok=True)
            unpacked = unpack(upload, folder, left, suffixes=known)
            count, size = count + len(unpacked.files), size + unpacked.size
            notes += unpacked.skipped
        elif suffix in known:
            count, size = count + 1, size + upload.stat().st_size
            if count > room.images or size > room.total:
                raise _too_much(room)
            path = Path(checked_path(f"{folder_name}/{name}".lstrip("/")))
            copied = unique(path.with_suffix("").as_posix(), path.suffix)
            if copied != path.as_posix():
                renamed.append(f"{path.as_posix()} is now {copied}")
            (into / copied).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(upload, into / copied)
        else:
            others.append(given)
    if renamed:
        notes.append(f"several files of one name: {listed(renamed)}")
    if others:
        notes.append(f"neither image nor zip: {listed(others)}")
    if not count:
        raise Text2SegError("; ".join(["there is no image in your upload", *notes]))
    return tuple(notes)


def link_folder(root: Path, name: str, into: Path, room: UploadLimit) -> tuple[str, ...]:
    """Link the images of a folder below `root` into the folder of a job. Return notes like `copy_uploads`.

    The name is looked up in `folders_in` and never opened directly. Links to folders, and links to files outside
    `root`, are not followed.

    Raises:
        Text2SegError: there is no such folder, or it has no images, or too many.
    """
    if name not in folders_in(root):
        raise Text2SegError(f"there is no folder {name!r} to choose")
    base, known = resolve_path(root), suffixes()
    outside, unnamed = [], 0
    count = 0
    for path in _files(base / name):
        if path.suffix.lower() not in known:
            continue
        place = path.relative_to(base / name)
        real = resolve_path(path)
        if not _is_text(str(place)):
            unnamed += 1
            continue
        if not real.is_relative_to(base) or not _is_readable(real):
            outside.append(place.as_posix())
            continue
        count += 1
        if count > room.images:
            raise _too_much(room)
        (into / place).parent.mkdir(parents=True, exist_ok=True)
        (into / place).symlink_to(real)
    notes = (f"links out of the folder, or not readable: {listed(sorted(outside))}",) * bool(outside)
    notes += (f"{unnamed} files with names that are not Unicode",) * bool(unnamed)
    if not count:
        raise Text2SegError("; ".join(["there is no image in this folder", *notes]))
    return notes


def folders_in(root: Path) -> list[str]:
    """Return `.` and the folders below `root` as relative POSIX paths, without hidden folders and links."""
    base = resolve_path(root)
    found = []
    for where, folders, _ in os.walk(base):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.append(Path(where).relative_to(base).as_posix())
        if len(found) == FOLDERS:
            break
    return sorted(found)


def suffixes() -> frozenset[str]:
    """Return the file suffixes of supported images, in lower case with their dot."""
    return frozenset(suffix for suffix, kind in PillowImage.registered_extensions().items() if kind in FORMATS)


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(where) / name for name in files if not name.startswith("."))


def _is_readable(path: Path) -> bool:
    try:
        return is_file(path) and os.access(path, os.R_OK)
    except Text2SegError:  # in a folder without access
        return False


def _is_text(name: str) -> bool:
    """Return whether a name is valid Unicode, so that zip and JSON files can hold it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _too_much(room: UploadLimit) -> Text2SegError:
    return Text2SegError(
        f"at most {room.images:,} images and {room.total / 1e6:,.0f} MB are allowed at once; upload fewer"
    )


LETTERS = 50_000
"""Longest ontology in characters. It is parsed after every key press."""
CATEGORIES = 500
"""Largest number of categories."""

_PLACE = re.compile(r"ontology(?::(?P<line>\d+))?: (?P<words>.*)", re.DOTALL)

WITH_LIMITS = """\
# All keys of a category. Only the name is required.
categories:
  - name: dog
    queries: [dog, hound]         # words for the same thing
    negative_queries: [sheep]     # similar things to exclude
    threshold: 0.8                # share of the map's peak, 0 to 1
    presence: 0.5                 # smallest presence score, 0 to 1
    min_area: 50                  # smallest segment, in pixels
    supercategory: animal
    colour: "#ff8800"
  - name: vehicle
    queries: [fire engine, tractor]
  - cat                           # short form
"""


@dataclass(frozen=True, slots=True)
class LineError:
    """An error in an ontology, and its line, which starts at 1. Line 0 means no special line."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Checked:
    """An ontology, or None and its errors. Its categories are those that the models can look for; `unknown` says why
    others are left out, and `known` then lists what the models know. `half_known` says of which categories the models
    know only some words."""

    ontology: Ontology | None
    errors: tuple[LineError, ...] = ()
    unknown: tuple[LineError, ...] = ()
    known: tuple[str, ...] = ()
    half_known: tuple[str, ...] = ()


def check(text: str, models: Text2Seg) -> Checked:
    """Parse an ontology like the command line, and leave out the categories that the models do not know."""
    if len(text) > LETTERS:
        return Checked(None, (LineError(0, f"the ontology has {len(text):,} characters; the limit is {LETTERS:,}"),))
    try:
        ontology, items = parse(text, "ontology")
    except OntologyError as error:
        matches = [match for line in str(error).splitlines() if (match := _PLACE.fullmatch(line))]
        return Checked(None, tuple(LineError(int(match["line"] or 0), match["words"]) for match in matches))
    if len(items) > CATEGORIES:
        return Checked(None, (LineError(0, f"{len(items):,} categories are too many; the limit is {CATEGORIES:,}"),))
    queries = queries_of(ontology)
    known, says = models.known_queries(queries)
    unknown = tuple(
        LineError(item.line(()), f"{query.name}: {says[query.name]}")
        for query, item in zip(queries, items, strict=True)
        if query.name in says
    )
    vocabulary = models.closed_vocabulary
    things = vocabulary.names if vocabulary and unknown else ()
    names = {query.name for query in known}
    looked_for = [query for query in queries if query.name in names]
    half_known = tuple(filter(None, map(vocabulary.half_known, looked_for))) if vocabulary else ()
    kept = tuple(category for category in ontology.categories if category.name in names)
    return Checked(Ontology(kept) if kept else None, unknown=unknown, known=things, half_known=half_known)


def as_yaml(queries: str | Sequence[str]) -> str:
    """Return an ontology file for queries: one text with commas between them, or a list.

    >>> print(as_yaml("dog|puppy, red car"), end="")
    categories:
      dog|puppy: [dog, puppy]
      red car: [red car]

    Raises:
        QueryError, OntologyError: as for `ontology_of_queries`.
    """
    return _dumped({each.name: _entry(each) for each in ontology_of_queries(queries).categories})


def known_things(vocabulary: ClosedVocabulary) -> str:
    """Return an ontology file of everything that a model knows, each thing with its name and all other wordings."""
    return _dumped({name: [*dict.fromkeys([name, *wordings])] for name, wordings in vocabulary.wordings.items()})


def _dumped(categories: Mapping[str, Any]) -> str:
    yaml = YAML()
    yaml.default_flow_style = None  # lists of words in one line
    yaml.width = 100
    file = io.StringIO()
    yaml.dump({"categories": dict(categories)}, file)
    return file.getvalue()


def _entry(category: Category) -> list[str] | dict[str, list[str]]:
    queries = list(category.queries)
    if not category.negative_queries:
        return queries
    return {"queries": queries, "negative_queries": list(category.negative_queries)}

"""Which files of a folder are images to label, always in the same order."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from PIL import Image as PillowImage

from text2seg.errors import ImageError, SettingsError
from text2seg.io.files import exists, is_dir, resolved
from text2seg.io.files import status as stat_of
from text2seg.io.names import folded
from text2seg.io.storage import Place, Stamp, Url, list_files, stamp_of

# Formats that Pillow lists but cannot turn into pixels by itself.
NO_IMAGES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})


@dataclass(frozen=True, slots=True)
class Scan:
    """Files of `folder` by their POSIX path from there, in byte order. File k has the place `first + k * step` in the
    listing of the whole folder, also where this is only a shard of it. `stamps` are those that a store's listing gave,
    two numbers a file; a file here is asked when its stamp is wanted."""

    folder: Place
    files: tuple[str, ...]
    first: int = 0
    step: int = 1
    stamps: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.files)

    def place(self, index: int) -> int:
        """Where a file stands in the whole folder, from 0."""
        return self.first + index * self.step

    def path(self, index: int) -> Place:
        return self.folder / self.files[index]

    def stamp(self, index: int) -> Stamp:
        """Bytes and time of the last change, by which a changed file is known."""
        if isinstance(self.folder, Url):
            return self.stamps[2 * index], self.stamps[2 * index + 1]
        return stamp_of(self.folder / self.files[index])


def list_images(
    folder: Place,
    *,
    recursive: bool = True,
    globs: Sequence[str] = (),
    limit: int | None = None,
    shard: str = "",
    skip: Iterable[Place] = (),
) -> Scan:
    """The images in a folder: files with a suffix that Pillow reads or, in their place, those that `globs` name.

    Hidden files and folders are passed over, and so are the files in `skip` (what this job writes itself). Links are
    followed, a folder is entered once. The limit is taken first, then the shard. A folder at a URL is listed as a whole
    by its store.

    Args:
        globs: patterns for the file name or, with a slash in them, for the path from the folder; letter case and the
            form of accents are ignored.
        limit: the first so many only.
        shard: "2/5" takes every fifth file from the second on, so that five jobs share a folder.

    Raises:
        ImageError: there is no such folder, it or one in it may not be read, or it has no images.
        SettingsError: the shard is not of that form.
    """
    part, parts = parse_shard(shard)
    wanted = _by_globs(globs) if globs else _by_suffix()
    stamps: dict[str, Stamp] = {}
    if isinstance(folder, Url):
        own_objects = set(skip)
        found = list_files(folder, recursive=recursive)
        stamps = {name: stamp for name, stamp in found if wanted(name) and folder / name not in own_objects}
        names = list(stamps)
    else:
        names = _names_here(folder, wanted, skip, recursive=recursive)
    names.sort(key=os.fsencode)
    if not names:
        looked = f"matches {' or '.join(globs)}" if globs else "has the suffix of an image"
        deeper = "" if recursive else "; without --no-recursive its folders are looked through as well"
        raise ImageError(f"{folder}: no file in it {looked}{deeper}")
    files = tuple(names[:limit][part - 1 :: parts])
    if not files:
        raise ImageError(f"{folder}: shard {shard} of its {len(names[:limit])} images is empty; take fewer shards")
    numbers = array("q", (number for file in files if stamps for number in stamps[file]))
    return Scan(folder, files, part - 1, parts, numbers)


def parse_shard(shard: str) -> tuple[int, int]:
    """
    >>> parse_shard("2/5"), parse_shard("")
    ((2, 5), (1, 1))

    Raises:
        SettingsError: it is neither empty nor a number from 1 on, a slash and how many there are.
    """
    if not shard:
        return 1, 1
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", shard)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise SettingsError(f"a shard is its number and how many there are, 1/4 to 4/4, got {shard!r}")
    return part, parts


def image_suffixes() -> frozenset[str]:
    """Suffixes, with their dot and in lower case, of the formats that Pillow reads."""
    formats = PillowImage.registered_extensions()
    return frozenset(suffix for suffix, name in formats.items() if name in PillowImage.OPEN and name not in NO_IMAGES)


def _names_here(folder: Path, wanted: Callable[[str], bool], skip: Iterable[Place], *, recursive: bool) -> list[str]:
    if not exists(folder, ImageError):
        raise ImageError(f"{folder}: there is no such folder")
    if not is_dir(folder, ImageError):
        raise ImageError(f"{folder} is not a folder; to look at single images use text2seg segment")
    own = {path.name: resolved(path) for path in skip if isinstance(path, Path)}
    names = [name for name in _walk(folder, recursive=recursive) if wanted(name)]
    return [name for name in names if not _is_own(folder / name, own)]


def _is_own(path: Path, own: Mapping[str, Path]) -> bool:
    return path.name in own and resolved(path) == own[path.name]


def _by_suffix() -> Callable[[str], bool]:
    suffixes = image_suffixes()
    return lambda name: os.path.splitext(name)[1].lower() in suffixes


def _by_globs(globs: Sequence[str]) -> Callable[[str], bool]:
    patterns = [folded(pattern).removeprefix("./") for pattern in globs]

    def matches(name: str) -> bool:
        path = folded(name)
        base = path.rpartition("/")[2]
        return any(fnmatchcase(path if "/" in pattern else base, pattern) for pattern in patterns)

    return matches


def _walk(folder: Path, *, recursive: bool) -> Iterator[str]:
    """Paths of all files that are not hidden."""

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename} cannot be read: {error.strerror}") from error

    seen: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = stat_of(where, ImageError)
        if status is None:  # gone meanwhile
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:  # a link back up, or a second way here
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Sorted, so that of two ways to a folder the same one counts every time.
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        prefix = Path(where).relative_to(folder).as_posix()
        for name in files:
            if not name.startswith("."):
                yield name if prefix == "." else f"{prefix}/{name}"

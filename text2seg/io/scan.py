"""Scan a folder for images, always in the same order."""

from __future__ import annotations

import copy
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import overload

from PIL import Image as PillowImage

from text2seg.errors import ImageError, SettingsError
from text2seg.io.files import exists, is_dir, reason, resolve_path
from text2seg.io.images import load_image
from text2seg.io.names import folded
from text2seg.io.storage import Place, Stamp, Url, list_files, stamp_of
from text2seg.records import Image

NOT_IMAGES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats that Pillow registers but cannot decode to pixels by itself."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Files of a folder, as POSIX paths relative to it and in byte order, or a shard of them.

    Attributes:
        folder: the folder, here or in a store.
        files: the paths.
        first: position of the first file in the whole folder.
        step: distance to the next one; larger than 1 in a shard.
        stamps: for a folder in a store, two numbers for each file: its size and its modification time.
    """

    folder: Place
    files: tuple[str, ...]
    first: int = 0
    step: int = 1
    stamps: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.files)

    def place(self, index: int) -> int:
        """Return the position of a file in the whole folder, from 0."""
        return self.first + index * self.step

    def path(self, index: int) -> Place:
        """Return the path or URL of a file."""
        return self.folder / self.files[index]

    def stamp(self, index: int) -> Stamp:
        """Return the size and modification time of a file, which tell whether it was changed."""
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
    """Find the images in a folder by their suffixes, or by `globs` instead.

    Hidden files and folders are skipped. Links are followed, and each folder is entered once. The store of a URL lists
    the whole folder at once.

    Args:
        folder: the folder.
        recursive: also search its subfolders.
        globs: patterns for the file name or, if they contain a slash, for the path relative to the folder. Letter case
            and the form of accents are ignored.
        limit: keep the first files only, up to this number. Applied before `shard`.
        shard: "2/5" keeps every fifth file, starting with the second, so that five jobs can share a folder.
        skip: files to leave out, such as the job's own output.

    Raises:
        ImageError: the folder does not exist or has no images, or it or a subfolder cannot be read.
        SettingsError: `shard` does not have this form.
    """
    part, parts = parse_shard(shard)
    matches = _match_globs(globs) if globs else _match_suffixes()
    stamps: dict[str, Stamp] = {}
    if isinstance(folder, Url):
        skipped = set(skip)
        found = list_files(folder, recursive=recursive)
        stamps = {name: stamp for name, stamp in found if matches(name) and folder / name not in skipped}
        names = list(stamps)
    else:
        names = _list_local(folder, matches, skip, recursive=recursive)
    names.sort(key=os.fsencode)
    if not names:
        wanted = f"matches {' or '.join(globs)}" if globs else "has the suffix of an image"
        advice = "" if recursive else "; omit --no-recursive to search its subfolders"
        raise ImageError(f"{folder}: no file in it {wanted}{advice}")
    files = tuple(names[:limit][part - 1 :: parts])
    if not files:
        raise ImageError(f"{folder}: shard {shard} of its {len(names[:limit])} images is empty; use fewer shards")
    numbers = array("q", (number for file in files if stamps for number in stamps[file]))
    return Scan(folder, files, part - 1, parts, numbers)


def parse_shard(shard: str) -> tuple[int, int]:
    """Return the number of a shard, from 1, and how many shards there are.

    >>> parse_shard("2/5"), parse_shard("")
    ((2, 5), (1, 1))

    Raises:
        SettingsError: the text is neither empty nor of this form.
    """
    if not shard:
        return 1, 1
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", shard)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise SettingsError(f"a shard is written as number/count, such as 1/4 to 4/4, got {shard!r}")
    return part, parts


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow reads: lower case, with the dot."""
    formats = PillowImage.registered_extensions()
    return frozenset(suffix for suffix, name in formats.items() if name in PillowImage.OPEN and name not in NOT_IMAGES)


def walk_files(folder: Path, *, recursive: bool = True, error: type[ImageError] | None = None) -> Iterator[str]:
    """Yield the files in a folder that are not hidden, as POSIX paths relative to it.

    Links are followed, and each folder is entered once.

    Args:
        folder: the folder.
        recursive: also yield files of its subfolders.
        error: raised for a folder that cannot be read. By default it is skipped.
    """

    def refuse(fault: OSError) -> None:
        if error is not None:
            raise error(f"{fault.filename} cannot be read: {reason(fault)}") from fault

    seen: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        try:
            found = os.stat(where)
        except FileNotFoundError:  # deleted meanwhile
            folders.clear()
            continue
        except OSError as fault:
            refuse(fault)
            folders.clear()
            continue
        if (found.st_dev, found.st_ino) in seen:  # a link to a parent, or a second link to the same folder
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        # Sorted, so that a folder with two links is always reached through the same one.
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        prefix = Path(where).relative_to(folder).as_posix()
        for name in sorted(files):
            if not name.startswith("."):
                yield name if prefix == "." else f"{prefix}/{name}"


def check_image_folder(folder: Path) -> None:
    """Raise `ImageError` unless there is such a folder."""
    if not exists(folder, ImageError):
        raise ImageError(f"{folder}: there is no such folder")
    if not is_dir(folder, ImageError):
        raise ImageError(f"{folder} is not a folder; for single images use text2seg segment")


def _list_local(folder: Path, matches: Callable[[str], bool], skip: Iterable[Place], *, recursive: bool) -> list[str]:
    check_image_folder(folder)
    skipped = {path.name: resolve_path(path) for path in skip if isinstance(path, Path)}
    names = [name for name in walk_files(folder, recursive=recursive, error=ImageError) if matches(name)]
    return [name for name in names if not _is_skipped(folder / name, skipped)]


def _is_skipped(path: Path, skipped: Mapping[str, Path]) -> bool:
    return path.name in skipped and resolve_path(path) == skipped[path.name]


def _match_suffixes() -> Callable[[str], bool]:
    suffixes = image_suffixes()
    return lambda name: os.path.splitext(name)[1].lower() in suffixes


def _match_globs(globs: Sequence[str]) -> Callable[[str], bool]:
    patterns = [folded(pattern).removeprefix("./") for pattern in globs]

    def matches(name: str) -> bool:
        path = folded(name)
        base = path.rpartition("/")[2]
        return any(fnmatchcase(path if "/" in pattern else base, pattern) for pattern in patterns)

    return matches


class ImageFiles(Sequence[Image]):
    """Images of files and folders, in the order of their paths. Folders are searched recursively.

    An image is read when it is taken out; this raises `ImageError` if it cannot be read.

    Attributes:
        paths: the files.
        names: for each file its path relative to the folder that was given, with slashes; for single files their name.
    """

    def __init__(self, places: Iterable[Path]) -> None:
        """Find the files. Raises `ImageError` if a file or folder is missing, or a folder has no image."""
        found = [pair for place in places for pair in _files(place)]
        self.paths = tuple(path for path, _ in found)
        self.names = tuple(name for _, name in found)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> ImageFiles: ...
    def __getitem__(self, index: int | slice) -> Image | ImageFiles:
        if isinstance(index, slice):
            part = copy.copy(self)
            part.paths, part.names = self.paths[index], self.names[index]
            return part
        path = self.paths[index]
        return load_image(path, image_id=range(len(self))[index] + 1, file_name=path.name)


def _files(place: Path) -> list[tuple[Path, str]]:
    """Return the image files of a file or folder, each with its name relative to it."""
    if not is_dir(place, ImageError):
        if not exists(place, ImageError):
            raise ImageError(f"there is no file or folder {place}")
        return [(place, place.name)]
    return [(place / file, file) for file in list_images(place).files]


def names_of(images: Sequence[Image]) -> tuple[str, ...]:
    """Return the names of images: of a sequence that reads its files late, its attribute `names`, without reading them.

    For files in a folder it is their path relative to the folder.
    """
    names: tuple[str, ...] | None = getattr(images, "names", None)
    if names is not None:
        return names
    return tuple(image.file_name or f"image {number}" for number, image in enumerate(images, 1))


def paths_of(images: Sequence[Image]) -> tuple[Path | None, ...]:
    """Return the files of images, of a sequence that reads its files late; None for other images."""
    paths: tuple[Path | None, ...] | None = getattr(images, "paths", None)
    return paths if paths is not None else (None,) * len(images)

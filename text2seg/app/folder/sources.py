"""Where the pictures of a job come from: what a visitor uploaded, or a folder below the one the app was started with.

A name from a request is never opened: uploads are files that Gradio has put down, and a folder is looked up in a list
that is made here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image as PillowImage

from text2seg.app.archives import Room, checked_path, unpack
from text2seg.app.limits import FORMATS
from text2seg.errors import Text2SegError
from text2seg.io.files import is_file, resolved
from text2seg.io.names import listed, unique_names

FOLDERS = 500  # so many can be chosen from


def take_uploads(uploads: Sequence[Path], into: Path, room: Room) -> tuple[str, ...]:
    """Copy pictures and unpack zips into a folder; gives a line for each kind of what was left out.

    Beside other uploads a zip gets a folder of its own name.

    Raises:
        Text2SegError: there is no image in it all, or more than there is room for; a zip is refused.
    """
    known, unique = suffixes(), unique_names()
    count, size = 0, 0
    notes: list[str] = []
    others = []
    for upload in uploads:
        name, suffix = upload.name.lstrip("."), upload.suffix.lower()  # a hidden file would not be listed
        left = Room(room.pictures - count, room.total - size)
        if suffix == ".zip":
            folder = into / unique(checked_path(Path(name).stem), "") if len(uploads) > 1 else into
            folder.mkdir(exist_ok=True)
            unpacked = unpack(upload, folder, left, suffixes=known)
            count, size = count + len(unpacked.files), size + unpacked.size
            notes += unpacked.skipped
        elif suffix in known:
            count, size = count + 1, size + upload.stat().st_size
            if count > room.pictures or size > room.total:
                raise _too_much(room)
            path = Path(checked_path(name))
            shutil.copyfile(upload, into / unique(path.stem, path.suffix))
        else:
            others.append(upload.name)
    if others:
        notes.append(f"left out what is neither picture nor zip: {listed(others)}")
    if not count:
        raise Text2SegError("; ".join(["there is no image in what you uploaded", *notes]))
    return tuple(notes)


def take_folder(root: Path, name: str, into: Path, room: Room) -> tuple[str, ...]:
    """Link the pictures of a folder below `root` into the job's own; gives lines as `take_uploads`.

    Links to folders are not followed, nor links to files outside of `root`.

    Raises:
        Text2SegError: it is none of `folders_in`, or has no picture or too many.
    """
    if name not in folders_in(root):
        raise Text2SegError(f"there is no folder {name!r} to choose")
    base, known = resolved(root), suffixes()
    outside, unnamed = [], 0
    count = 0
    for path in _files(base / name):
        if path.suffix.lower() not in known:
            continue
        place = path.relative_to(base / name)
        real = resolved(path)
        if not _is_text(str(place)):
            unnamed += 1
            continue
        if not real.is_relative_to(base) or not _is_readable(real):
            outside.append(place.as_posix())
            continue
        count += 1
        if count > room.pictures:
            raise _too_much(room)
        (into / place).parent.mkdir(parents=True, exist_ok=True)
        (into / place).symlink_to(real)
    notes = (f"left out what leads out of the folder or may not be read: {listed(sorted(outside))}",) * bool(outside)
    notes += (f"left out {unnamed} files whose names are no Unicode",) * bool(unnamed)
    if not count:
        raise Text2SegError("; ".join(["there is no image in this folder", *notes]))
    return notes


def folders_in(root: Path) -> list[str]:
    """The folder itself (`.`) and those below it, as POSIX paths from there, without hidden ones and links."""
    base = resolved(root)
    found = []
    for where, folders, _ in os.walk(base):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.append(Path(where).relative_to(base).as_posix())
        if len(found) == FOLDERS:
            break
    return sorted(found)


def suffixes() -> frozenset[str]:
    """Of the pictures that the app reads, with their dot and in lower case."""
    return frozenset(suffix for suffix, kind in PillowImage.registered_extensions().items() if kind in FORMATS)


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(where) / name for name in files if not name.startswith("."))


def _is_readable(path: Path) -> bool:
    try:
        return is_file(path) and os.access(path, os.R_OK)
    except Text2SegError:  # within a closed folder
        return False


def _is_text(name: str) -> bool:
    """Whether a name can stand in a zip and in a JSON file; bytes that are no Unicode cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _too_much(room: Room) -> Text2SegError:
    return Text2SegError(
        f"at most {room.pictures:,} pictures and {room.total / 1e6:,.0f} MB can be taken at once; send fewer"
    )

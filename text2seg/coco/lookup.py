"""What stands around an annotation in a dataset: the picture it is of, and what made it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from text2seg.errors import ImageError
from text2seg.storage import Place, Url, is_url


def provenance_of(annotation: Mapping[str, Any], dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """What made an annotation: its own record of it or else the file's; empty where neither says."""
    for place in (annotation.get("attributes"), dataset.get("info")):
        found = place.get("provenance") if isinstance(place, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return {}


def relative_folder(folder: Place, dataset: Place) -> str:
    """The folder of the pictures as a dataset file names it: as seen from its own folder, so that both can move. Where
    one of them is at a URL, the whole URL or path of the pictures."""
    if isinstance(folder, Url):
        return str(folder)
    if isinstance(dataset, Url):
        return folder.absolute().as_posix()
    try:
        return Path(os.path.relpath(folder.absolute(), dataset.absolute().parent)).as_posix()
    except ValueError:  # on another drive
        return folder.absolute().as_posix()


def find_picture(
    file_name: str,
    dataset: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """The file of a picture, of which only the name is known.

    Args:
        file_name: as the dataset has it.
        dataset: the dataset's own file, beside which pictures are looked for.
        images: their folder; then the name may also begin with folders that lead there. Nothing else is tried.
        info: the dataset's info, whose `folder` is looked in next, as seen from the dataset or from here. A URL or an
            absolute path in it is not opened: whoever wrote the file would say what is.

    A name never leads out of the folder that it is looked for in.

    Raises:
        ImageError: it is in none of the folders; names them.
    """
    name, elsewhere = Path(file_name), ""
    if images is not None:
        parts = name.parts[1:] if name.is_absolute() else name.parts
        where = [Path(images)]
        names = [Path(*parts[start:]) for start in range(len(parts))]
    else:
        recorded = (info or {}).get("folder")
        recorded = recorded if isinstance(recorded, str) else ""
        beside = [Path(dataset).parent] if dataset is not None else []
        elsewhere = recorded if is_url(recorded) or Path(recorded).is_absolute() else ""
        named = [folder / recorded for folder in (*beside, Path())] if recorded and not elsewhere else []
        where, names = [*beside, *named, Path()], [name]
    tried = [path for folder in where for each in names if (path := inside(folder, each))]
    for path in tried:
        if path.is_file():
            return path
    if is_url(elsewhere):
        raise ImageError(f"{file_name} lies in {elsewhere}; copy that folder here and name it with --images")
    if elsewhere:
        raise ImageError(
            f"{file_name} lies in {elsewhere}, says the dataset; if that is right, say --images {elsewhere}"
        )
    folders = ", ".join(dict.fromkeys(str(folder) for folder in where))
    raise ImageError(f"{file_name} is not in {folders}; say with --images where the pictures lie")


def inside(folder: Path, name: str | os.PathLike[str]) -> Path | None:
    """A file that somebody else names, below a folder; none where the name is absolute or leads out of the folder."""
    path = Path(name)
    return None if path.is_absolute() or path.drive or ".." in path.parts else folder / path

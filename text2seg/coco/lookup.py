"""What stands around an annotation in a dataset: the image it is of, and what made it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from text2seg.errors import ImageError
from text2seg.io.names import Names, Parts, folded, listed, parts_of, shown
from text2seg.io.storage import Place, Url, is_url


def provenance_of(annotation: Mapping[str, Any], dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    """What made an annotation: its own record of it or else the file's; empty where neither says."""
    for place in (annotation.get("attributes"), dataset.get("info")):
        found = place.get("provenance") if isinstance(place, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return {}


def relative_folder(folder: Place, dataset: Place) -> str:
    """The folder of the images as a dataset file names it: as seen from its own folder, so that both can move. Where
    one of them is at a URL, the whole URL or path of the images."""
    if isinstance(folder, Url):
        return str(folder)
    if isinstance(dataset, Url):
        return folder.absolute().as_posix()
    try:
        return Path(os.path.relpath(folder.absolute(), dataset.absolute().parent)).as_posix()
    except ValueError:  # on another drive
        return folder.absolute().as_posix()


def find_image(
    file_name: str,
    dataset: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """The file of one image, as `ImageFinder(dataset, images, info).find(file_name)`."""
    return ImageFinder(dataset, images, info).find(file_name)


class ImageFinder:
    """The files of a dataset's images, of which the dataset gives only names. Which file a name means is told by
    `text2seg.io.names`; it never leads out of the folder that it is looked for in. Folders are listed once, so one
    finder serves all images of a run."""

    def __init__(
        self,
        dataset: str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            dataset: the dataset's own file, beside which images are looked for.
            images: their folder, which is then looked through with all folders in it, and no other.
            info: the dataset's info, whose `folder` is looked in next, as seen from the dataset or from here. A URL, an
                absolute path or another machine in it is not opened: whoever wrote the file would say what is.
        """
        self._images = Path(images) if images is not None else None
        recorded = (info or {}).get("folder")
        recorded = recorded if isinstance(recorded, str) and self._images is None else ""
        self._elsewhere = recorded if is_url(recorded) or _has_root(recorded) else ""
        beside = [Path(dataset).parent] if dataset is not None else []
        named = [folder / recorded for folder in (*beside, Path())] if recorded and not self._elsewhere else []
        self._where = [self._images] if self._images is not None else [*beside, *named, Path()]
        self._below: Names | None = None
        self._in: dict[Path, Names] = {}
        self._closed: dict[Path, str] = {}

    def find(self, file_name: str) -> Path:
        """Raises `ImageError`: there is no such file; names the folders. Otherwise as `look`."""
        found, name = self.look(file_name), shown(file_name)
        if found is not None:
            return found
        for folder, why in self._closed.items():
            raise ImageError(f"{name} cannot be looked for in {folder}: {why}")
        if is_url(self._elsewhere):
            raise ImageError(
                f"{name} lies in {shown(self._elsewhere)}; copy that folder here and name it with --images"
            )
        if self._elsewhere:
            where = shown(self._elsewhere)
            raise ImageError(f"{name} lies in {where}, says the dataset; if that is right, say --images {where}")
        folders = ", ".join(dict.fromkeys(shown(str(folder)) for folder in self._where))
        raise ImageError(f"{name} is not in {folders}; say with --images where the images lie")

    def look(self, file_name: str) -> Path | None:
        """The file of an image, `None` where there is none. Raises `ImageError` where it could be several."""
        parts = parts_of(file_name)
        if not parts:
            return None
        leads_out = _has_root(file_name) or ".." in re.split(r"[/\\]", file_name)
        spelled = [] if leads_out else [file_name]
        if self._images is not None:
            return self._look_below(self._images, file_name, spelled, parts)
        for folder in self._where:
            for name in spelled:
                if self._is_file(folder / name):
                    return folder / name
        for start in range(len(parts)):
            for folder in self._where:
                if (found := self._descend(folder, parts[start:])) is not None:
                    return found
        return None

    def _look_below(self, folder: Path, file_name: str, spelled: list[str], parts: Parts) -> Path | None:
        # The name may also start above the folder, and then goes through it.
        through = [at + 1 for at, part in enumerate(parts[:-1]) if folded(part) == folded(folder.absolute().name)]
        for name in [*spelled, *("/".join(parts[at:]) for at in (0, *through))]:
            if self._is_file(folder / name):
                return folder / name
        if self._below is None:
            self._below = Names(list(_files_below(folder)))
        found = [self._below.names[place] for place in self._below.find(file_name)]
        if len(found) > 1:
            raise ImageError(
                f"{shown(file_name)} could be any of {listed(found)} in {folder}; name the folder of the right one "
                "with --images"
            )
        return folder / found[0] if found else None

    def _descend(self, folder: Path, parts: Parts) -> Path | None:
        """The file that the parts lead to from a folder on, spelled in any way."""
        for part in parts:
            if folder not in self._in:
                self._in[folder] = Names(_entries(folder))
            known = self._in[folder]
            found = known.find(part)
            if len(found) != 1:
                return None
            folder = folder / known.names[found[0]]
        return folder if self._is_file(folder) else None

    def _is_file(self, path: Path) -> bool:
        try:
            return path.is_file()
        except PermissionError as error:
            self._closed[path.parent] = str(error.strerror)
            return False
        except (OSError, ValueError):  # a name that no disk has
            return False


def _has_root(place: str) -> bool:
    """Whether a text out of a file names a place from the root of some disk or machine on, here or on Windows."""
    return Path(place).is_absolute() or bool(PureWindowsPath(place).anchor)


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []


def _files_below(folder: Path) -> Iterator[str]:
    """POSIX paths from the folder on of all files that are not hidden; links are followed, each folder is entered
    once. Folders that cannot be read have none."""
    seen: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        try:
            status = os.stat(where)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = Path(where).relative_to(folder).as_posix()
        for name in sorted(files):
            if not name.startswith("."):
                yield name if prefix == "." else f"{prefix}/{name}"

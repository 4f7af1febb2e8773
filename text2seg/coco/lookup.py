"""The image files that the file names of a dataset mean."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from text2seg.errors import ImageError
from text2seg.io.files import is_file, reason
from text2seg.io.names import NameIndex, Parts, folded, listed, parts_of, shown
from text2seg.io.scan import walk_files
from text2seg.io.storage import Place, Url, is_url


def relative_folder(folder: Place, dataset: Place) -> str:
    """Return the folder of the images as the dataset file records it.

    The path is relative to the folder of the dataset file, so that both can be moved together. If either is at a URL,
    it is the full URL or absolute path of the images.
    """
    if isinstance(folder, Url):
        return str(folder)
    if isinstance(dataset, Url):
        return folder.absolute().as_posix()
    try:
        return Path(os.path.relpath(folder.absolute(), dataset.absolute().parent)).as_posix()
    except ValueError:  # on another drive
        return folder.absolute().as_posix()


def common_folder(datasets: Sequence[Path], infos: Sequence[Mapping[str, Any]], output: Path) -> str | None:
    """Return the folder of the images of several dataset files as `output` records it; None if they name different ones
    or none."""
    named: set[str] = set()
    for dataset, info in zip(datasets, infos, strict=True):
        folder = info.get("folder")
        if not isinstance(folder, str) or is_url(folder) or _has_root(folder):
            named.add(str(folder or ""))
        else:
            named.add(relative_folder(Path(os.path.normpath(dataset.absolute().parent / folder)), output))
    return named.pop() or None if len(named) == 1 else None


class ImageFinder:
    """Finds the files of a dataset's images by their file names, with the rules of `text2seg.io.names`.

    A file outside of the searched folders is never returned. Each folder is listed once, so use one finder for all
    images of a dataset.
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str] | None = None,
        images: str | os.PathLike[str] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            dataset: the dataset file; its folder is searched.
            images: folder of the images. It is searched with all its sub-folders, and no other folder is.
            info: `info` of the dataset. Its `folder` is searched too, relative to the dataset file and to the current
                folder. URLs, absolute paths and other machines are not opened: the dataset may be anyone's.
        """
        self._images = Path(images) if images is not None else None
        recorded = (info or {}).get("folder")
        recorded = recorded if isinstance(recorded, str) and self._images is None else ""
        self._elsewhere = recorded if is_url(recorded) or _has_root(recorded) else ""
        beside = [Path(dataset).parent] if dataset is not None else []
        named = [folder / recorded for folder in (*beside, Path())] if recorded and not self._elsewhere else []
        self._where = [self._images] if self._images is not None else [*beside, *named, Path()]
        self._below: NameIndex | None = None
        self._in: dict[Path, NameIndex] = {}
        self._closed: dict[Path, str] = {}

    def find(self, file_name: str) -> Path:
        """Return the file of an image.

        Raises:
            ImageError: there is no such file, or several files match.
        """
        found, name = self.find_or_none(file_name), shown(file_name)
        if found is not None:
            return found
        for folder, why in self._closed.items():
            raise ImageError(f"cannot search {folder} for {name}: {why}")
        if is_url(self._elsewhere):
            raise ImageError(f"{name} is in {shown(self._elsewhere)}; copy that folder here and name it with --images")
        if self._elsewhere:
            where = shown(self._elsewhere)
            raise ImageError(f"according to the dataset, {name} is in {where}; if that is right, add --images {where}")
        folders = ", ".join(dict.fromkeys(shown(str(folder)) for folder in self._where))
        raise ImageError(f"{name} is not in {folders}; name the folder of the images with --images")

    def find_or_none(self, file_name: str) -> Path | None:
        """Return the file of an image, or None if there is none. Raises `ImageError` if several files match."""
        parts = parts_of(file_name)
        if not parts:
            return None
        leads_out = _has_root(file_name) or ".." in re.split(r"[/\\]", file_name)
        spelled = [] if leads_out else [file_name]
        if self._images is not None:
            return self._find_below(self._images, file_name, spelled, parts)
        for folder in self._where:
            for name in spelled:
                if self._is_file(folder / name):
                    return folder / name
        for start in range(len(parts)):
            for folder in self._where:
                if (found := self._descend(folder, parts[start:])) is not None:
                    return found
        return None

    def _find_below(self, folder: Path, file_name: str, spelled: list[str], parts: Parts) -> Path | None:
        # The name may start above the folder and contain it.
        through = [at + 1 for at, part in enumerate(parts[:-1]) if folded(part) == folded(folder.absolute().name)]
        for name in [*spelled, *("/".join(parts[at:]) for at in (0, *through))]:
            if self._is_file(folder / name):
                return folder / name
        if self._below is None:
            self._below = NameIndex(list(walk_files(folder)))
        found = [self._below.names[place] for place in self._below.find(file_name)]
        if len(found) > 1:
            raise ImageError(
                f"{shown(file_name)} could be any of {listed(found)} in {folder}; name the folder of the right one "
                "with --images"
            )
        return folder / found[0] if found else None

    def _descend(self, folder: Path, parts: Parts) -> Path | None:
        """Return the file that the parts lead to from a folder, in any spelling."""
        for part in parts:
            if folder not in self._in:
                self._in[folder] = NameIndex(_entries(folder))
            known = self._in[folder]
            found = known.find(part)
            if len(found) != 1:
                return None
            folder = folder / known.names[found[0]]
        return folder if self._is_file(folder) else None

    def _is_file(self, path: Path) -> bool:
        try:
            return is_file(path, ImageError)
        except ImageError as error:
            self._closed[path.parent] = reason(error.__cause__ or error)
            return False


def _has_root(place: str) -> bool:
    """Return whether a path from a file is absolute, on this system or on Windows."""
    return Path(place).is_absolute() or bool(PureWindowsPath(place).anchor)


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []

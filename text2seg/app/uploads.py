"""Where the files of visitors lie, and pictures among them."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import overload

from text2seg.app.limits import read_picture
from text2seg.app.settings import AppSettings
from text2seg.errors import ImageError
from text2seg.records import Image


@cache
def visitors_folder() -> Path:
    """A folder for the files of this process's visitors, which only this user may read; gone when the process ends.

    Gradio keeps its files there too from the first call on.
    """
    folder = Path(tempfile.mkdtemp(prefix="text2seg-app-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    return folder


def is_upload(place: str | Path) -> bool:
    """Whether a path, as a request names it, is one of a visitor's file."""
    try:
        path = Path(place).resolve()
    except (OSError, ValueError, RuntimeError):
        return False
    return path.is_relative_to(visitors_folder()) and path != visitors_folder()


def check_upload(place: Path) -> Path:
    """The path; raises `ImageError` where it is no upload, because a request opens nothing else."""
    if not is_upload(place):
        raise ImageError(f"{place.name or 'a picture'} was not uploaded here")
    return place


class Uploads(Sequence[Image]):
    """Uploaded pictures as a sequence that reads each one when it is looked at, so that many need not fit into memory.

    Made of paths that are no uploads it raises `ImageError`, and so does taking one out, as `read_picture` does.
    """

    def __init__(self, paths: Sequence[Path], settings: AppSettings) -> None:
        self.paths, self._settings = tuple(check_upload(path) for path in paths), settings

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Uploads: ...
    def __getitem__(self, index: int | slice) -> Image | Uploads:
        if isinstance(index, slice):
            return Uploads(self.paths[index], self._settings)
        return read_picture(self.paths[index], self._settings, image_id=range(len(self))[index] + 1)

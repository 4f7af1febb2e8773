"""Checks of uploads, and of how much work one request asks for. The limits themselves are in settings.py."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints, overload

from text2seg.app.fields import read_settings, shown_settings
from text2seg.app.settings import (
    FORMATS,
    LARGEST_EXPLAINED,
    LARGEST_NUMBER,
    MEGA,
    MOST_QUERIES,
    MOST_TEMPLATES,
    MOST_TILES,
    TIMES_USUAL,
    AppSettings,
)
from text2seg.config import Settings
from text2seg.errors import ImageError, QueryError, SettingsError
from text2seg.io.files import status
from text2seg.io.images import load_image, open_image
from text2seg.queries import Query
from text2seg.records import Image
from text2seg.tiling import tiles_of


def read_image(
    source: str | os.PathLike[str] | bytes, settings: AppSettings, *, name: str = "", image_id: int = 1
) -> Image:
    """Read a visitor's image, upright.

    Args:
        source: path or content of the file.
        name: the visitor's name of the file; folders are removed. Default: the name of the file.

    Raises:
        ImageError: the file or the image is too large, its format is not in `FORMATS`, or it is damaged.
    """
    file: io.BytesIO | Path = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    name = Path((name or (file.name if isinstance(file, Path) else "")).replace("\\", "/")).name or "image"
    size = _size(file, name) if isinstance(file, Path) else file.getbuffer().nbytes
    if size > settings.upload_mb * MEGA:
        raise ImageError(f"{name} has {size / MEGA:,.1f} MB, over the limit of {settings.upload_mb}; make it smaller")
    with open_image(file, name, formats=FORMATS) as image:
        columns, rows = image.size
        if columns * rows > settings.megapixels * MEGA:
            raise ImageError(
                f"{name} is {columns} x {rows} pixels, over the limit of {settings.megapixels} million; make it smaller"
            )
        return load_image(image, image_id=image_id, file_name=name)


def _size(path: Path, name: str) -> int:
    found = status(path, ImageError)
    if found is None:
        raise ImageError(f"{name} has been deleted; upload it again")
    return found.st_size


def read_pipeline_settings(given: Mapping[str, Any]) -> Settings:
    """Return settings from values by stage and name, such as `{"points": {"threshold": 0.7}}`.

    Raises:
        SettingsError: a stage or a name is unknown, or a value is not valid.
    """
    stages = get_type_hints(Settings)
    for stage, values in given.items():
        if stage not in stages or not isinstance(values, Mapping):
            raise SettingsError(
                f'settings must be like {{"points": {{"threshold": 0.7}}}}; the stages are {", ".join(stages)}'
            )
    return Settings(**{stage: _stage(stage, stages[stage], values) for stage, values in given.items()})


def _stage(name: str, kind: type, values: Mapping[str, Any]) -> Any:
    """Return the settings of one stage. Raises `SettingsError` that names the stage."""
    try:
        return read_settings(kind, values)
    except SettingsError as error:
        raise SettingsError(f"{name}: {error}") from error


def check_effort(settings: object) -> None:
    """Raise `SettingsError` if a whole number is far larger than its default, because all visitors share the machine.

    A default of 0 means no limit, for instance for a seed.
    """
    for setting in shown_settings(type(settings)):
        value = getattr(settings, setting.name)
        if setting.kind != "whole" or not isinstance(value, int):
            continue
        usual = LARGEST_EXPLAINED if setting.name == "size" else LARGEST_NUMBER
        most = usual if setting.default is None else setting.default * TIMES_USUAL
        if most and value > most:
            words = f": must be at most {most} in the app, got {value}; the command line has no limit"
            raise SettingsError(f"{setting.name}{words}", on_page=f"{setting.label}{words}")


def check_request(queries: tuple[Query, ...], settings: Settings, hw: tuple[int, int]) -> None:
    """Raise `QueryError` or `SettingsError` if one request asks for too much."""
    if len(queries) > MOST_QUERIES:
        raise QueryError(f"{len(queries)} queries are too many; the limit is {MOST_QUERIES}")
    sides = settings.maps.input_size or 0
    if max(sides if isinstance(sides, tuple) else (sides,)) > LARGEST_NUMBER:
        raise SettingsError(f"the input size must be at most {LARGEST_NUMBER} in the app, got {sides}")
    if len(settings.maps.templates) > MOST_TEMPLATES or len(settings.maps.labels) > MOST_QUERIES:
        raise SettingsError(
            f"there are too many templates or labels; the limits are {MOST_TEMPLATES} and {MOST_QUERIES}"
        )
    tiles = len(tiles_of(hw, settings.tiles))
    if tiles > MOST_TILES:
        raise SettingsError(
            f"this image would have {tiles} tiles; the limit is {MOST_TILES}. Choose a larger tile size"
        )


@cache
def visitors_folder() -> Path:
    """Return the folder for the files of all visitors. Only this user can read it. It is deleted when the process ends.

    The first call also makes Gradio keep its files there.
    """
    folder = Path(tempfile.mkdtemp(prefix="text2seg-app-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    return folder


def is_upload(place: str | Path) -> bool:
    """Return whether a path in a request is an uploaded file."""
    try:
        path = Path(place).resolve()
    except (OSError, ValueError, RuntimeError):
        return False
    return path.is_relative_to(visitors_folder()) and path != visitors_folder()


def check_upload(place: Path) -> Path:
    """Return the path, or raise `ImageError` if it is not an uploaded file. Requests may open nothing else."""
    if not is_upload(place):
        raise ImageError(f"{place.name or 'an image'} was not uploaded here, or is gone; choose it again")
    return place


class Uploads(Sequence[Image]):
    """A sequence of uploaded images that reads each image when it is used, and then calls `opened` with it.

    Raises:
        ImageError: a path is not an upload; or, on access, as `read_image`.
    """

    def __init__(
        self, paths: Sequence[Path], settings: AppSettings, opened: Callable[[Image], object] = lambda _: None
    ) -> None:
        self.paths, self._settings = tuple(check_upload(path) for path in paths), settings
        self.names, self._opened = tuple(path.name for path in self.paths), opened

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> Uploads: ...
    def __getitem__(self, index: int | slice) -> Image | Uploads:
        if isinstance(index, slice):
            return Uploads(self.paths[index], self._settings, self._opened)
        image = read_image(self.paths[index], self._settings, image_id=range(len(self))[index] + 1)
        self._opened(image)
        return image

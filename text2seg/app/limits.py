"""What visitors may ask of the machine: how large pictures may be, said before anything is decoded, and how much work
one request may make."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from text2seg.app.fields import read_settings, shown_settings
from text2seg.app.settings import AppSettings
from text2seg.config import Settings
from text2seg.errors import ImageError, QueryError, SettingsError
from text2seg.io.files import status
from text2seg.io.images import load_image, open_image
from text2seg.queries import Query
from text2seg.records import Image
from text2seg.tiling import tiles_of

MEGA = 1_000_000
MOST_QUERIES, MOST_TEMPLATES, MOST_TILES, MOST_PICTURES = 100, 100, 64, 50
LARGEST_NUMBER = 1024
TIMES_USUAL = 20
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What browsers and cameras make. Pillow reads many more, by code that few have looked at."""


def read_picture(
    source: str | os.PathLike[str] | bytes, settings: AppSettings, *, name: str = "", image_id: int = 1
) -> Image:
    """A visitor's picture, upright, as an `Image`.

    Args:
        source: the uploaded file, or what is in it.
        name: what the visitor calls it, by default the file's name; folders in it are left off.

    Raises:
        ImageError: it is larger in bytes or pixels than the settings allow, of none of `FORMATS`, or damaged.
    """
    file: io.BytesIO | Path = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
    name = Path((name or (file.name if isinstance(file, Path) else "")).replace("\\", "/")).name or "picture"
    size = _size(file, name) if isinstance(file, Path) else file.getbuffer().nbytes
    if size > settings.upload_mb * MEGA:
        raise ImageError(f"{name} has {size / MEGA:,.1f} MB, over the limit of {settings.upload_mb}; make it smaller")
    with open_image(file, name, formats=FORMATS) as picture:
        columns, rows = picture.size
        if columns * rows > settings.megapixels * MEGA:
            raise ImageError(f"{name} is {columns} x {rows} pixels, over the limit of {settings.megapixels} million")
        return load_image(picture, image_id=image_id, file_name=name)


def _size(path: Path, name: str) -> int:
    found = status(path, ImageError)
    if found is None:
        raise ImageError(f"{name} is not here any more; upload it again")
    return found.st_size


def read_pipeline_settings(given: Mapping[str, Any]) -> Settings:
    """Settings by stage and name, as `{"points": {"threshold": 0.7}}`; the rest is as by default.

    Raises `SettingsError` where a stage or a name is not known, or a value is none that fits.
    """
    stages = get_type_hints(Settings)
    for stage, values in given.items():
        if stage not in stages or not isinstance(values, Mapping):
            raise SettingsError(f'settings are like {{"points": {{"threshold": 0.7}}}}, of {", ".join(stages)}')
    return Settings(**{stage: read_settings(stages[stage], values) for stage, values in given.items()})


def check_effort(settings: object) -> None:
    """Raise `SettingsError` where whole numbers of a visitor ask for far more than is usual: memory and time of the
    machine belong to all. What counts nothing, as a seed does, has no default above 0 and no limit."""
    for setting in shown_settings(type(settings)):
        value = getattr(settings, setting.name)
        if setting.kind != "whole" or not isinstance(value, int):
            continue
        most = LARGEST_NUMBER if setting.default is None else setting.default * TIMES_USUAL
        if most and value > most:
            raise SettingsError(f"{setting.label}: {most} is the most here, got {value}; the command line has no limit")


def check_request(queries: tuple[Query, ...], settings: Settings, hw: tuple[int, int]) -> None:
    """Raise `QueryError` or `SettingsError` where one request asks for too much."""
    if len(queries) > MOST_QUERIES:
        raise QueryError(f"{len(queries)} queries at once are too many; {MOST_QUERIES} is the most here")
    sides = settings.maps.input_size or 0
    if max(sides if isinstance(sides, tuple) else (sides,)) > LARGEST_NUMBER:
        raise SettingsError(f"an input size of {LARGEST_NUMBER} is the most here, got {sides}")
    if len(settings.maps.templates) > MOST_TEMPLATES or len(settings.maps.labels) > MOST_QUERIES:
        raise SettingsError(f"{MOST_TEMPLATES} templates and {MOST_QUERIES} labels are the most here")
    tiles = len(tiles_of(hw, settings.tiles))
    if tiles > MOST_TILES:
        raise SettingsError(
            f"this picture would have {tiles} tiles and {MOST_TILES} is the most here; take larger ones"
        )

"""Convert COCO datasets to the formats of other tools."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text2seg.coco import labelme, voc, yolo
from text2seg.coco.reader import Dataset
from text2seg.coco.source import ExportFormat, Source, SourceImage, source_of
from text2seg.config import POLYGON_TOLERANCE, check_tolerance
from text2seg.errors import ImageError, OutputError
from text2seg.io.files import check_is_dir, exists, is_dir, is_file, list_folder, resolve_path
from text2seg.io.images import measure
from text2seg.io.writing import check_folder, check_not_input, is_leftover, temporary_folder_for

FORMATS: Mapping[str, ExportFormat] = {each.name: each for each in (yolo.FORMAT, voc.FORMAT, labelme.FORMAT)}
"""All export formats by name. A new one needs a file like `yolo.py` and a place in this table."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Conversion:
    """Counts of images and of masks that were written, and `notes` for the user, one sentence each."""

    images: int
    annotations: int
    notes: tuple[str, ...]


def convert(
    dataset: Mapping[str, Any],
    to: str,
    output: Path,
    *,
    images: Path | None = None,
    overwrite: bool = False,
    polygon_tolerance: float = POLYGON_TOLERANCE,
) -> Conversion:
    """Write a COCO dataset from any source in another format.

    Sub-folders of the file names are kept. Crowds are left out, and masks are clipped to their images.

    Args:
        dataset: a dataset as `read_dataset` returns it.
        to: name of the format, one of `FORMATS`.
        output: a new or empty folder.
        images: folder of the images, which are then copied too.
        overwrite: write into a folder that is not empty; files of the same names are replaced, others are kept.
        polygon_tolerance: how far, in pixels, polygons of masks may be off their edges; see `simplify.encode`.

    Raises:
        SettingsError: the tolerance is not allowed.
        ImageError: an image is missing or has another size than in the dataset.
        OutputError: the folder is not empty or cannot be written to, or the format cannot hold the dataset.
        Text2SegError: the dataset is damaged.
    """
    check_tolerance(polygon_tolerance)
    if to not in FORMATS:
        raise OutputError(f"there is no format {to!r}; there are {', '.join(FORMATS)}")
    export_format = FORMATS[to]
    if images is not None:
        check_is_dir(images, ImageError, flag="--images")
    source = source_of(
        dataset,
        images,
        reserved=export_format.reserved,
        suffix=export_format.suffix,
        polygon_tolerance=polygon_tolerance,
    )
    for image in source.images:
        _check_pixels(image)
    _check_folder(output, overwrite=overwrite)
    with temporary_folder_for(output) as folder:
        losses, lost = export_format.write(source, folder)
        notes = [*source.outside, *losses]
        _check_inputs(folder, output, dataset, source)
    if source.crowds:
        notes.append(f"{source.crowds} crowd annotations are left out")
    return Conversion(len(source.images), source.count - lost, tuple(notes))


def _check_pixels(image: SourceImage) -> None:
    """Check that the upright image has the size of the dataset, as masks refer to upright images."""
    path = image.pixels
    if path is None:
        return
    (height, width), orientation = measure(path)
    if (height, width) != image.hw:
        raise ImageError(
            f"{path} is {width} x {height} pixels, the dataset says {image.hw[1]} x {image.hw[0]}; "
            "is it another image with the same name?"
        )
    if orientation != 1:
        _log.warning(
            "%s is rotated by its EXIF tag; masks are for the upright image, so use tools that apply the tag", path
        )


def _check_inputs(folder: Path, output: Path, dataset: Mapping[str, Any], source: Source) -> None:
    """Check that no input is overwritten; an image may be copied onto itself."""
    inputs = [Path(dataset.name)] if isinstance(dataset, Dataset) else []
    taken = {resolve_path(each) for each in (*inputs, *(image.pixels for image in source.images)) if each is not None}
    for path in sorted(folder.rglob("*")):
        place = output / path.relative_to(folder)
        if is_file(path, OutputError) and resolve_path(place) in taken and not filecmp.cmp(path, place, shallow=False):
            check_not_input(place, [place])


def _check_folder(output: Path, *, overwrite: bool) -> None:
    if exists(output, OutputError) and not is_dir(output, OutputError):
        raise OutputError(f"{output} is a file, not a folder; choose another --output")
    check_folder(output)
    occupied = is_dir(output, OutputError) and not all(map(is_leftover, list_folder(output, OutputError)))
    if occupied and not overwrite:
        raise OutputError(f"{output} is not empty; choose another --output, or add --overwrite")

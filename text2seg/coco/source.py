"""A COCO dataset prepared for conversion: each image with its annotations and a unique name in the output."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import polygon, rle, simplify
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.reader import check_dataset, check_references, size_of
from text2seg.coco.rle import rle_of
from text2seg.config import POLYGON_TOLERANCE
from text2seg.errors import ImageError, Text2SegError
from text2seg.io.files import open_file, reason
from text2seg.io.names import Parts, counted, fit_file_name, listed, parts_of, shown, unique_names
from text2seg.io.writing import write_atomically

_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")  # other surrogates are bytes of names on disk

_NUMBER = "_99999"  # space for the number that makes a name unique


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotation. `label` is the index of its class from 0, `source_polygons` are the polygons [x1, y1, …] of the
    dataset, clipped to the image, or None if the dataset has its mask as RLE."""

    label: int
    rle: rle.Rle
    source_polygons: Sequence[Sequence[float]] | None = None
    tolerance: float = POLYGON_TOLERANCE

    def mask(self) -> NDArray[np.bool_]:
        """bool[H, W]."""
        return rle.decode(self.rle)

    def polygons(self) -> Sequence[Sequence[float]]:
        """Return the polygons of the dataset [x1, y1, …], or those of its RLE within the tolerance."""
        if self.source_polygons is not None:
            return self.source_polygons
        return simplify.encode(self.mask(), self.tolerance)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image. `stem` is its path in the output (POSIX, without suffix), `pixels` its file if images are copied."""

    file_name: str
    stem: str
    hw: tuple[int, int]
    instances: tuple[Instance, ...]
    pixels: Path | None

    @property
    def suffix(self) -> str:
        """.jpg, .png, …"""
        return PurePosixPath(*_parts(self.file_name)).suffix

    def copy_to(self, folder: Path) -> None:
        """Copy the image file, if there is one, into `folder` under its name in the output.

        Raises:
            ImageError: the file cannot be read.
            OutputError: the copy cannot be written.
        """
        if self.pixels is not None:
            write_atomically(folder / f"{self.stem}{self.suffix}", _chunks(self.pixels))


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset to convert.

    `names` are the names of its classes, each once. `crowds` counts the crowd annotations, which are left out because
    other formats cannot mark them. `outside` has sentences about masks that were clipped or dropped.
    """

    names: tuple[str, ...]
    images: tuple[SourceImage, ...]
    crowds: int
    outside: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of instances in all images."""
        return sum(len(image.instances) for image in self.images)


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format that `text2seg convert` writes. `text2seg.coco.convert.FORMATS` lists them."""

    name: str
    """What `--to` calls it."""
    writes: str
    """What is written, for the help and docs/coco.md."""
    loses: str
    """What the format cannot hold, for docs/coco.md."""
    write: Callable[[Source, Path], tuple[list[str], int]]
    """Write a dataset into a folder; return one sentence for each kind of loss, and the number of lost masks."""
    suffix: str
    """Suffix of the file that is written for each image."""
    reserved: tuple[str, ...] = ()
    """Folder names that must not occur in the paths of images."""


def source_of(
    dataset: Mapping[str, Any],
    images: Path | None = None,
    *,
    reserved: Collection[str] = (),
    suffix: str = ".json",
    polygon_tolerance: float = POLYGON_TOLERANCE,
) -> Source:
    """Group a dataset by image.

    Names in the output are the file names without the folders that all of them share and without parts that lead out
    of the output folder. If two names are equal, the second gets a number.

    Args:
        dataset: a dataset as `read_dataset` returns it.
        images: folder of the images. Default: images are not needed and not copied.
        reserved: folder names that must not occur in names of the output.
        suffix: suffix of the file that is written for each image; names that are too long with it are cut.
        polygon_tolerance: see `simplify.encode`; polygons of the dataset stay as they are.

    Raises:
        ImageError: an image is not in `images`.
        Text2SegError: the dataset is damaged.
    """
    checked = check_dataset(dataset, "the dataset")
    check_references(checked)
    names = tuple(dict.fromkeys(category["name"] for category in checked["categories"]))
    places = {name: place for place, name in enumerate(names)}
    labels = {category["id"]: places[category["name"]] for category in checked["categories"]}
    entries = {entry["id"]: (entry["file_name"], size_of(entry, checked.name)) for entry in checked["images"]}
    instances: dict[int, list[Instance]] = {number: [] for number in entries}
    crowds, trim = 0, _Trim(polygon_tolerance)
    for annotation in checked["annotations"]:
        number = annotation["image_id"]
        if annotation.get("iscrowd"):
            crowds += 1
        else:
            instance = trim.instance(labels[annotation["category_id"]], annotation, *entries[number], checked.name)
            instances[number] += [instance] if instance else []
    stems = _stems([file_name for file_name, _ in entries.values()], reserved, suffix)
    finder = ImageFinder(images=images) if images is not None else None
    images_with_annotations = tuple(
        SourceImage(file_name, stem, hw, tuple(instances[number]), finder.find(file_name) if finder else None)
        for (number, (file_name, hw)), stem in zip(entries.items(), stems, strict=True)
    )
    return Source(names, images_with_annotations, crowds, trim.notes())


class _Trim:
    """Clips masks to their images and counts what is lost. Polygons of other tools often extend beyond the image, which
    pixel formats cannot hold."""

    def __init__(self, polygon_tolerance: float) -> None:
        self._tolerance = polygon_tolerance
        self._cut: list[str] = []
        self._gone: list[str] = []
        self._lost = self._whole = 0.0

    def instance(
        self, label: int, annotation: Mapping[str, Any], file_name: str, hw: tuple[int, int], dataset: str
    ) -> Instance | None:
        """Return the clipped annotation, or None if its mask is outside the image or empty.

        Raises:
            DatasetError: the mask cannot be read.
        """
        found = rle_of(annotation, hw, dataset)
        where = f"annotation {annotation.get('id')} of {shown(file_name)}"
        segmentation, clipped = annotation["segmentation"], None
        if isinstance(segmentation, list):
            clipped = polygon.clip(segmentation, hw)
            if clipped and polygon.reaches_out(segmentation, hw):
                whole = polygon.area(segmentation)
                self._cut.append(where)
                self._whole += whole
                self._lost += max(whole - polygon.area(clipped), 0)
        if not (rle.area(found) if clipped is None else clipped):
            self._gone.append(where)
            return None
        return Instance(label, found, clipped, self._tolerance)

    def notes(self) -> tuple[str, ...]:
        """Return a sentence about the clipped masks and one about the dropped masks, if there are any."""
        notes = []
        if self._cut:
            share = self._lost / self._whole if self._whole else 0
            notes.append(
                f"{_masks(self._cut, 'reaches', 'reach')} beyond the image; the part outside, {share:.1%} of the area, "
                f"is cut off: {listed(self._cut)}"
            )
        if self._gone:
            which = _masks(self._gone, "has", "have")
            notes.append(f"{which} no area in the image; left out: {listed(self._gone)}")
        return tuple(notes)


def _masks(found: Sequence[str], one: str, several: str) -> str:
    return f"{counted(len(found), 'mask')} {one if len(found) == 1 else several}"


def _stems(file_names: Sequence[str], reserved: Collection[str], suffix: str) -> list[str]:
    paths = [[f"{part}_" if part in reserved else part for part in _parts(name)] for name in file_names]
    shared = _shared([path[:-1] for path in paths])
    unique, stems = unique_names(), []
    for name, path in zip(file_names, paths, strict=True):
        if not path:
            raise Text2SegError(f"an image has the file name {name!r}, which names no file")
        folders, last = [fit_file_name(part, "") for part in path[shared:-1]], PurePosixPath(path[-1])
        room = f"{_NUMBER}{max(suffix, last.suffix, key=len)}"
        cut = fit_file_name(last.stem, room).removesuffix(room)
        stems.append(unique(PurePosixPath(*folders, cut).as_posix(), ""))
    _check_folders(file_names, stems, suffix)
    return stems


def _check_folders(file_names: Sequence[str], stems: Sequence[str], suffix: str) -> None:
    """Raise `Text2SegError` if the file for one image has the name of a folder for another."""
    files = {f"{stem}{suffix}": name for name, stem in zip(file_names, stems, strict=True)}
    for name, stem in zip(file_names, stems, strict=True):
        for folder in PurePosixPath(stem).parents:
            if (other := files.get(folder.as_posix())) is not None:
                raise Text2SegError(
                    f"the file for {shown(other)} would have the name of the folder for {shown(name)}, {folder}; "
                    "rename one of these images"
                )


def _parts(file_name: str) -> Parts:
    """Return the parts of a path, with _ for characters that cannot be written to disk or would break a line."""
    return tuple(_UNWRITABLE.sub("_", part) for part in parts_of(file_name))


def _shared(folders: Sequence[Sequence[str]]) -> int:
    """Return the number of leading folders that all paths share."""
    return next(
        (at for at, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) > 1),
        min(map(len, folders), default=0),
    )


def _chunks(path: Path) -> Iterator[bytes]:
    with open_file(path, ImageError) as file:
        try:
            while chunk := file.read(1 << 20):
                yield chunk
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {reason(error)}") from error

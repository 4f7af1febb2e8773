"""A COCO dataset as converters want it: each image with its own annotations, and a name that no other one has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import polygon, rle
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.reader import check_dataset, check_references, size_of
from text2seg.coco.results import rle_of
from text2seg.errors import ImageError, Text2SegError
from text2seg.io.files import fitting, open_file, reason, write_atomically
from text2seg.io.names import Parts, listed, parts_of, shown, unique_names

_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")  # other surrogates are bytes of names on disk

_NUMBER = "_99999"  # room for the number of a name that would be there twice


@dataclass(frozen=True, slots=True)
class Thing:
    """One annotation: the number of its class, counted from 0, and its mask; `own` are its own polygons, cut off at the
    border of the image, where it has polygons."""

    label: int
    rle: rle.Rle
    own: Sequence[Sequence[float]] | None = None

    def mask(self) -> NDArray[np.bool_]:
        """bool[H, W]."""
        return rle.decode(self.rle)

    def polygons(self) -> Sequence[Sequence[float]]:
        """The annotation's own polygons [x1, y1, …], or those that give its RLE back exactly."""
        return polygon.encode(self.mask()) if self.own is None else self.own


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image: where its pixels are, if asked for, and `stem`, its name in the output (POSIX, without suffix)."""

    file_name: str
    stem: str
    hw: tuple[int, int]
    things: tuple[Thing, ...]
    pixels: Path | None

    @property
    def suffix(self) -> str:
        """.jpg, .png, …"""
        return PurePosixPath(*_parts(self.file_name)).suffix

    def copy_to(self, folder: Path) -> None:
        """Copy the pixels as they are to `folder`, under the name in the output. Raises `ImageError` where they cannot
        be read, `OutputError` where they cannot be written."""
        if self.pixels is not None:
            write_atomically(folder / f"{self.stem}{self.suffix}", _chunks(self.pixels))


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset to convert. `names` are its classes, each once; `crowds` counts the annotations left out, because they
    are crowds: regions that scoring ignores, for which the other formats have no word. `outside` says what lay beyond
    the images, in a sentence each."""

    names: tuple[str, ...]
    images: tuple[SourceImage, ...]
    crowds: int
    outside: tuple[str, ...]

    @property
    def things(self) -> int:
        """Annotations in all images."""
        return sum(len(image.things) for image in self.images)


def source_of(
    dataset: Mapping[str, Any], images: Path | None = None, *, reserved: Collection[str] = (), suffix: str = ".json"
) -> Source:
    """Sort a dataset by images.

    Output names are the file names without what leads out of the output folder and without the folders that all share;
    of two that would still be the same the later gets a number.

    Args:
        dataset: as `read_dataset` gives it.
        images: the folder that the file names start from; images must be there. Without it there are no pixels.
        reserved: folder names that may not be in output names.
        suffix: of the file that is written for each image; a name that would be too long with it is cut.

    Raises:
        ImageError: an image is not in `images`.
        Text2SegError: something in the dataset is missing or belongs to nothing.
    """
    checked = check_dataset(dataset, "the dataset")
    check_references(checked)
    names = tuple(dict.fromkeys(category["name"] for category in checked["categories"]))
    places = {name: place for place, name in enumerate(names)}
    labels = {category["id"]: places[category["name"]] for category in checked["categories"]}
    entries = {entry["id"]: (entry["file_name"], size_of(entry, checked.name)) for entry in checked["images"]}
    things: dict[int, list[Thing]] = {number: [] for number in entries}
    crowds, trim = 0, _Trim()
    for annotation in checked["annotations"]:
        number = annotation["image_id"]
        if annotation.get("iscrowd"):
            crowds += 1
        else:
            thing = trim.thing(labels[annotation["category_id"]], annotation, *entries[number], checked.name)
            things[number] += [thing] if thing else []
    stems = _stems([file_name for file_name, _ in entries.values()], reserved, suffix)
    finder = ImageFinder(images=images) if images is not None else None
    images_with_annotations = tuple(
        SourceImage(file_name, stem, hw, tuple(things[number]), finder.find(file_name) if finder else None)
        for (number, (file_name, hw)), stem in zip(entries.items(), stems, strict=True)
    )
    return Source(names, images_with_annotations, crowds, trim.notes())


class _Trim:
    """Cuts masks off at the borders of their images, and keeps account of it. Mask formats of pixels hold nothing
    beyond, but foreign polygons often go on there."""

    def __init__(self) -> None:
        self._cut: list[str] = []
        self._gone: list[str] = []
        self._lost = self._whole = 0.0

    def thing(
        self, label: int, annotation: Mapping[str, Any], file_name: str, hw: tuple[int, int], dataset: str
    ) -> Thing | None:
        """`None` where nothing of the mask lies in the image. Raises `DatasetError` where it is no mask."""
        found = rle_of(annotation, hw, dataset)
        where = f"annotation {annotation.get('id')} of {shown(file_name)}"
        given, own = annotation["segmentation"], None
        if isinstance(given, list):
            own = polygon.clip(given, hw)
            if own and polygon.reaches_out(given, hw):
                whole = polygon.area(given)
                self._cut.append(where)
                self._whole += whole
                self._lost += max(whole - polygon.area(own), 0)
        if not (rle.area(found) if own is None else own):
            self._gone.append(where)
            return None
        return Thing(label, found, own)

    def notes(self) -> tuple[str, ...]:
        """What is to be said of it."""
        notes = []
        if self._cut:
            share = self._lost / self._whole if self._whole else 0
            notes.append(
                f"{_masks(self._cut, 'reaches', 'reach')} beyond the image; what is outside, {share:.1%} of the area, "
                f"is cut off: {listed(self._cut)}"
            )
        if self._gone:
            which = _masks(self._gone, "has", "have")
            notes.append(f"{which} no area in the image; left out: {listed(self._gone)}")
        return tuple(notes)


def _masks(found: Sequence[str], one: str, several: str) -> str:
    return f"{len(found)} mask{'s' * (len(found) != 1)} {one if len(found) == 1 else several}"


def _stems(file_names: Sequence[str], reserved: Collection[str], suffix: str) -> list[str]:
    paths = [[f"{part}_" if part in reserved else part for part in _parts(name)] for name in file_names]
    shared = _shared([path[:-1] for path in paths])
    unique, stems = unique_names(), []
    for name, path in zip(file_names, paths, strict=True):
        if not path:
            raise Text2SegError(f"an image has the file name {name!r}, which is none")
        folders, last = [fitting(part, "") for part in path[shared:-1]], PurePosixPath(path[-1])
        room = f"{_NUMBER}{max(suffix, last.suffix, key=len)}"
        cut = fitting(last.stem, room).removesuffix(room)
        stems.append(unique(PurePosixPath(*folders, cut).as_posix(), ""))
    _check_folders(file_names, stems, suffix)
    return stems


def _check_folders(file_names: Sequence[str], stems: Sequence[str], suffix: str) -> None:
    """Raise `Text2SegError` where the file written for one image would be a folder for that of another."""
    files = {f"{stem}{suffix}": name for name, stem in zip(file_names, stems, strict=True)}
    for name, stem in zip(file_names, stems, strict=True):
        for folder in PurePosixPath(stem).parents:
            if (other := files.get(folder.as_posix())) is not None:
                raise Text2SegError(
                    f"the file for {shown(other)} would have the name of the folder for {shown(name)}, {folder}; "
                    "rename one of these images"
                )


def _parts(file_name: str) -> Parts:
    """The folders and the file of a name, with _ for what cannot be written to disk or would break a line."""
    return tuple(_UNWRITABLE.sub("_", part) for part in parts_of(file_name))


def _shared(folders: Sequence[Sequence[str]]) -> int:
    """How many folders all paths begin with."""
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

"""Images whose things are known: what explanations are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.errors import DatasetError, ImageError
from text2seg.evaluation.alignment import align
from text2seg.evaluation.protocols import Pair, pairs_of
from text2seg.io.files import resolved
from text2seg.io.images import load_image
from text2seg.records import Image


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A COCO dataset: its `name`, and every (image, thing in it) once, those of one image together."""

    name: str
    file: Path
    categories: Mapping[int, str]
    pairs: tuple[Pair, ...]
    finder: ImageFinder

    @classmethod
    def read(cls, file: Path, images: Path | None = None, limit: int | None = None) -> Labelled:
        """Read a dataset; `limit` keeps the first so many images that show something. `images` is their folder, by
        default as the dataset names them.

        Raises:
            DatasetError: it is missing, damaged or without masks.
        """
        truth = read_dataset(file)
        aligned = align(truth, [])
        pairs = list(pairs_of(aligned))
        scenes = list(dict.fromkeys(pair.scene.image_id for pair in pairs))[:limit]
        return cls(
            name=resolved(file).parent.name,
            file=file,
            categories=aligned.categories,
            pairs=tuple(pair for pair in pairs if pair.scene.image_id in scenes),
            finder=ImageFinder(file, images, truth["info"]),
        )

    def thing(self, pair: Pair) -> str:
        """What the pair's thing is called."""
        return self.categories[pair.category]

    def image_of(self, pair: Pair) -> Image:
        """The pair's image. Raises `ImageError` where it is missing, cannot be read or is of another size."""
        scene = pair.scene
        image = load_image(
            self.finder.find(scene.file_name),
            image_id=scene.image_id,
            file_name=scene.file_name,
        )
        if image.hw != scene.hw:
            raise ImageError(f"{scene.file_name} has {image.hw} rows and columns, its dataset says {scene.hw}")
        return image


def labelled_sets(files: Sequence[Path], images: Path | None = None, limit: int | None = None) -> list[Labelled]:
    """The datasets, or both splits of the demo scenes where none is named.

    Raises:
        DatasetError: one is missing, damaged or without masks; or there are images to no dataset.
    """
    if images is not None and not files:
        raise DatasetError(f"{images} holds images of no dataset: name the dataset as well")
    return [Labelled.read(file, images, limit) for file in files or demo_splits()]


def demo_splits() -> Iterator[Path]:
    """The bundled datasets: drawings by the training's vendors, and those of a vendor that training never saw."""
    scenes = Path(str(resources.files("text2seg.demo"))) / "scenes"
    return (scenes / split / "dataset.json" for split in ("new-scenes", "held-out"))


def mask_of(pair: Pair) -> NDArray[np.bool_]:
    """Where the thing is, bool [H, W]: all of its kind, crowds as well."""
    mask = rle.decode(pair.truth)
    return mask if pair.ignored is None else mask | rle.decode(pair.ignored)

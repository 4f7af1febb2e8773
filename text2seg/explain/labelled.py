"""COCO datasets on which explanations are measured."""

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
from text2seg.evaluation.alignment import align
from text2seg.evaluation.protocols import Pair, pairs_of
from text2seg.explain.tool import check_sets
from text2seg.io.files import resolve_path
from text2seg.records import Image


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A COCO dataset with its pairs of an image and a category in it. The pairs of one image are adjacent."""

    name: str
    file: Path
    categories: Mapping[int, str]
    pairs: tuple[Pair, ...]
    finder: ImageFinder

    @classmethod
    def read(cls, file: Path, images: Path | None = None, limit: int | None = None) -> Labelled:
        """Read a dataset.

        Args:
            file: the COCO file.
            images: folder of the images; default: the paths in the dataset.
            limit: keep only the first images with annotations, up to this number.

        Raises:
            DatasetError: the dataset is missing, damaged or without masks.
        """
        truth = read_dataset(file)
        aligned = align(truth, [])
        pairs = list(pairs_of(aligned))
        scenes = list(dict.fromkeys(pair.scene.image_id for pair in pairs))[:limit]
        return cls(
            name=resolve_path(file).parent.name,
            file=file,
            categories=aligned.categories,
            pairs=tuple(pair for pair in pairs if pair.scene.image_id in scenes),
            finder=ImageFinder(file, images, truth["info"]),
        )

    def category_name(self, pair: Pair) -> str:
        """Return the name of the pair's category."""
        return self.categories[pair.category]

    def image_of(self, pair: Pair) -> Image:
        """Read the pair's image. Raises `ImageError` if it is missing, unreadable or has another size."""
        return pair.scene.load(self.finder.find(pair.scene.file_name))


def labelled_sets(files: Sequence[Path], images: Path | None = None, limit: int | None = None) -> list[Labelled]:
    """Read the datasets; without files, read both splits of the bundled scenes.

    Raises:
        DatasetError: a dataset is missing, damaged or without masks, or `images` is given without a dataset.
    """
    check_sets(files, images)
    return [Labelled.read(file, images, limit) for file in files or demo_splits()]


def demo_splits() -> Iterator[Path]:
    """Return the bundled datasets: drawings of the vendors used in training, and of one vendor that was not."""
    scenes = Path(str(resources.files("text2seg.demo"))) / "scenes"
    return (scenes / split / "dataset.json" for split in ("new-scenes", "held-out"))


def mask_of(pair: Pair) -> NDArray[np.bool_]:
    """Return the mask bool [H, W] of all objects of the pair's category in the image, crowds included."""
    mask = rle.decode(pair.truth)
    return mask if pair.ignored is None else mask | rle.decode(pair.ignored)

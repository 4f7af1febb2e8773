"""Masks out of COCO files of anyone, and the flat list of results that scoring tools take as predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import rle
from text2seg.coco.dataset import Json
from text2seg.coco.reader import check_dataset, check_references, score_of, size_of
from text2seg.coco.rle import checked_rle
from text2seg.errors import DatasetError, Text2SegError


def results_of(dataset: Mapping[str, Any]) -> list[Json]:
    """A dataset's annotations as predictions: {image_id, category_id, segmentation, score}, in their order.

    Masks are RLE whatever the dataset has, because pycocotools' `loadRes` takes nothing else. There is no `bbox`: with
    it, areas would be the boxes' and AP by size wrong. Raises `Text2SegError` where an annotation has no score, is of
    no image of the dataset, or its mask is none.
    """
    checked = check_dataset(dataset, "the dataset")
    check_references(checked)
    sizes = {image["id"]: size_of(image, checked.name) for image in checked["images"]}
    results = []
    for annotation in checked["annotations"]:
        score = score_of(annotation)
        if score is None:
            raise Text2SegError(
                f"annotation {annotation['id']} has no score, so it is no prediction; "
                "results come from files that text2seg or another model wrote"
            )
        results.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "segmentation": rle_of(annotation, sizes[annotation["image_id"]], checked.name),
                "score": score,
            }
        )
    return results


def rle_of(annotation: Mapping[str, Any], hw: tuple[int, int], dataset: str = "") -> rle.Rle:
    """The mask of an annotation as compressed RLE, from any of the three forms that COCO knows: polygons, compressed
    RLE, plain runs. `hw` is the image's. Raises `DatasetError`, naming the dataset, where that has a name, and the
    annotation, where it is none of these."""
    try:
        return checked_rle(annotation.get("segmentation"), hw)
    except ValueError as error:
        where = f"{dataset}: " if dataset else ""
        raise DatasetError(f"{where}the mask of annotation {annotation.get('id')} cannot be read: {error}") from error


def mask_of(annotation: Mapping[str, Any], hw: tuple[int, int], dataset: str = "") -> NDArray[np.bool_]:
    """The mask of an annotation, bool[H, W]; as for `rle_of`."""
    return rle.decode(rle_of(annotation, hw, dataset))

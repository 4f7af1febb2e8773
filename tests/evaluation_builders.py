"""Ground truths and predictions for tests of scores: small, random, never square, with ids that are not 1..N."""

from __future__ import annotations

import builders
import numpy as np
from numpy.typing import NDArray

from text2seg.coco import polygon, rle

NAMES = ("dog", "cat", "red car")
LEFT, RIGHT = builders.box_mask(left=2, width=8), builders.box_mask(left=12, width=8)


def category(name: str, names: tuple[str, ...] = NAMES) -> int:
    return 10 + 7 * names.index(name)


def dataset(*images: list[dict], names: tuple[str, ...] = NAMES, hw: tuple[int, int] = builders.HW) -> dict:
    """Dataset with one image for each list of annotations, made by `annotation`."""
    data: dict = {
        "images": [
            {"id": 5 * place, "file_name": f"{place}.png", "height": hw[0], "width": hw[1]}
            for place in range(1, len(images) + 1)
        ],
        "annotations": [],
        "categories": [{"id": category(name, names), "name": name} for name in names],
    }
    for place, entries in enumerate(images, start=1):
        for each in entries:
            number = len(data["annotations"]) + 1
            known = {key: value for key, value in each.items() if key != "name"}
            known |= {"id": number, "image_id": 5 * place, "category_id": category(each["name"], names)}
            data["annotations"].append(known)
    return data


def annotation(
    name: str, mask: NDArray[np.bool_], *, score: float | None = None, crowd: bool = False, **attributes
) -> dict:
    found: dict = {"name": name, "segmentation": rle.encode(mask), "area": int(mask.sum()), "iscrowd": int(crowd)}
    if score is not None:
        found["score"] = score
    return found | ({"attributes": attributes} if attributes else {})


def random_mask(random: np.random.Generator, hw: tuple[int, int]) -> NDArray[np.bool_]:
    top, left = (int(random.integers(0, side - 3)) for side in hw)
    height, width = (int(random.integers(3, side + 1)) for side in hw)
    mask = np.zeros(hw, np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def shifted(mask: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
    by = [int(random.integers(-side // 16, side // 16 + 1)) for side in mask.shape]
    return np.roll(mask, by, (0, 1))


def random_pair(
    seed: int, *, images: int = 6, hw: tuple[int, int] = (150, 200), crowds: bool = True
) -> tuple[dict, dict]:
    """Random truth with polygons and crowds, and predictions near it, some of the wrong category; all scores differ."""
    random = np.random.default_rng(seed)
    true: list[list[dict]] = []
    found: list[list[dict]] = []
    for _ in range(images):
        here: list[dict] = []
        there: list[dict] = []
        for _ in range(int(random.integers(0, 6))):
            name, mask = str(random.choice(NAMES)), random_mask(random, hw)
            each = annotation(name, mask, crowd=crowds and random.random() < 0.15)
            if not each["iscrowd"] and random.random() < 0.5:
                each["segmentation"] = polygon.encode(mask)
            here.append(each)
            if random.random() < 0.8:
                guess = name if random.random() < 0.8 else str(random.choice(NAMES))
                there.append(annotation(guess, shifted(mask, random), score=float(random.random())))
        true.append(here)
        found.append(there)
    true[0].append(annotation("dog", random_mask(random, hw)))
    return dataset(*true, hw=hw), dataset(*found, hw=hw)


def permuted(data: dict, seed: int) -> dict:
    """The same dataset with images, annotations and categories in another order."""
    random = np.random.default_rng(seed)
    return {key: [values[place] for place in random.permutation(len(values))] for key, values in data.items()}


def perfect(truth: dict) -> dict:
    """The truth as a prediction, without its crowds."""
    return truth | {"annotations": [each | {"score": 0.5} for each in truth["annotations"] if not each["iscrowd"]]}

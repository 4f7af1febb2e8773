"""Runs in the environment of FiftyOne: opens our COCO file and labels a dataset, and prints what FiftyOne then has; and
how many of many masks it draws elsewhere than we do.

Arguments: the folder of images, the COCO file, and the queries.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import builders
import fiftyone as fo
import numpy as np

from text2seg import Text2Seg
from text2seg.coco.rle import encode
from text2seg.integrations.fiftyone import detections_of, label_dataset


def stored(label: fo.Detection, width: int, height: int) -> np.ndarray:
    """The full mask that FiftyOne has: its array at its relative box. `to_segmentation` rounds the box down, which for
    a file that FiftyOne opened may move or stretch the mask by a pixel."""
    sides = np.multiply(label.bounding_box, [width, height, width, height])
    x, y, columns, rows = (int(side) for side in sides.round())
    assert np.allclose(sides, [x, y, columns, rows], rtol=1e-9, atol=0), sides
    assert label.mask.shape == (rows, columns), (label.mask.shape, sides)
    full = np.zeros((height, width), np.bool_)
    full[y : y + rows, x : x + columns] = label.mask
    return full


def drawn(label: fo.Detection, width: int, height: int) -> np.ndarray:
    return label.to_segmentation(frame_size=(width, height)).mask.astype(np.bool_)


def labels_of(dataset: fo.Dataset, field: str, mask_of: Callable[[fo.Detection, int, int], np.ndarray]) -> dict:
    """Labels of each image: name, RLE of the full mask and confidence."""
    return {
        Path(sample.filepath).name: [
            [each.label, encode(mask_of(each, sample.metadata.width, sample.metadata.height)), each.confidence]
            for each in (sample[field].detections if sample[field] else [])
        ]
        for sample in dataset
    }


def drawn_elsewhere(count: int) -> int:
    """How many of so many masks, each of a box in a narrow image, FiftyOne does not draw at our pixels."""
    rng = np.random.default_rng(0)
    wrong = 0
    for number in range(count):
        long, short = int(rng.integers(2, 4096)), int(rng.integers(2, 50))
        hw = (long, short) if number % 2 else (short, long)
        (top, bottom), (left, right) = (np.sort(rng.choice(size + 1, 2, replace=False)) for size in hw)
        mask = np.zeros(hw, np.bool_)
        mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.5
        mask[[top, bottom - 1], [left, right - 1]] = True
        (label,) = detections_of(builders.segmentation(builders.segment("box", mask), hw=hw)).detections
        wrong += not all(np.array_equal(of(label, *hw[::-1]), mask) for of in (drawn, stored))
    return wrong


folder, file, *queries = sys.argv[1:]
opened = fo.Dataset.from_dir(
    dataset_type=fo.types.COCODetectionDataset, data_path=folder, labels_path=file, label_types="segmentations"
)
opened.compute_metadata()
labelled = fo.Dataset("labelled")
labelled.add_images([*sorted(map(str, Path(folder).glob("*.jpg"))), str(Path(folder) / "broken.png")])
failures = label_dataset(labelled, Text2Seg.load("demo", device="cpu", precision="fp32"), queries, field="ours")
labelled = labelled.match(fo.ViewField("filepath").ends_with(".jpg"))
labelled.compute_metadata()
answer = {
    "version": fo.__version__,
    "opened": labels_of(opened, "ground_truth", stored),
    "labelled": labels_of(labelled, "ours", drawn),
    "drawn_elsewhere": drawn_elsewhere(1000),
    "failures": [failure.message for failure in failures],
}
sys.stdout.write(f"ANSWER {json.dumps(answer)}\n")

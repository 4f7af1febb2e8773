"""Runs in the environment of FiftyOne: opens our COCO file and labels a dataset, and prints what FiftyOne then has.

Arguments: the folder of images, the COCO file, and the queries.
"""

import json
import sys
from pathlib import Path

import fiftyone as fo
import numpy as np

from text2seg import Text2Seg
from text2seg.coco.rle import encode
from text2seg.integrations.fiftyone import label_dataset


def labels_of(dataset: fo.Dataset, field: str) -> dict:
    """Labels of each image: name, RLE of the full mask and confidence."""
    found = {}
    for sample in dataset:
        height, width = sample.metadata.height, sample.metadata.width
        found[Path(sample.filepath).name] = [
            [
                each.label,
                encode(each.to_segmentation(frame_size=(width, height)).mask.astype(np.bool_)),
                each.confidence,
            ]
            for each in (sample[field].detections if sample[field] else [])
        ]
    return found


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
    "opened": labels_of(opened, "ground_truth"),
    "labelled": labels_of(labelled, "ours"),
    "failures": [failure.message for failure in failures],
}
sys.stdout.write(f"ANSWER {json.dumps(answer)}\n")

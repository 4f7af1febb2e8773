"""Score the demo model on scenes it has not seen, and print a table.

    python scripts/score_demo.py                     # the scenes in the repository
    python scripts/score_demo.py runs/new-scenes …   # datasets made by render_demo_world.py

One row a dataset. First table, what is there being known: `one point` is SAM alone, from the deepest point of each
true mask (the candidate that SAM scores best, and the best of its three); `reference` and `default` are the whole
pipeline, asked for the things that are there: mean over (image, thing present) of the IoU of the unions. Second table,
nothing being known: the folder is labelled with all that the demo model knows, and scored by every protocol.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from text2seg import PointSettings, PresenceSettings, Settings, Text2Seg
from text2seg.coco import rle
from text2seg.coco.dataset import build_dataset, read_dataset
from text2seg.evaluation import category_given, evaluate
from text2seg.images import load_image
from text2seg.label_config import LabelSettings
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.records import PointPrompts

SAMPLES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes"
REFERENCE = Settings(points=PointSettings(method="reference"), presence=PresenceSettings(0))
METHODS = {"reference": REFERENCE, "default": Settings(presence=PresenceSettings(0))}


def score(models: Text2Seg, folder: Path, limit: int | None) -> dict[str, float]:
    truth = read_dataset(folder / "dataset.json")
    truth["images"] = truth["images"][:limit]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept]
    names = {category["id"]: category["name"] for category in truth["categories"]}
    present = defaultdict(list)
    for annotation in truth["annotations"]:
        present[annotation["image_id"]].append(annotation)

    results = defaultdict(list)
    chosen, best = [], []
    for entry in tqdm(truth["images"], desc=folder.name, unit="scene"):
        image = load_image(folder / entry["file_name"], image_id=entry["id"], file_name=entry["file_name"])
        session = models.open(image)
        annotations = present[entry["id"]]
        queries = sorted({names[a["category_id"]] for a in annotations})
        for name, settings in METHODS.items():
            if queries:
                results[name].append(session.segment(queries, settings))
        for annotation in annotations:
            picked, top = one_point(models, session, names[annotation["category_id"]], annotation["segmentation"])
            chosen.append(picked)
            best.append(top)
    row = {"one point": float(np.mean(chosen)), "best of 3": float(np.mean(best))}
    for name, segmentations in results.items():
        row[name] = category_given(truth, build_dataset(segmentations)).mean_iou
    return row | {"scenes": len(truth["images"]), "things": len(truth["annotations"])}


def one_point(models: Text2Seg, session, query: str, segmentation: dict) -> tuple[float, float]:
    """IoU of the mask from the true mask's deepest point: SAM's choice, and the best of its candidates."""
    mask = rle.decode(segmentation)
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    points = PointPrompts(np.array([[column, row]], np.float32), np.ones(1, np.int8), np.ones(1, np.float32))
    segment = session.segment_points(query, points)
    masks = [models.sam.mask(session.embedding, segment.candidates, k) for k in range(len(segment.candidates))]
    ious = [np.count_nonzero(m & mask) / np.count_nonzero(m | mask) for m in masks]
    return ious[segment.chosen], max(ious)


def score_labels(models: Text2Seg, folder: Path, limit: int | None) -> dict[str, float]:
    """Label the folder with everything the model knows; the scores of all protocols."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "labels.json"
        settings = LabelSettings(output=output, limit=limit, categories_from=folder / "dataset.json")
        label_folder(models, folder, ontology_of_queries(models.things.names), settings, progress=True)
        labels = read_dataset(output)
    truth = read_dataset(folder / "dataset.json")
    done = {image["id"] for image in labels["images"]}
    truth["images"] = [image for image in truth["images"] if image["id"] in done]
    truth["annotations"] = [annotation for annotation in truth["annotations"] if annotation["image_id"] in done]
    scores = evaluate(truth, labels)
    return {
        "AP": scores.instances.ap,
        "AP50": scores.instances.ap_50,
        "mIoU": scores.semantic.miou,
        "category-given": scores.category_given.mean_iou,
        "multilabel mAP": scores.multilabel.mean_ap,
        "present, lost": scores.misses.counts["not found"] / scores.category_given.pairs,
        "absent, found": scores.misses.false / _absent(truth),
    }


def _absent(truth: dict) -> int:
    """How many (image, thing absent) pairs there are."""
    present = {(annotation["image_id"], annotation["category_id"]) for annotation in truth["annotations"]}
    return len(truth["images"]) * len(truth["categories"]) - len(present)


def show(rows: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(rows.values())))
    print("".join(["split".ljust(14), *(column.rjust(16) for column in columns)]))
    for name, row in rows.items():
        cells = (f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns)
        print("".join([name.ljust(14), *(cell.rjust(16) for cell in cells)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with dataset.json; default: the bundled scenes")
    parser.add_argument("--limit", type=int, help="only the first so many scenes of each")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    models = Text2Seg.load("demo", precision=args.precision)
    folders = args.folders or sorted(path for path in SAMPLES.iterdir() if path.is_dir())
    show({folder.name: score(models, folder, args.limit) for folder in folders})
    show({folder.name: score_labels(models, folder, args.limit) for folder in folders})


if __name__ == "__main__":
    main()

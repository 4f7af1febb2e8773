"""Score the demo model on scenes it has not seen, by `--method reference` and by `auto`, the default; three tables.

    python scripts/score_demo.py                     # the scenes in the repository
    python scripts/score_demo.py runs/new-scenes …   # datasets made by render_demo_world.py

First SAM alone, from the deepest point of each true mask: the candidate that SAM scores best, the best of its three.
Second, what is there being known and asked for: `IoU` is the mean over (image, thing present) of the IoU of the unions;
`found` the share of the true things that a segment covers with an IoU of 0.5; `right` how often no other candidate is
more than 0.05 better than the chosen one; `< map` the share of the pairs where the map above its mean does better.
Third, nothing being known: the folder is labelled with all that the demo model knows, and scored by every protocol.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from demo_world.agreement import Mask, Scene, agreement, read_truth, scenes_of

from text2seg import PointSettings, PresenceSettings, Settings, Text2Seg
from text2seg.coco.dataset import read_dataset
from text2seg.coco.reader import check_dataset
from text2seg.coco.truth import shown_in
from text2seg.config import LabelSettings
from text2seg.evaluation import evaluate
from text2seg.grids import iou
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.pipeline import Session
from text2seg.records import PointPrompts

SAMPLES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes"
NEVER_ABSENT = PresenceSettings(0)
METHODS = {
    "reference": Settings(points=PointSettings(method="reference"), presence=NEVER_ABSENT),
    "auto": Settings(),
}


Table = dict[str, dict[str, float]]
"""From the name of a row to its numbers by column."""


def scores(models: Text2Seg, folders: Sequence[Path], *, limit: int | None = None) -> Iterator[Table]:
    """The three tables, each as soon as it is known."""
    scenes = {folder: list(scenes_of(models, folder, limit)) for folder in folders}
    yield {folder.name: sam_alone(models, scenes[folder]) for folder in folders}
    yield {
        f"{folder.name}, {name}": score_known(models, scenes[folder], own)
        for folder in folders
        for name, own in METHODS.items()
    }
    yield {
        f"{folder.name}, {name}": score_labels(models, folder, own, limit)
        for folder in folders
        for name, own in METHODS.items()
    }


def bundled() -> list[Path]:
    """The scenes in the repository."""
    return sorted(path for path in SAMPLES.iterdir() if path.is_dir())


def sam_alone(models: Text2Seg, scenes: Sequence[Scene]) -> dict[str, float]:
    rows = [
        one_point(models, session, name, mask)
        for session, things in scenes
        for name, masks in things.items()
        for mask in masks
    ]
    chosen, best = np.mean(rows, axis=0)
    return {"one point": float(chosen), "best of 3": float(best), "things": len(rows)}


def one_point(models: Text2Seg, session: Session, query: str, mask: Mask) -> tuple[float, float]:
    """IoU of the mask from the true mask's deepest point: SAM's choice, and the best of its candidates."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    points = PointPrompts(np.array([[column, row]], np.float32), np.ones(1, np.int8), np.ones(1, np.float32))
    segment = session.segment_points(query, points)
    masks = [models.sam.mask(session.embedding, segment.candidates, k) for k in range(len(segment.candidates))]
    ious = [iou(each, mask) for each in masks]
    return ious[segment.chosen], max(ious)


def score_known(models: Text2Seg, scenes: Sequence[Scene], settings: Settings) -> dict[str, float]:
    """Every scene is asked for what it shows, and nothing counts as absent."""
    found = agreement(models, scenes, replace(settings, presence=NEVER_ABSENT))
    return {
        "IoU": float(np.mean(found.ious)),
        "found": float(np.mean(found.found)),
        "right": float(np.mean(found.right)),
        "< map": float((np.array(found.ious) < np.stack(found.of_map)[:, 0]).mean()),
        "pairs": len(found.ious),
    }


def score_labels(models: Text2Seg, folder: Path, settings: Settings, limit: int | None) -> dict[str, float]:
    """Label the folder with everything the model knows; the scores of all protocols."""
    models = copy.copy(models)
    models.settings = settings
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "labels.json"
        job = LabelSettings(output=output, limit=limit, categories_from=folder / "dataset.json")
        label_folder(models, folder, ontology_of_queries(models.things.names), job, progress=True)
        labels = read_dataset(output)
    truth = read_truth(folder, limit)
    found = evaluate(truth, labels)
    return {
        "AP": found.instances.ap,
        "AP50": found.instances.ap_50,
        "mIoU": found.semantic.miou,
        "category-given": found.category_given.mean_iou,
        "multilabel mAP": found.multilabel.mean_ap,
        "present, lost": found.misses.counts["not found"] / found.category_given.pairs,
        "absent, found": found.misses.false / _absent(truth),
    }


def _absent(truth: dict) -> int:
    """How many (image, thing absent) pairs there are."""
    shown = list(shown_in(check_dataset(truth, "the ground truth")))
    return len(shown) * len(truth["categories"]) - sum(len(each.present()) for each in shown)


def show(rows: Table) -> None:
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows)) + 2
    print("".join(["\nsplit".ljust(width + 1), *(column.rjust(16) for column in columns)]))
    for name, row in rows.items():
        cells = (f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns)
        print("".join([name.ljust(width), *(cell.rjust(16) for cell in cells)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with dataset.json; default: the bundled scenes")
    parser.add_argument("--limit", type=int, help="only the first so many scenes of each")
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    folders = args.folders or bundled()
    for table in scores(Text2Seg.load("demo", precision=args.precision), folders, limit=args.limit):
        show(table)


if __name__ == "__main__":
    main()

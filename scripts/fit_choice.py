"""Fit how the best of SAM's candidates is told by its score and the map, and print how often the choice is right.

    python scripts/render_demo_world.py --split validation --count 150 --output runs/validation
    python scripts/fit_choice.py runs/validation runs/validation-three --test runs/new-scenes

Every scene is asked for the things that are in it, region by region. The true IoU of each candidate is regressed on
SAM's score and on the map's separation; the weights belong into text2seg/masks/choice.py. A choice counts as right
where no other candidate's IoU is more than 0.02 (0.05) higher.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from text2seg import MaskSettings, PointSettings, PresenceSettings, Settings, Text2Seg
from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset
from text2seg.grids import minmax, resize
from text2seg.images import load_image
from text2seg.masks.choice import separation
from text2seg.records import Segment

EVERYTHING = Settings(
    points=PointSettings(instances="regions"),
    presence=PresenceSettings(0.05),
    masks=MaskSettings(overlap=1, quality=-9),
)


def rows_of(models: Text2Seg, folder: Path, limit: int | None) -> list[NDArray[np.float32]]:
    """For each region that found something, float32 [K, 3]: SAM's score, separation and true IoU of each candidate."""
    truth = read_dataset(folder / "dataset.json")
    names = {category["id"]: category["name"] for category in truth["categories"]}
    present = defaultdict(lambda: defaultdict(list))
    for annotation in truth["annotations"]:
        present[annotation["image_id"]][names[annotation["category_id"]]].append(rle.decode(annotation["segmentation"]))
    rows = []
    for entry in tqdm(truth["images"][:limit], desc=folder.name, unit="scene"):
        if not present[entry["id"]]:
            continue
        session = models.open(load_image(folder / entry["file_name"]))
        found = session.segment(sorted(present[entry["id"]]), EVERYTHING)
        stretched = dict(zip(found.maps.queries, minmax(found.maps.scores), strict=True))
        for segment in found.segments:
            rows.append(_row(models, session, segment, stretched[segment.query], present[entry["id"]][segment.query]))
    return rows


def _row(models: Text2Seg, session, segment: Segment, scores: NDArray, truths: list[NDArray]) -> NDArray[np.float32]:
    masks = models.sam.coarse_masks(session.embedding, segment.candidates)
    height, width = masks.shape[1:]
    apart = separation(masks, resize(scores[None], (height, width))[0])
    coarse = [cv2.resize(t.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0.5 for t in truths]
    iou = [max(np.count_nonzero(m & t) / max(np.count_nonzero(m | t), 1) for t in coarse) for m in masks]
    return np.stack([segment.candidates.scores, apart, np.array(iou)], axis=1).astype(np.float32)


def report(name: str, rows: NDArray[np.float32], weights: NDArray) -> None:
    """How right the choice is, by SAM's score alone and by both, over regions that show a thing at all."""
    rows = rows[rows[:, :, 2].max(1) >= 0.3]
    iou, best = rows[:, :, 2], rows[:, :, 2].max(1)
    for how, quality in (("SAM", rows[:, :, 0]), ("both", rows[:, :, :2] @ weights[:2])):
        chosen = np.take_along_axis(iou, quality.argmax(1)[:, None], 1)[:, 0]
        right = [f"{(chosen >= best - slack).mean():.3f}" for slack in (0.02, 0.05)]
        print(
            f"{name:18} {how:5} IoU {chosen.mean():.3f} of {best.mean():.3f}, right {' / '.join(right)}, n {len(rows)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="rendered splits to fit to")
    parser.add_argument("--test", nargs="*", type=Path, default=[], help="splits to score only")
    parser.add_argument("--limit", type=int, help="only the first so many scenes of each")
    parser.add_argument("--sam", help="another SAM than the bundled one")
    args = parser.parse_args()
    models = Text2Seg.load("demo", sam=args.sam)
    gathered = {folder.name: np.stack(rows_of(models, folder, args.limit)) for folder in (*args.folders, *args.test)}
    fitted = np.concatenate([gathered[folder.name] for folder in args.folders]).reshape(-1, 3).astype(np.float64)
    design = np.column_stack([fitted[:, :2], np.ones(len(fitted))])
    weights = np.linalg.lstsq(design, fitted[:, 2], rcond=None)[0]
    print("SAM_WEIGHT {:.2f}, SEPARATION_WEIGHT {:.2f}, CONSTANT {:.2f}".format(*weights))
    for name, rows in gathered.items():
        report(name, rows, weights)


if __name__ == "__main__":
    main()

"""Measure the options of points and masks against the default, on scenes whose things are known.

    python scripts/compare_options.py runs/validation runs/validation-three --limit 30
    python scripts/compare_options.py runs/validation --limit 30 --fit      # the fallback's three numbers, on a grid
    python scripts/compare_options.py runs/validation --limit 30 --labels   # nothing known: asked for everything

First table, every scene asked for the things that are in it, nothing "not found" unless --presence says so. `IoU` is
category-given, the mean over (image, thing present) of the IoU of the unions; `found` the share of the true things that
a segment of their query covers with an IoU of 0.5 or more; `wanted` the share of the segments that do so; `< mean` and
`< best` in what share of the pairs they are worse than the map alone, where it is above its mean and where it is
above the one threshold that is best over all of the split's pairs (which is printed, and needs the truth).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from demo_world.agreement import Agreement, Scene, of_images, read_truth, scenes_of
from score_demo import show
from tqdm import tqdm

from text2seg import MaskSettings, PresenceSettings, Settings, Text2Seg
from text2seg.coco.dataset import build_dataset
from text2seg.evaluation import evaluate
from text2seg.sam import candidates

OPTIONS = {
    "default": MaskSettings(),
    "box": MaskSettings(prompt="box"),
    "box-mask": MaskSettings(prompt="box-mask"),
    "fallback": MaskSettings(candidates=True),
    "box, fallback": MaskSettings(prompt="box", candidates=True),
    "compete": MaskSettings(compete=True),
    "all three": MaskSettings(prompt="box", candidates=True, compete=True),
}
LEVELS = np.arange(0.2, 0.95, 0.05)
GRID = {"level": (0.4, 0.5, 0.6, 0.7), "quality": (0.2, 0.3, 0.4, 0.5, 0.6), "shared": (0.1, 0.3, 0.5, 2.0)}


class Remembered:
    """A SAM that answers a set of points on an embedding once, and from memory after that."""

    def __init__(self, sam: Any) -> None:
        self._sam, self._answers = sam, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sam, name)

    def decode(self, sets: list) -> list:
        keys = [(id(e), p.xy.tobytes(), p.labels.tobytes(), p.boxes_xyxy.tobytes(), p.masks.tobytes()) for e, p in sets]
        fresh = {key: each for key, each in zip(keys, sets, strict=True) if key not in self._answers}
        self._answers |= zip(fresh, self._sam.decode(list(fresh.values())), strict=True)
        return [self._answers[key] for key in keys]


@dataclass
class Scored:
    """How one option does on all scenes, and how many of its segments are regions of the map."""

    agreement: Agreement = field(default_factory=lambda: Agreement(LEVELS))
    replaced: int = 0


def score(models: Text2Seg, scenes: list[Scene], settings: Settings, option: str) -> Scored:
    scored = Scored()
    for scene in tqdm(scenes, desc=option, unit="scene"):
        answer = scored.agreement.add(models, scene, settings)
        scored.replaced += sum(segment.sam_score == 0 for segment in answer.segments)
    return scored


def compare(models: Text2Seg, name: str, scenes: list[Scene], presence: float) -> None:
    given = Settings(presence=PresenceSettings(presence))
    scored = {option: score(models, scenes, replace(given, masks=masks), option) for option, masks in OPTIONS.items()}
    maps = np.stack(scored["default"].agreement.of_map)
    best = 1 + int(maps[:, 1:].mean(0).argmax())
    print(
        f"\n{name}: {len(scenes)} scenes, {len(maps)} pairs; the map alone: above its mean {maps[:, 0].mean():.3f}, "
        f"above {LEVELS[best - 1]:.2f}, which is best, {maps[:, best].mean():.3f}"
    )
    rows = {}
    for option, row in scored.items():
        ious = np.array(row.agreement.ious)
        rows[option] = {
            "IoU": float(ious.mean()),
            "found": float(np.mean(row.agreement.found)),
            "wanted": float(np.mean(row.agreement.wanted)),
            "< mean": float((ious < maps[:, 0]).mean()),
            "< best": float((ious < maps[:, best]).mean()),
            "segments": len(row.agreement.wanted),
            "of the map": row.replaced,
        }
    show(rows)


def compare_labels(name: str, folder: Path, scenes: list[Scene], everything: tuple[str, ...]) -> None:
    """Asked for all that the model knows, at the usual presence: COCO's AP and the mean IoU of all pixels."""
    truth = of_images(read_truth(folder), {session.image.image_id for session, _ in scenes})
    rows = {}
    for option, masks in OPTIONS.items():
        found = [s.segment(everything, Settings(masks=masks)) for s, _ in tqdm(scenes, desc=option, unit="scene")]
        scores = evaluate(truth, build_dataset(found))
        rows[option] = {
            "AP": scores.instances.ap,
            "AP50": scores.instances.ap_50,
            "mIoU": scores.semantic.miou,
            "category-given": scores.category_given.mean_iou,
            "segments": sum(len(each.segments) for each in found),
        }
    print(f"\n{name}: asked for all {len(everything)} things")
    show(rows)


def fit(models: Text2Seg, scenes: list[Scene], presence: float) -> None:
    """The fallback's numbers on a grid, the best first."""
    rows = []
    for level, quality, shared in product(*GRID.values()):
        candidates.LEVEL, candidates.WORST_QUALITY, candidates.LEAST_SHARED = level, quality, shared
        settings = Settings(presence=PresenceSettings(presence), masks=MaskSettings(candidates=True))
        row = score(models, scenes, settings, f"{level} {quality} {shared}")
        means = float(np.mean(row.agreement.ious)), float(np.mean(row.agreement.found))
        rows.append((*means, row.replaced, level, quality, shared))
    for row in sorted(rows, reverse=True)[:25]:
        print("IoU {:.4f}, found {:.3f}, {} of the map; level {}, quality {}, shared {}".format(*row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="rendered splits")
    parser.add_argument("--limit", type=int, help="only the first so many scenes of each")
    parser.add_argument("--presence", type=float, default=0.0, help="regions less present than this are none")
    parser.add_argument("--sam", help="another SAM than the bundled one")
    parser.add_argument("--fit", action="store_true", help="search the fallback's numbers, over all folders together")
    parser.add_argument("--labels", action="store_true", help="ask for everything")
    args = parser.parse_args()
    models = Text2Seg.load("demo", sam=args.sam)
    models.sam = Remembered(models.sam)
    scenes = {folder: list(scenes_of(models, folder, args.limit)) for folder in args.folders}
    if args.fit:
        fit(models, [scene for part in scenes.values() for scene in part], args.presence)
        return
    for folder, part in scenes.items():
        if args.labels:
            compare_labels(folder.name, folder, part, models.things.names)
        else:
            compare(models, folder.name, part, args.presence)


if __name__ == "__main__":
    main()

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
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from score_demo import show
from tqdm import tqdm

from text2seg import MaskSettings, PresenceSettings, Settings, Text2Seg
from text2seg.coco import rle
from text2seg.coco.dataset import build_dataset, read_dataset
from text2seg.evaluation import evaluate
from text2seg.grids import minmax, resize
from text2seg.images import load_image
from text2seg.masks import fallback
from text2seg.pipeline import Session
from text2seg.records import Segmentation

OPTIONS = {
    "default": MaskSettings(),
    "box": MaskSettings(prompt="box"),
    "box-mask": MaskSettings(prompt="box-mask"),
    "fallback": MaskSettings(fallback=True),
    "box, fallback": MaskSettings(prompt="box", fallback=True),
    "compete": MaskSettings(compete=True),
    "all three": MaskSettings(prompt="box", fallback=True, compete=True),
}
LEVELS = np.arange(0.2, 0.95, 0.05)
GRID = {"level": (0.4, 0.5, 0.6, 0.7), "quality": (0.2, 0.3, 0.4, 0.5, 0.6), "shared": (0.1, 0.3, 0.5, 2.0)}

Mask = NDArray[np.bool_]
Scene = tuple[Session, dict[str, list[Mask]]]


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


def scenes_of(models: Text2Seg, folder: Path, limit: int | None) -> list[Scene]:
    """Open sessions, each with the true masks of the things in it, by name."""
    truth = read_dataset(folder / "dataset.json")
    names = {category["id"]: category["name"] for category in truth["categories"]}
    present = defaultdict(lambda: defaultdict(list))
    for annotation in truth["annotations"]:
        present[annotation["image_id"]][names[annotation["category_id"]]].append(rle.decode(annotation["segmentation"]))
    return [
        (models.open(load_image(folder / each["file_name"], image_id=each["id"], file_name=each["file_name"])), things)
        for each in truth["images"][:limit]
        if (things := dict(sorted(present[each["id"]].items())))
    ]


def iou(one: Mask, other: Mask) -> float:
    return np.count_nonzero(one & other) / max(np.count_nonzero(one | other), 1)


def of_maps(found: Segmentation, things: dict[str, list[Mask]]) -> list[NDArray]:
    """For each pair the IoU of the map above its mean, and above each of `LEVELS`."""
    scores = minmax(found.maps.scores)
    full = dict(zip(found.maps.queries, zip(scores, resize(scores, found.image.hw), strict=True), strict=True))
    rows = []
    for name, masks in things.items():
        coarse, fine = full[name]
        rows.append(np.array([iou(fine > level, np.any(masks, axis=0)) for level in (coarse.mean(), *LEVELS)]))
    return rows


def score(scenes: list[Scene], settings: Settings, desc: str = "") -> dict[str, Any]:
    """IoU of each pair, whether each true thing was found, and whether each segment was wanted."""
    ious, found_things, wanted, maps, replaced = [], [], [], [], 0
    for session, things in tqdm(scenes, desc=desc, unit="scene", disable=not desc):
        found = session.segment(list(things), settings)
        maps += of_maps(found, things) if desc else []
        for name, masks in things.items():
            segments = [segment.mask for segment in found.of(name)]
            replaced += sum(segment.sam_score == 0 for segment in found.of(name))
            union = np.any(segments, axis=0) if segments else np.zeros_like(masks[0])
            ious.append(iou(union, np.any(masks, axis=0)))
            hits = np.array([[iou(mask, segment) >= 0.5 for segment in segments] for mask in masks], bool)
            hits = hits.reshape(len(masks), len(segments))
            found_things += hits.any(1).tolist()
            wanted += hits.any(0).tolist()
    return {"iou": np.array(ious), "found": found_things, "wanted": wanted, "maps": maps, "replaced": replaced}


def compare(name: str, scenes: list[Scene], presence: float) -> None:
    given = Settings(presence=PresenceSettings(presence))
    scored = {option: score(scenes, replace(given, masks=masks), option) for option, masks in OPTIONS.items()}
    maps = np.stack(scored["default"]["maps"])
    best = 1 + int(maps[:, 1:].mean(0).argmax())
    print(
        f"\n{name}: {len(scenes)} scenes, {len(maps)} pairs; the map alone: above its mean {maps[:, 0].mean():.3f}, "
        f"above {LEVELS[best - 1]:.2f}, which is best, {maps[:, best].mean():.3f}"
    )
    show(
        {
            option: {
                "IoU": float(row["iou"].mean()),
                "found": float(np.mean(row["found"])),
                "wanted": float(np.mean(row["wanted"])),
                "< mean": float((row["iou"] < maps[:, 0]).mean()),
                "< best": float((row["iou"] < maps[:, best]).mean()),
                "segments": len(row["wanted"]),
                "of the map": row["replaced"],
            }
            for option, row in scored.items()
        }
    )


def compare_labels(name: str, folder: Path, scenes: list[Scene], everything: tuple[str, ...]) -> None:
    """Asked for all that the model knows, at the usual presence: COCO's AP and the mean IoU of all pixels."""
    truth = read_dataset(folder / "dataset.json")
    done = {session.image.image_id for session, _ in scenes}
    truth["images"] = [image for image in truth["images"] if image["id"] in done]
    truth["annotations"] = [annotation for annotation in truth["annotations"] if annotation["image_id"] in done]
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


def fit(scenes: list[Scene], presence: float) -> None:
    """The fallback's numbers on a grid, the best first."""
    rows = []
    for level, quality, shared in product(*GRID.values()):
        fallback.LEVEL, fallback.WORST_QUALITY, fallback.LEAST_SHARED = level, quality, shared
        row = score(scenes, Settings(presence=PresenceSettings(presence), masks=MaskSettings(fallback=True)))
        rows.append((float(row["iou"].mean()), float(np.mean(row["found"])), row["replaced"], level, quality, shared))
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
    scenes = {folder: scenes_of(models, folder, args.limit) for folder in args.folders}
    if args.fit:
        fit([scene for part in scenes.values() for scene in part], args.presence)
        return
    for folder, part in scenes.items():
        if args.labels:
            compare_labels(folder.name, folder, part, models.things.names)
        else:
            compare(folder.name, part, args.presence)


if __name__ == "__main__":
    main()

"""Measure the accuracy of the demo model on scenes with known masks.

    python benchmarks/accuracy.py demo                       # the bundled scenes; what `make score` runs
    python benchmarks/accuracy.py demo runs/new-scenes …     # splits written by training/render.py: the second tables
    python benchmarks/accuracy.py options --limit 12         # the options for points and masks
    python benchmarks/accuracy.py tiles --count 4            # small things in large images
    python benchmarks/accuracy.py refine                     # boxes and coarse masks into fine ones

`demo` prints three tables, the last two for each method: *reference* is CLIP Surgery as published (`--method
reference`), *uncalibrated* the default method without the calibration of the model card, *calibrated* with it.

1. SAM alone, with one point at the deepest place of each true mask: the IoU of the candidate with SAM's highest score,
   and of the best of three.
2. The queries are the things in the scene, and no query counts as absent. `IoU` is the mean IoU of the unions of
   segments and of true masks, over all pairs of an image and a thing in it; `found` is the share of true things that a
   segment covers with an IoU of 0.5; `right` is the share of segments for which no other candidate is more than 0.05
   better; `< map` is the share of pairs in which the map above its mean has a higher IoU.
3. The queries are all things that the demo model knows, scored by all protocols of `text2seg evaluate`. The
   uncalibrated method finds all 109 things in every scene, each several times, so it takes part in only a few scenes.

`options` compares options with the default. There, `right` is the share of segments that cover a thing of their query
with an IoU of 0.5. AP and mIoU are for all things as queries.

`tiles` pastes drawings from the bundled scenes on large backgrounds. The queries are the things in the image and as
many absent things. `recall` is that of things, at an IoU of 0.5; `right` is the share of segments that match a true
thing, each thing once; `absent, found` is the share of absent things that were found.

`refine` gives `text2seg refine` the true boxes, and true masks that were eroded, dilated, drawn in coarse squares or
with few corners; see refinement.py for the columns.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from agreement import Mask, agreement, read_truth, scenes_of
from agreement import Scene as OpenScene
from page import ROOT, bundled, markdown, publish
from refinement import refinement

from text2seg import MaskSettings, PointSettings, PresenceSettings, Settings, Text2Seg
from text2seg.coco import rle
from text2seg.coco.dataset import build_dataset, read_dataset
from text2seg.coco.reader import check_dataset
from text2seg.coco.truth import truth_images
from text2seg.config import LabelSettings, TileSettings
from text2seg.evaluation import evaluate
from text2seg.grids import depth_of, highest, iou
from text2seg.io.images import load_image
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.records import Image, PointPrompts, Segmentation
from text2seg.session import Session

PAGE = "accuracy.md"
NEVER_ABSENT = PresenceSettings(0)
METHODS = {
    "reference": Settings(points=PointSettings(method="reference"), presence=NEVER_ABSENT),
    "uncalibrated": Settings(),
    "calibrated": Settings(),
}
"""All but the last run without the calibration in the model card."""
OPTIONS = {
    "default": MaskSettings(),
    "`--prompt box`": MaskSettings(prompt="box"),
    "`--prompt box-mask`": MaskSettings(prompt="box-mask"),
    "`--resolve-overlaps`": MaskSettings(resolve_overlaps=True),
}
UNCALIBRATED_SCENES = 6
"""Of each split, for the uncalibrated method asked for everything: it needs about ten seconds of two cores for each."""
LARGE_HW, THINGS_OF_LARGE, SEED = (1200, 1600), (12, 12), 6006

Table = dict[str, dict[str, float]]
"""From the name of a row to its numbers by column."""


# --- the demo model ---


def scores(models: Text2Seg, folders: Sequence[Path], *, limit: int | None = None) -> Iterator[Table]:
    """Yield the three tables, each as soon as it is ready."""
    scenes = {folder: list(scenes_of(models, folder, limit)) for folder in folders}
    yield {folder.name: sam_alone(models, scenes[folder]) for folder in folders}
    yield {
        f"{folder.name}, {name}": score_known(by_method(models, name), scenes[folder], settings)
        for folder in folders
        for name, settings in METHODS.items()
    }
    yield {
        f"{folder.name}, {name}": score_labels(by_method(models, name), folder, settings, scenes_to_label(name, limit))
        for folder in folders
        for name, settings in METHODS.items()
    }


def by_method(models: Text2Seg, name: str) -> Text2Seg:
    return models if name == "calibrated" else models.with_card(models.card.uncalibrated())


def scenes_to_label(name: str, limit: int | None) -> int | None:
    """Return how many scenes of each split a method is asked for everything; None: all."""
    return min(limit or UNCALIBRATED_SCENES, UNCALIBRATED_SCENES) if name.endswith("uncalibrated") else limit


def sam_alone(models: Text2Seg, scenes: Sequence[OpenScene]) -> dict[str, float]:
    rows = [
        one_point(models, session, name, mask)
        for session, things in scenes
        for name, masks in things.items()
        for mask in masks
    ]
    chosen, best = np.mean(rows, axis=0)
    return {"one point": float(chosen), "best of 3": float(best), "things": len(rows)}


def one_point(models: Text2Seg, session: Session, query: str, mask: Mask) -> tuple[float, float]:
    """Return the IoU of SAM's choice and of its best candidate, with one point at the deepest place of the mask."""
    points = PointPrompts(np.array([highest(depth_of(mask))], np.float32), np.ones(1, np.int8), np.ones(1, np.float32))
    segment = session.segment_points(query, points)
    masks = [models.sam.mask(session.embedding, segment.candidates, k) for k in range(len(segment.candidates))]
    ious = [iou(each, mask) for each in masks]
    return ious[segment.chosen], max(ious)


def score_known(models: Text2Seg, scenes: Sequence[OpenScene], settings: Settings) -> dict[str, float]:
    """Score the scenes with the things in each as queries; no query counts as absent."""
    found = agreement(models, scenes, replace(settings, presence=NEVER_ABSENT))
    return {
        "IoU": float(np.mean(found.ious)),
        "found": float(np.mean(found.found)),
        "right": float(np.mean(found.right)),
        "< map": float((np.array(found.ious) < np.stack(found.of_map)[:, 0]).mean()),
        "pairs": len(found.ious),
    }


def score_labels(models: Text2Seg, folder: Path, settings: Settings, limit: int | None) -> dict[str, float]:
    """Label the folder with all things that the model knows; return the scores of all protocols."""
    models = copy.copy(models)
    models.settings = settings
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "labels.json"
        job = LabelSettings(output=output, limit=limit, categories_from=folder / "dataset.json")
        label_folder(models, folder, ontology_of_queries(models.closed_vocabulary.names), job, progress=True)
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
        "scenes": len(truth["images"]),
    }


def _absent(truth: dict) -> int:
    """Return the number of pairs of an image and a thing that is not in it."""
    shown = list(truth_images(check_dataset(truth, "the ground truth")))
    return len(shown) * len(truth["categories"]) - sum(len(each.present()) for each in shown)


# --- options ---


def compare_options(models: Text2Seg, folder: Path, limit: int | None) -> Table:
    """Score each option, first with the things in each scene as queries, then with all things."""
    scenes = list(scenes_of(models, folder, limit))
    truth = read_truth(folder, limit)
    rows: Table = {}
    for option, masks in OPTIONS.items():
        known = agreement(models, scenes, Settings(presence=NEVER_ABSENT, masks=masks))
        settings = Settings(masks=masks)
        found = [session.segment(models.closed_vocabulary.names, settings) for session, _ in scenes]
        scored = evaluate(truth, build_dataset(found))
        rows[option] = {
            "IoU": float(np.mean(known.ious)),
            "found": float(np.mean(known.found)),
            "right": float(np.mean(known.matched)),
            "AP": scored.instances.ap,
            "mIoU": scored.semantic.miou,
        }
    return rows


# --- tiles ---


@dataclass
class Tally:
    things: int = 0
    found: int = 0
    segments: int = 0
    absent: int = 0
    absent_found: int = 0
    seconds: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def judge(things: Sequence[tuple[str, Mask]], absent: Sequence[str], result: Segmentation, seconds: float) -> Tally:
    """Match segments with things in the order of SAM's score; each thing is matched once."""
    free = dict(enumerate(things))
    tally = Tally(things=len(things), segments=len(result.segments), absent=len(absent), seconds=seconds)
    for segment in sorted(result.segments, key=lambda segment: -segment.sam_score):
        same = [k for k, (name, _) in free.items() if name == segment.query]
        best = max(same, key=lambda k: iou(segment.mask, free[k][1]), default=None)
        if best is not None and iou(segment.mask, free[best][1]) >= 0.5:
            tally.found += 1
            del free[best]
    tally.absent_found = len({segment.query for segment in result.segments} & set(absent))
    return tally


def measure_tiles(models: Text2Seg, tiles: Sequence[int], size: tuple[float, float], count: int) -> Table:
    """Score each tile size on `count` large images. `size` is the range of the longer side of things, as a share of the
    image's shorter side."""
    sys.path.insert(0, str(ROOT / "training"))
    from drawings import Sprite, load_things
    from scenes import SceneSettings, SpriteBank, render_scene

    names = list(load_things())
    bank = SpriteBank([Sprite(names.index(name), "scenes", rgba) for name, rgba in drawings_in_scenes()], ("scenes",))
    settings = SceneSettings(objects=THINGS_OF_LARGE, size=size, colour=0.3, outline=0.05, degrade=0.15)
    rng = np.random.default_rng(SEED)
    tallies = {tile: Tally() for tile in tiles}
    for number in range(count):
        scene = render_scene(rng, bank, LARGE_HW, settings)
        present = sorted({names[thing] for thing in scene.things})
        absent = sorted(rng.choice(sorted(set(names) - set(present)), len(present), replace=False).tolist())
        image = Image(scene.pixels, f"scene {number + 1}", number + 1)
        things = [(names[thing], scene.owner == k) for k, thing in enumerate(scene.things, start=1)]
        for tile in tiles:
            start = time.perf_counter()
            result = models.segment(image, present + absent, Settings(tiles=TileSettings(tile)))
            tallies[tile] += judge(things, absent, result, time.perf_counter() - start)
    return {
        str(tile or "none"): {
            "recall": tally.found / tally.things,
            "right": tally.found / max(tally.segments, 1),
            "absent, found": tally.absent_found / tally.absent,
            "s an image": tally.seconds / count,
        }
        for tile, tally in tallies.items()
    }


def drawings_in_scenes() -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and drawings, RGBA uint8 [h, w, 4], that are almost fully visible in the bundled new scenes."""
    (folder,) = (folder for folder in bundled() if folder.name == "new-scenes")
    truth = read_truth(folder)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    files = {entry["id"]: entry["file_name"] for entry in truth["images"]}
    for annotation in truth["annotations"]:
        left, top, width, height = map(int, annotation["bbox"])
        if annotation["area"] > 0.4 * width * height and max(width, height) >= 70:
            box = np.s_[top : top + height, left : left + width]
            pixels = load_image(folder / files[annotation["image_id"]]).pixels[box]
            mask = rle.decode(annotation["segmentation"])[box]
            yield names[annotation["category_id"]], np.dstack([pixels, mask.astype(np.uint8) * 255])


# --- the command ---


def lines(table: Table) -> list[list[object]]:
    """Return the rows of a table as cells: the name, then each number with three digits."""
    return [[name, *(f"{v:.3f}" if isinstance(v, float) else v for v in row.values())] for name, row in table.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="score the demo model")
    demo.add_argument("folders", nargs="*", type=Path, help="folders with dataset.json; default: the bundled scenes")
    demo.add_argument("--limit", type=int, help="use only the first scenes of each folder, this many")
    demo.add_argument("--precision", default="auto")
    options = commands.add_parser("options", help="compare the options for points and masks")
    options.add_argument("--limit", type=int, default=12, help="number of scenes of each bundled split (default: 12)")
    tiles = commands.add_parser("tiles", help="score small things in large images, with and without tiles")
    tiles.add_argument("--count", type=int, default=4, help="number of images (default: 4)")
    tiles.add_argument("--tile", type=int, nargs="+", default=[0, 384, 512], help="tile sizes in pixels; 0: no tiles")
    tiles.add_argument(
        "--size", type=float, nargs=2, default=(0.04, 0.08), help="smallest and largest things, shares of 1200 pixels"
    )
    refine = commands.add_parser("refine", help="score the refinement of boxes and of masks that were made worse")
    refine.add_argument("folders", nargs="*", type=Path, help="folders with dataset.json; default: the bundled scenes")
    refine.add_argument("--limit", type=int, help="use only the first scenes of each folder, this many")
    for command in (demo, options, tiles, refine):
        command.add_argument("--write", action="store_true", help=f"write the tables into docs/measurements/{PAGE}")
    args = parser.parse_args()
    how = f"benchmarks/accuracy.py {args.command}"
    asked = f"benchmarks/accuracy.py {' '.join(word for word in sys.argv[1:] if word != '--write')}"
    if args.command == "demo":
        models = Text2Seg.load("demo", precision=args.precision)
        tables = scores(models, args.folders or bundled(), limit=args.limit)
        kind = "rendered" if args.folders else "demo"
        for name, table in zip(("sam", "known", "all"), tables, strict=True):
            headings = ("split", *next(iter(table.values())))
            publish(f"{kind}-{name}", markdown(headings, lines(table)), page=PAGE, how=asked, write=args.write)
    elif args.command == "options":
        models = Text2Seg.load("demo")
        for folder in bundled():
            table = compare_options(models, folder, args.limit)
            headings = (f"{folder.name}", *next(iter(table.values())))
            command = f"{how} --limit {args.limit}"
            publish(
                f"options-{folder.name}", markdown(headings, lines(table)), page=PAGE, how=command, write=args.write
            )
    elif args.command == "refine":
        models = Text2Seg.load("demo")
        for folder in args.folders or bundled():
            table = refinement(models, list(scenes_of(models, folder, args.limit)))
            headings = (folder.name, *next(iter(table.values())))
            publish(f"refine-{folder.name}", markdown(headings, lines(table)), page=PAGE, how=how, write=args.write)
    else:
        table = measure_tiles(Text2Seg.load("demo"), args.tile, tuple(args.size), args.count)
        headings = ("tile", *next(iter(table.values())))
        publish(
            "tiles", markdown(headings, lines(table)), page=PAGE, how=f"{how} --count {args.count}", write=args.write
        )


if __name__ == "__main__":
    main()

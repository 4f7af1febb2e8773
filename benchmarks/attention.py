"""Compare CLIP's attention rules, with and without feature surgery and refinement.

    python benchmarks/attention.py                                  # the bundled scenes
    python benchmarks/attention.py runs/held-out runs/validation --refine none pamr
    python benchmarks/attention.py coco/val --model base            # any folder with dataset.json and its images
    python benchmarks/attention.py runs/new-scenes … --semantic     # semantic segmentation, by region too

Every pair of an image and a thing in it counts once. Its truth is the union of the thing's masks. Columns:

    map AP       average precision of the map over the pixels, which needs no threshold
    map IoU      IoU of the min-max map at or above a threshold, the best one for the other folders (with one folder,
                 the threshold for odd images is the best one for even images, and vice versa)
    at           these thresholds, one for each part
    SAM IoU      category-given IoU of the whole pipeline with the reference method, which is not fitted to any rule

`--semantic` gives the mIoU of `text2seg explain semantic` with all categories of each folder as labels, without and
with `--by-region`, and the median CPU seconds for an image, SAM included where it is needed, text features cached. Set
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy import lines
from agreement import read_truth
from numpy.typing import NDArray
from page import bundled, markdown, publish
from torch import Tensor
from tqdm import tqdm

from text2seg import MapSettings, PointSettings, PresenceSettings, Settings, Text2Seg, records
from text2seg.clip.encoders import RULES
from text2seg.coco import rle
from text2seg.coco.dataset import build_dataset
from text2seg.evaluation import align, category_given, score_semantic
from text2seg.evaluation.protocols import pairs_of
from text2seg.explain.recognition import corrected, label_map, label_texts
from text2seg.explain.recognition_scores import Predictions
from text2seg.grids import minmax, resize
from text2seg.io.images import load_image
from text2seg.session import Session
from text2seg.templates import TEMPLATES

PAGE = "accuracy.md"
LEVELS = 1000  # number of steps of the min-max map for thresholds and average precision
HEADINGS = ("rule", "redundancy", "refine", "map AP", "map IoU", "at", "SAM IoU")


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image with the things in it: names and masks bool [things, H, W]. Its thresholds come from the images with
    another `part`."""

    session: Session
    names: tuple[str, ...]
    masks: NDArray[np.bool_]
    part: int


Folder = tuple[dict, list[Image]]  # the dataset and its images


def read_folder(models: Text2Seg, folder: Path, part: int | None, limit: int | None) -> Folder:
    """Return the folder's dataset, cut to `limit` images, and its images."""
    truth = read_truth(folder, limit)
    kept = {entry["id"]: entry for entry in truth["images"]}
    aligned = align(truth, [])
    images = []
    for number, (scene, pairs) in enumerate(itertools.groupby(pairs_of(aligned), key=lambda pair: pair.scene)):
        entry = kept[scene.image_id]
        image = load_image(folder / entry["file_name"], image_id=entry["id"], file_name=entry["file_name"])
        things = [(aligned.categories[pair.category], rle.decode(pair.truth)) for pair in pairs]
        masks = np.stack([mask for _, mask in things]).astype(bool)
        names = tuple(name for name, _ in things)
        images.append(Image(models.open(image), names, masks, number % 2 if part is None else part))
    return truth, images


def score_map(scores: NDArray[np.float32], mask: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]]:
    """Return the average precision of a map [gh, gw] over the pixels, and its IoU at every threshold [LEVELS + 1]."""
    height, width = mask.shape
    fine = resize(minmax(scores)[None], (height, width))[0]
    levels = np.clip((fine * LEVELS).astype(int), 0, LEVELS)
    inside = np.bincount(levels[mask], minlength=LEVELS + 1)[::-1].cumsum()[::-1]
    outside = np.bincount(levels[~mask], minlength=LEVELS + 1)[::-1].cumsum()[::-1]
    precision = inside / np.maximum(inside + outside, 1)
    gained = -np.diff(inside, append=0) / inside[0]  # recall that each level adds
    return float((gained * precision).sum()), inside / (inside[0] + outside)


def choose_thresholds(ious: NDArray[np.float64], parts: NDArray[np.int64]) -> tuple[float, tuple[float, ...]]:
    """Return the mean IoU of pairs [P, LEVELS + 1], with the best threshold of the other parts for each part, and the
    thresholds."""
    found, chosen = np.empty(len(ious)), []
    for part in np.unique(parts):
        level = int(ious[parts != part].mean(0).argmax())
        found[parts == part] = ious[parts == part, level]
        chosen.append(level / LEVELS)
    return float(found.mean()), tuple(chosen)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of one way to make maps."""

    maps: MapSettings
    precision: float
    iou: float
    thresholds: tuple[float, ...]
    sam_iou: float | None

    def row(self) -> tuple[str, ...]:
        """Return the cells of its row, in the order of `HEADINGS`."""
        at = " / ".join(f"{threshold:.2f}" for threshold in self.thresholds)
        sam = "–" if self.sam_iou is None else f"{self.sam_iou:.3f}"
        maps = self.maps
        scores = (f"{self.precision:.3f}", f"{self.iou:.3f}", at, sam)
        return (maps.architecture, maps.redundancy, maps.refine, *scores)


def compare(models: Text2Seg, folders: Sequence[Folder], maps: MapSettings, *, sam: bool) -> Scored:
    """Score one way to make maps."""
    precisions, ious, parts = [], [], []
    for image in (each for _, images in folders for each in images):
        (tokens,) = models.encode([image.session], maps)
        scores = models.clip.similarity(tokens, image.names, maps).scores
        for one, mask in zip(scores, image.masks, strict=True):
            precision, of_levels = score_map(one, mask)
            precisions.append(precision)
            ious.append(of_levels)
            parts.append(image.part)
    iou, thresholds = choose_thresholds(np.stack(ious), np.array(parts))
    sam_iou = pipeline_iou(folders, maps) if sam else None
    return Scored(maps, float(np.mean(precisions)), iou, thresholds, sam_iou)


def pipeline_iou(folders: Sequence[Folder], maps: MapSettings) -> float:
    """Return the category-given IoU of the reference method over the pairs of all folders."""
    settings = Settings(maps, PointSettings(method="reference"), PresenceSettings(0))
    scores = []
    for truth, images in folders:
        predicted = build_dataset([each.session.segment(each.names, settings) for each in images])
        scores.append(category_given(truth, predicted))
    return sum(each.mean_iou * each.pairs for each in scores) / sum(each.pairs for each in scores)


# --- semantic segmentation ---


def semantic_table(
    models: Text2Seg, folders: Sequence[Path], rules: Sequence[str], limit: int | None, timed: int
) -> dict[str, dict[str, float]]:
    """Return mIoU by folder and CPU seconds, for each rule and for each rule by region."""
    rows: dict[str, dict[str, float]] = {}
    for folder in folders:
        truth = read_truth(folder, limit)
        images = [
            load_image(folder / entry["file_name"], image_id=entry["id"], file_name=entry["file_name"])
            for entry in truth["images"]
        ]
        sessions = [models.open(image) for image in images]
        names = {entry["id"]: entry["name"] for entry in truth["categories"]}
        texts = label_texts(models, tuple(names.values()), ())
        for rule in tqdm(rules, desc=folder.name, unit="rule"):
            found = {f"{rule}{', by region' * regions}": Predictions() for regions in (False, True)}
            for entry, session in zip(truth["images"], sessions, strict=True):
                for regions, predictions in zip((False, True), found.values(), strict=True):
                    labels = label_pixels(models, session, texts, len(names), rule, regions=regions)
                    predictions.add(entry, {}, labels, tuple(names))
            for regions, (name, predictions) in zip((False, True), found.items(), strict=True):
                aligned = align(truth, predictions.dataset(truth, rule))
                row = rows.setdefault(name, {})
                row[folder.name] = score_semantic(aligned).miou
                if folder is folders[-1]:
                    row["CPU s"] = seconds(models, images[:timed], texts, len(names), rule, regions=regions)
    return rows


def label_pixels(
    models: Text2Seg, session: Session, texts: Tensor, count: int, rule: str, *, regions: bool
) -> NDArray[np.int64]:
    (tokens,) = models.encode([session], MapSettings(rule, input_size=models.clip.default_size))
    found = label_map(tokens, texts, count)
    return corrected(found, models.owners(session), count) if regions else found


def seconds(
    models: Text2Seg, images: Sequence[records.Image], texts: Tensor, count: int, rule: str, *, regions: bool
) -> float:
    """Return the median CPU seconds for an image, encoders included."""
    taken = []
    for image in images:
        start = time.process_time()
        label_pixels(models, models.open(image), texts, count, rule, regions=regions)
        taken.append(time.process_time() - start)
    return float(np.median(taken))


def ways(args: argparse.Namespace, models: Text2Seg) -> Iterator[MapSettings]:
    rules = [rule for rule in args.rules if models.clip.is_vit or rule in ("surgery", "raw")]
    for rule, redundancy, refine in itertools.product(rules, args.redundancy, args.refine):
        yield MapSettings(rule, redundancy, input_size=args.input_size, refine=refine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders with dataset.json; default: the bundled scenes")
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--redundancy", nargs="+", choices=["none", "empty"], default=["none", "empty"])
    parser.add_argument("--refine", nargs="+", choices=["none", "pamr"], default=["none"])
    parser.add_argument("--no-sam", action="store_true", help="maps only, which is quicker")
    parser.add_argument("--semantic", action="store_true", help="semantic segmentation instead of maps")
    parser.add_argument("--timed", type=int, default=5, help="with --semantic: images whose time is measured")
    parser.add_argument("--limit", type=int, help="use only the first scenes of each folder, this many")
    parser.add_argument("--input-size", type=int, help="CLIP's input in pixels")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/measurements/{PAGE}")
    args = parser.parse_args()
    models = Text2Seg.load(args.model, precision=args.precision)
    folders = args.folders or bundled()
    if args.semantic:
        measured = semantic_table(models, folders, args.rules, args.limit, args.timed)
        how = f"benchmarks/attention.py {' '.join(map(str, folders))} --semantic --limit {args.limit}"
        how += f", {models.clip.precision.name}"
        headings = ("rule", *next(iter(measured.values())))
        publish("semantic", markdown(headings, lines(measured)), page=PAGE, how=how, write=args.write)
        return
    read = [read_folder(models, f, n if len(folders) > 1 else None, args.limit) for n, f in enumerate(folders)]
    images = [image for _, listed in read for image in listed]
    names = sorted({name for image in images for name in image.names})
    models.clip.encode_texts([*names, ""], TEMPLATES)  # fills the cache, so that no map has to encode its texts
    pairs = sum(len(image.names) for image in images)
    rows = [
        compare(models, read, maps, sam=not args.no_sam).row() for maps in tqdm(list(ways(args, models)), unit="way")
    ]
    how = f"benchmarks/attention.py, {len(images)} images, {pairs} pairs, {models.clip.precision.name}"
    publish("attention", markdown(HEADINGS, rows), page=PAGE, how=how, write=args.write)


if __name__ == "__main__":
    main()

"""Fit the demo CLIP's presence on a rendered split, and print how well it tells present things from absent ones.

    python scripts/render_demo_world.py --split validation --count 150 --output runs/validation
    python scripts/fit_presence.py runs/validation runs/new-scenes runs/held-out

The first folder is fitted to, all are scored: every scene is asked for every thing that the demo model knows. The
numbers printed for the first belong into `PresenceModel.of_demo`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from text2seg import MapSettings, Text2Seg
from text2seg.coco.dataset import read_dataset
from text2seg.coco.truth import shown_in
from text2seg.io.images import load_image


def patch_presence(models: Text2Seg, folder: Path, *, slope: float, offset: float) -> tuple[NDArray, NDArray]:
    """Presence before slope and offset, as logits float [scenes, things], and what is there, bool of the same shape."""
    truth = read_dataset(folder / "dataset.json")
    names = models.things.names
    category = {entry["id"]: names.index(entry["name"]) for entry in truth["categories"]}
    row = {entry["id"]: number for number, entry in enumerate(truth["images"])}
    there = np.zeros((len(row), len(names)), bool)
    for shown in shown_in(truth):
        there[row[shown.image_id], [category[number] for number in shown.present()]] = True
    logits = []
    for entry in tqdm(truth["images"], desc=folder.name, unit="scene"):
        (tokens,) = models.clip.encode_images([load_image(folder / entry["file_name"])], size=models.input_size)
        presence = models.clip.similarity(tokens, names, MapSettings(templates=("a photo of a {}.",))).presence
        presence = presence.astype(np.float64).clip(1e-7, 1 - 1e-7)
        logits.append((np.log(presence / (1 - presence)) - offset) / slope)
    return np.stack(logits), there


def equal_error(logits: NDArray, there: NDArray) -> tuple[float, float]:
    """Where as many present things are lost as absent ones found: that logit, and the share."""
    present, absent = np.sort(logits[there]), np.sort(logits[~there])
    lost = np.arange(len(present)) / len(present)
    found = 1 - np.searchsorted(absent, present) / len(absent)
    at = int(np.abs(lost - found).argmin())
    return float(present[at]), float((lost[at] + found[at]) / 2)


def fit_slope(logits: NDArray, there: NDArray, middle: float) -> float:
    """Logistic regression through `middle`, present and absent things weighing the same, by Newton's method."""
    x, y = (logits - middle).ravel(), there.ravel().astype(float)
    weight = np.where(y == 1, 0.5 / y.sum(), 0.5 / (1 - y).sum())
    slope = 0.1
    for _ in range(50):
        p = 1 / (1 + np.exp(-slope * x))
        slope += (weight * x * (y - p)).sum() / (weight * x * x * p * (1 - p)).sum()
    return float(slope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="rendered splits; the first is fitted to")
    args = parser.parse_args()
    models = Text2Seg.load("demo")
    mild = 0.2  # so that nothing saturates while evidence is gathered
    models.clip.presence = replace(models.clip.presence, slope=mild, offset=0.0)
    gathered = {folder.name: patch_presence(models, folder, slope=mild, offset=0.0) for folder in args.folders}
    logits, there = next(iter(gathered.values()))
    middle, _ = equal_error(logits, there)
    slope = fit_slope(logits, there, middle)
    print(f"slope {slope:.3f}, offset {-slope * middle:.3f}")
    for name, (logits, there) in gathered.items():
        lost, found = (logits[there] < middle).mean(), (logits[~there] >= middle).mean()
        _, equal = equal_error(logits, there)
        print(f"{name}: present and lost {lost:.3f}, absent and found {found:.3f}, equal at {equal:.3f}")


if __name__ == "__main__":
    main()

"""Measure the vector index for search: which vectors of an image to keep, and the cost and benefit of skipping images.

    python benchmarks/search.py                      # the bundled scenes
    python benchmarks/search.py runs/validation      # a split written by training/render.py
    python benchmarks/search.py --seconds            # time of jobs with three categories

The queries are all things that the demo model knows. `mAP` is the mean over things of the average precision of the
images, ranked by presence. Jobs have random categories. `lost` is the share of a job's true pairs of an image and a
thing that are in skipped images; `found and lost` counts only pairs that labelling would have found.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from agreement import read_presence
from numpy.typing import NDArray
from page import bundled, markdown, publish
from torch.nn import functional as F
from tqdm import tqdm

from text2seg import Settings, Text2Seg
from text2seg.clip.model import ImageTokens
from text2seg.config import LabelSettings, PresenceSettings
from text2seg.io.images import load_image
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.search.index import VECTORS, image_vectors

PAGE, TIME_PAGE = "accuracy.md", "performance.md"
CUTS, JOBS, DRAWS, SEED = (0.1, 0.2), (1, 3, 10, 30), 300, 88
QUERIES = ("sheep", "fire engine", "apple")

KEPT: dict[str, Callable[[ImageTokens], NDArray[np.float32]]] = {
    "CLS": lambda tokens: tokens.features[:1].cpu().numpy(),
    "mean of patches": lambda tokens: F.normalize(tokens.features[1:].mean(0, keepdim=True), dim=-1).cpu().numpy(),
    "16 k-means centres": lambda tokens: centres(tokens, 16),
    "8 farthest patches": lambda tokens: image_vectors(tokens, 8),
    "16 farthest patches": lambda tokens: image_vectors(tokens, 16),
    "32 farthest patches": lambda tokens: image_vectors(tokens, 32),
    "all 576 patches": lambda tokens: tokens.features[1:].cpu().numpy(),
}


def centres(tokens: ImageTokens, count: int) -> NDArray[np.float32]:
    """Return the centres of spherical k-means after ten rounds, starting from the farthest patches."""
    patches, found = tokens.features[1:], torch.from_numpy(image_vectors(tokens, count))
    for _ in range(10):
        nearest = F.one_hot((patches @ found.T).argmax(1), count).to(patches.dtype)
        found = torch.where(nearest.any(0)[:, None], F.normalize(nearest.T @ patches, dim=-1), found)
    return found.numpy()


def presence(models: Text2Seg, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the presence of every thing by these vectors of one image, float32 [things]."""
    patches = torch.from_numpy(vectors)
    tokens = ImageTokens(torch.cat([torch.zeros_like(patches[:1]), patches]), (1, len(vectors)), (1, 1))
    return models.clip.patch_presence(tokens, models.closed_vocabulary.names).max((1, 2))


def mean_average_precision(scores: NDArray, present: NDArray) -> float:
    found = []
    for column in np.flatnonzero(present.any(0)):
        hits = present[np.argsort(-scores[:, column], kind="stable"), column]
        found.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return float(np.mean(found))


def measure_accuracy(models: Text2Seg, folder: Path, *, write: bool) -> None:
    """Publish two tables of one split: the vectors to keep of an image, and what each cut skips and loses."""
    files, present = read_presence(folder, models.closed_vocabulary.names)
    scores: dict[str, list[NDArray]] = {kind: [] for kind in KEPT}
    for file in tqdm(files, desc=folder.name, unit="scene"):
        (tokens,) = models.clip.encode_images([load_image(folder / file)], size=models.input_size)
        for kind, keep in KEPT.items():
            scores[kind].append(presence(models, keep(tokens)))
    rows: list[tuple[object, ...]] = []
    for kind, kept in scores.items():
        table = np.stack(kept)
        cuts = np.quantile(table[present], (0.02, 0.05))
        shares = [f"{(table[~present] < cut).mean():.1%}" for cut in cuts]
        rows.append((kind, f"{mean_average_precision(table, present):.3f}", *shares))
    how = f"benchmarks/search.py, {len(files)} scenes, {present.sum()} true pairs"
    headings = (
        f"{folder.name}: kept of an image",
        "mAP",
        "absent pairs below the cut that loses 2 % of the true ones",
        "5 %",
    )
    publish(f"search-{folder.name}", markdown(headings, rows), page=PAGE, how=how, write=write)

    kept, whole = np.stack(scores[f"{VECTORS} farthest patches"]), np.stack(scores["all 576 patches"])
    rng = np.random.default_rng(SEED)
    rows = []
    for categories in JOBS:
        draws = [rng.choice(present.shape[1], categories, replace=False) for _ in range(DRAWS)]
        rows += [(categories, f"{cut:g}", *skipped(kept, whole, present, draws, cut)) for cut in CUTS]
    headings = (f"{folder.name}: categories", "cut", "images skipped", "of those without any", "lost", "found and lost")
    publish(f"skip-{folder.name}", markdown(headings, rows), page=PAGE, how=how, write=write)


def skipped(kept: NDArray, whole: NDArray, present: NDArray, draws: list[NDArray], cut: float) -> tuple[str, ...]:
    """Return the shares of one cut over all random jobs, as cells."""
    out = np.stack([kept[:, job].max(1) < cut for job in draws], 1)
    empty = np.stack([~present[:, job].any(1) for job in draws], 1)
    in_image = np.stack([present[:, job].sum(1) for job in draws], 1)
    found = np.stack([(present & (whole >= 0.5))[:, job].sum(1) for job in draws], 1)
    shares = (out.mean(), out[empty].mean(), in_image[out].sum() / in_image.sum(), found[out].sum() / found.sum())
    return tuple(f"{share:.2%}" for share in shares)


def measure_seconds(models: Text2Seg, folder: Path, *, write: bool) -> None:
    """Time labelling jobs: all images; with skipping and a new index; with skipping and a finished index.

    Both with the demo model's presence threshold and without one, as for models without a fitted threshold.
    """
    ontology = ontology_of_queries(QUERIES)
    rows: list[tuple[object, ...]] = []
    with tempfile.TemporaryDirectory() as temporary:
        outputs = Path(temporary)
        label_folder(models, folder, ontology, LabelSettings(output=outputs / "warm-up.json", limit=8))
        for threshold, index in ((None, outputs / "one"), (0.0, outputs / "other")):
            models.settings = Settings(presence=PresenceSettings(threshold))
            for number, name in enumerate(("all images", "skipping, new index", "skipping, finished index")):
                settings = LabelSettings(
                    output=outputs / f"{threshold}-{number}.json", only_if_present=number > 0, index=index
                )
                start = time.perf_counter()
                report = label_folder(models, folder, ontology, settings)
                seconds = time.perf_counter() - start
                shown = "0.5 (demo)" if threshold is None else "0"
                rows.append((shown, name, f"{seconds:.1f}", report.images - report.skipped, report.found))
    headings = ("presence", "job", "seconds", "labelled", "with segments")
    how = f"benchmarks/search.py --seconds, {folder.name}, categories {', '.join(QUERIES)}, one torch thread"
    publish("skip-seconds", markdown(headings, rows), page=TIME_PAGE, how=how, write=write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="folders with dataset.json; default: the bundled scenes")
    parser.add_argument(
        "--seconds", action="store_true", help="time jobs in the last folder instead of measuring accuracy"
    )
    parser.add_argument("--write", action="store_true", help="write the tables into docs/measurements")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = args.folders or bundled()
    if args.seconds:
        measure_seconds(Text2Seg.load("demo"), folders[-1], write=args.write)
        return
    for folder in folders:
        measure_accuracy(Text2Seg.load("demo"), folder, write=args.write)


if __name__ == "__main__":
    main()

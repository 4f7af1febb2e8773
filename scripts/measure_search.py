"""Measures what to keep of an image for search, and what skipping images costs and saves (docs/measurements/search.md).

    python scripts/render_demo_world.py --split validation --count 100 --output runs/validation
    python scripts/measure_search.py runs/validation                      # whatever was chosen was chosen here
    python scripts/measure_search.py runs/new-scenes runs/held-out        # what is reported
    python scripts/measure_search.py --seconds runs/new-scenes            # a job of three categories, by the clock

Every scene is asked for every thing that the demo model knows. `mAP` is that of the images ranked by a thing's
presence, meant over things. Jobs are drawn at random, so many categories each; `lost` is the share of the (image,
thing) pairs of a job that are true and in an image left out, `found and lost` of those that labelling would have
found.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from text2seg import Settings, Text2Seg
from text2seg.clip.model import ImageTokens
from text2seg.coco.dataset import read_dataset
from text2seg.coco.truth import shown_in
from text2seg.config import LabelSettings, PresenceSettings
from text2seg.io.images import load_image
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.search.index import VECTORS, image_vectors

CUTS, JOBS, DRAWS, SEED = (0.02, 0.05, 0.1, 0.2, 0.5), (1, 3, 10, 30), 300, 88

KEPT: dict[str, Callable[[ImageTokens], NDArray[np.float32]]] = {
    "CLS": lambda tokens: tokens.features[:1].cpu().numpy(),
    "mean of patches": lambda tokens: F.normalize(tokens.features[1:].mean(0, keepdim=True), dim=-1).cpu().numpy(),
    "8 k-means centres": lambda tokens: centres(tokens, 8),
    "16 k-means centres": lambda tokens: centres(tokens, 16),
    "4 farthest patches": lambda tokens: image_vectors(tokens, 4),
    "8 farthest patches": lambda tokens: image_vectors(tokens, 8),
    "16 farthest patches": lambda tokens: image_vectors(tokens, 16),
    "32 farthest patches": lambda tokens: image_vectors(tokens, 32),
    "all 576 patches": lambda tokens: tokens.features[1:].cpu().numpy(),
}


def centres(tokens: ImageTokens, count: int) -> NDArray[np.float32]:
    """Spherical k-means from the farthest patches, ten rounds."""
    patches, found = tokens.features[1:], torch.from_numpy(image_vectors(tokens, count))
    for _ in range(10):
        nearest = F.one_hot((patches @ found.T).argmax(1), count).to(patches.dtype)
        found = torch.where(nearest.any(0)[:, None], F.normalize(nearest.T @ patches, dim=-1), found)
    return found.numpy()


def read(folder: Path, names: tuple[str, ...]) -> tuple[list[str], NDArray[np.bool_]]:
    """The files of a split, and what is in them, bool [images, things]."""
    truth = read_dataset(folder / "dataset.json")
    column = {entry["id"]: names.index(entry["name"]) for entry in truth["categories"]}
    row = {entry["id"]: number for number, entry in enumerate(truth["images"])}
    there = np.zeros((len(row), len(names)), bool)
    for shown in shown_in(truth):
        there[row[shown.image_id], [column[number] for number in shown.present()]] = True
    return [entry["file_name"] for entry in truth["images"]], there


def presence(models: Text2Seg, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of every thing by these vectors of one image, float32 [things]."""
    patches = torch.from_numpy(vectors)
    tokens = ImageTokens(torch.cat([torch.zeros_like(patches[:1]), patches]), (1, len(vectors)), (1, 1))
    return models.clip.patch_presence(tokens, models.things.names).max((1, 2))


def mean_average_precision(scores: NDArray, there: NDArray) -> float:
    found = []
    for column in np.flatnonzero(there.any(0)):
        hits = there[np.argsort(-scores[:, column], kind="stable"), column]
        found.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return float(np.mean(found))


def tables(models: Text2Seg, folder: Path) -> None:
    files, there = read(folder, models.things.names)
    scores: dict[str, list[NDArray]] = {kind: [] for kind in KEPT}
    for file in tqdm(files, desc=folder.name, unit="scene", mininterval=5):
        (tokens,) = models.clip.encode_images([load_image(folder / file)], size=models.input_size)
        for kind, keep in KEPT.items():
            scores[kind].append(presence(models, keep(tokens)))
    whole = np.stack(scores["all 576 patches"])
    print(f"\n{folder.name}: {len(files)} scenes, {there.sum()} true pairs\n")
    print("| kept of an image | mAP | absent pairs under the cut that loses 1 % | 2 % | 5 % of the true ones |")
    print("|---|---|---|---|---|")
    for kind, rows in scores.items():
        own = np.stack(rows)
        cuts = np.quantile(own[there], (0.01, 0.02, 0.05))
        shares = " | ".join(f"{(own[~there] < cut).mean():.1%}" for cut in cuts)
        print(f"| {kind} | {mean_average_precision(own, there):.3f} | {shares} |")
    print("\n| categories of the job | cut | images left out | of those that show none | lost | found and lost |")
    print("|---|---|---|---|---|---|")
    kept = np.stack(scores[f"{VECTORS} farthest patches"])
    dice = np.random.default_rng(SEED)
    for categories in JOBS:
        draws = [dice.choice(there.shape[1], categories, replace=False) for _ in range(DRAWS)]
        for cut in CUTS:
            print(f"| {categories} | {cut:g} | {left_out(kept, whole, there, draws, cut)} |")


def left_out(kept: NDArray, whole: NDArray, there: NDArray, draws: list[NDArray], cut: float) -> str:
    """A row of the second table: what a cut does over all drawn jobs."""
    out = np.stack([kept[:, job].max(1) < cut for job in draws], 1)
    empty = np.stack([~there[:, job].any(1) for job in draws], 1)
    in_image = np.stack([there[:, job].sum(1) for job in draws], 1)
    found = np.stack([(there & (whole >= 0.5))[:, job].sum(1) for job in draws], 1)
    shares = (out.mean(), out[empty].mean(), in_image[out].sum() / in_image.sum(), found[out].sum() / found.sum())
    return " | ".join(f"{share:.2%}" for share in shares)


def clock(models: Text2Seg, folder: Path, queries: list[str], limit: int | None) -> None:
    """Label the folder with and without leaving images out, the former with the index to be made and there already;
    once with the demo's threshold of presence, once with none, as with models that presence is not fitted to."""
    ontology = ontology_of_queries(queries)
    print(f"\n{folder.name}, {', '.join(queries)}\n")
    print("| presence | job | seconds | looked at | with segments |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        label_folder(models, folder, ontology, LabelSettings(output=where / "warm.json", limit=8))
        for presence, index in ((None, where / "one"), (0.0, where / "other")):
            models.settings = Settings(presence=PresenceSettings(presence))
            for number, name in enumerate(("all", "only if present, index made first", "only if present, index there")):
                output = where / f"{presence}-{number}.json"
                settings = LabelSettings(output=output, limit=limit, only_if_present=number > 0, index=index)
                start = time.perf_counter()
                report = label_folder(models, folder, ontology, settings)
                seconds, looked_at = time.perf_counter() - start, report.images - report.skipped
                threshold = "0.5 (demo)" if presence is None else "0"
                print(f"| {threshold} | {name} | {seconds:.1f} | {looked_at} | {report.found} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--seconds", action="store_true", help="by the clock, in place of the tables")
    parser.add_argument("--queries", nargs="+", default=["sheep", "fire engine", "apple"])
    parser.add_argument("--limit", type=int, help="with --seconds: only the first so many images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for folder in args.folder:
        if args.seconds:
            clock(Text2Seg.load("demo"), folder, args.queries, args.limit)
        else:
            tables(Text2Seg.load("demo"), folder)


if __name__ == "__main__":
    main()

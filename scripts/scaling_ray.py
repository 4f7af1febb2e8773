"""How a labelling job grows with workers: python scripts/scaling_ray.py [--images 48] [--output FILE]

The same images (bundled scenes, under other names as often as needed) with the demo model: in this process, then on a
Ray of this machine with 1, 2, … workers, one thread each. Starting Ray and loading the models is told apart: what
counts for images/s is the time from the first answer on, by the images that came after it. Prints a table.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from text2seg import Text2Seg
from text2seg.coco.dataset import read_dataset
from text2seg.config import LabelSettings, ModelSettings, RaySettings
from text2seg.labelling.engines.local import Batch, Deliver, Delivery, Engine, LocalEngine, Work
from text2seg.labelling.engines.ray_engine import RayEngine
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "new-scenes"
MODEL = ModelSettings(device="cpu")


class Timed:
    """An engine whose deliveries are timed."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.began = engine, time.perf_counter()
        self.came: list[tuple[float, int]] = []

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        def timed(records: Delivery) -> None:
            deliver(records)
            self.came.append((time.perf_counter() - self.began, len(records)))

        self.engine.run(work, batches, timed, stopping)

    def speed(self) -> float:
        """Images a second after the first delivery."""
        return sum(count for _, count in self.came[1:]) / (self.came[-1][0] - self.came[0][0])


def photos(folder: Path, count: int) -> Path:
    """So many images, all of them of the bundled scenes."""
    folder.mkdir()
    scenes = sorted((SCENES / "images").iterdir())
    for number in range(count):
        scene = scenes[number % len(scenes)]
        shutil.copy(scene, folder / f"{number:05}{scene.suffix}")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--most-workers", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--queries", type=int, default=5, help="how many of the scenes' categories are looked for")
    parser.add_argument("--output", type=Path, help="write the table to this file too")
    options = parser.parse_args()

    torch.set_num_threads(1)
    models = Text2Seg.load("demo", device=MODEL.device)
    names = [category["name"] for category in read_dataset(SCENES / "dataset.json")["categories"]]
    ontology = ontology_of_queries(names[: options.queries])
    engines: list[tuple[str, Engine]] = [("local, 1 thread", LocalEngine(models, workers=1))]
    for count in range(1, options.most_workers + 1):
        workers = RaySettings(min_workers=count, max_workers=count)
        engines.append((f"ray, {count} × 1 thread", RayEngine(MODEL, ray=workers, workers=1)))
    rows, first = [], (0.0, "")
    with tempfile.TemporaryDirectory() as made:
        folder = photos(Path(made) / "photos", options.images)
        models.segment(folder / "00000.jpg", names[: options.queries])  # what only happens once is not measured
        for number, (name, engine) in enumerate(engines):
            output, timed = Path(made) / f"{number}.json", Timed(engine)
            label_folder(models, folder, ontology, LabelSettings(output=output), engine=timed)
            digest, speed = hashlib.sha256(output.read_bytes()).hexdigest(), timed.speed()
            first = first if number else (speed, digest)
            same = "yes" if digest == first[1] else "NO"
            rows.append(f"| {name} | {timed.came[0][0]:.1f} | {speed:.2f} | {speed / first[0]:.2f}× | {same} |")
            print(rows[-1], file=sys.stderr, flush=True)
    load = f"{os.getloadavg()[0]:.1f} processes wanted the {os.cpu_count()} processors at the end"
    lines = [
        "| engine | seconds to the first answer | images/s | speed-up | same bytes |",
        "|---|--:|--:|--:|---|",
        *rows,
    ]
    table = "\n".join([*lines, "", f"{options.images} images, {options.queries} queries; {load}."])
    print(table)
    if options.output:
        options.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

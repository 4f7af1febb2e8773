"""How much memory a labelling job takes as the folder grows: python scripts/benchmark_memory.py [SIZES …]

Each size runs in a process of its own: fake models that find three things in every image, no decoding, but the real
listing, journal, ledger and writer. `MB` is the peak of the whole process, `traced MB` what Python's allocators gave
out at the most (with --trace, which is slow). Images have 240 by 320 pixels, segments eight points.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from text2seg.config import LabelSettings
from text2seg.labelling.engines.local import LocalEngine
from text2seg.labelling.job import label_folder
from text2seg.labelling.output import journal_path
from text2seg.ontology import ontology_of_queries, queries_of
from text2seg.records import Candidates, Image, PointPrompts, Segment, Segmentation, SimilarityMaps

SIZES = (100, 1_000, 10_000, 100_000)
HW = (240, 320)
ONTOLOGY = ontology_of_queries("dog, red car, bench")


class SyntheticModels:
    """Three round segments in every image, made once."""

    def __init__(self, hw: tuple[int, int] = HW) -> None:
        self.sam = SimpleNamespace(device=SimpleNamespace(type="none"))
        self.hw = hw
        rows, columns = np.ogrid[: hw[0], : hw[1]]
        points = PointPrompts(np.full((8, 2), 12.5, np.float32), np.ones(8, np.int8), np.full(8, 0.9, np.float32))
        candidates = Candidates(np.zeros((3, 8, 8), np.float32), np.array([0.7, 0.8, 0.9], np.float32))
        queries = queries_of(ONTOLOGY)
        self._segments = tuple(
            Segment(
                query.name,
                (rows - hw[0] // 2) ** 2 + (columns - hw[1] * (n + 1) // 4) ** 2 < (hw[0] // 6) ** 2,
                0.9,
                0.5,
                0.8,
                points,
                candidates,
                2,
            )
            for n, query in enumerate(queries)
        )
        scores = np.zeros((len(queries), 8, 8), np.float32)
        self._maps = SimilarityMaps(tuple(q.name for q in queries), scores, np.ones(len(queries), np.float32), hw)

    def check(self, queries):
        return tuple(queries)

    def provenance(self):
        return {"text2seg": "synthetic"}

    def open(self, image):
        return image

    def segment_sessions(self, images, queries):
        return tuple(Segmentation(image, self._segments, self._maps) for image in images)


def run(count: int, folder: Path, *, hw: tuple[int, int] = HW, trace: bool = False) -> dict[str, float]:
    """Label so many empty files under `folder`; gives seconds, file sizes and peaks in megabytes."""
    photos = folder / "photos"
    for number in range(count):
        path = photos / f"{number // 1000:04}" / f"IMG_{number:07}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    models = SyntheticModels(hw)
    blank = np.zeros((*hw, 3), np.uint8)
    engine = LocalEngine(models, load=lambda path, name: Image(blank, name))
    settings = LabelSettings(output=folder / "dataset.json", batch=16)
    if trace:
        tracemalloc.start()
    began = time.perf_counter()
    report = label_folder(models, photos, ONTOLOGY, settings, engine=engine)
    seconds = time.perf_counter() - began
    traced = tracemalloc.get_traced_memory()[1] if trace else 0
    tracemalloc.stop()
    if report.found != count:
        raise SystemExit(f"only {report.found} of {count} images came through")
    return {
        "images": count,
        "seconds": seconds,
        "journal": journal_path(settings.output).stat().st_size / 1e6,
        "dataset": settings.output.stat().st_size / 1e6,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,  # Linux counts in kilobytes
        "traced": traced / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(options.one, Path(folder), trace=options.trace)))
        return
    print("|  images | seconds | journal MB | dataset MB |    MB | traced MB |")
    print("|--------:|--------:|-----------:|-----------:|------:|----------:|")
    for size in options.sizes:
        command = [sys.executable, __file__, "--one", str(size), *["--trace"] * options.trace]
        r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        traced = f"{r['traced']:.1f}" if options.trace else "–"
        print(
            f"| {size:7,} | {r['seconds']:7.1f} | {r['journal']:10.1f} | {r['dataset']:10.1f} "
            f"| {r['peak']:5.0f} | {traced:>9} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

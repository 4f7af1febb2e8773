"""Measure how the time grows with the number of queries, images and pixels.

    python benchmarks/scaling.py --output docs/scaling

Runs the demo model with the reference method, in which SAM runs for every query in every image. Writes a plot (PNG) and
all numbers (JSON), and prints a table with the exponent between neighbouring sizes: 1 is linear, lower is better.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from page import markdown, publish

from text2seg import PointSettings, Settings, Text2Seg
from text2seg.clip.text import TextEncoder
from text2seg.config import LabelSettings
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.speed.flows import words, write_images
from text2seg.speed.meters import PeakMemory, wait

QUERIES = (1, 3, 10, 30, 100, 300)
IMAGES = (1, 10, 100, 1_000, 10_000)
PIXELS_HW = ((120, 160), (240, 320), (480, 640), (960, 1280), (1920, 2560), (3000, 4000))
COLOURS = ("#1f5fa8", "#d95f02")

Curve = tuple[str, Sequence[int], dict[str, list[float]]]


def timed(models: Text2Seg, work: Callable[[], object], rounds: int) -> float:
    """Return the seconds of the fastest round."""
    best = math.inf
    for _ in range(rounds):
        wait(models.sam.device)
        start = time.perf_counter()
        work()
        wait(models.sam.device)
        best = min(best, time.perf_counter() - start)
    return best


def by_queries(models: Text2Seg, counts: Sequence[int], image: Path, rounds: int) -> Curve:
    """Time one image: the encoding of the texts, and everything else."""
    seconds: dict[str, list[float]] = {"texts, once": [], "each image": []}
    for count in counts:
        queries = list(words(count))
        models.clip.text = TextEncoder(models.clip.model)
        seconds["texts, once"].append(timed(models, partial(models.clip.encode_texts, [*queries, ""]), 1))
        models.segment(image, queries[:1])  # the first image also encodes the distractors of presence
        seconds["each image"].append(timed(models, partial(models.segment, image, queries), rounds))
    return "queries", counts, seconds


def by_images(models: Text2Seg, counts: Sequence[int], folder: Path) -> Curve:
    """Time labelling jobs with these numbers of images, journal and COCO file included; print their peak memory."""
    seconds: dict[str, list[float]] = {"the whole job": []}
    peaks = []
    for count in counts:
        write_images(folder / str(count), (120, 160), count)
        job = LabelSettings(output=folder / f"{count}.json", batch=8)
        memory = PeakMemory(models.sam.device)
        ontology = ontology_of_queries(words(3))
        work = partial(label_folder, models, folder / str(count), ontology, job)
        seconds["the whole job"].append(timed(models, work, 1))
        peaks.append(memory.read() / 1e6)
    print(f"peak MB by images: {dict(zip(counts, map(round, peaks), strict=True))}")
    return "images", counts, seconds


def by_pixels(models: Text2Seg, sizes: Sequence[tuple[int, int]], folder: Path, rounds: int) -> Curve:
    """Time one image of each size, including the reading of its file."""
    seconds: dict[str, list[float]] = {"10 queries": []}
    for hw in sizes:
        write_images(folder / f"{hw[0]}", hw, 1)
        path = folder / f"{hw[0]}" / "00000.jpg"
        seconds["10 queries"].append(timed(models, partial(models.segment, path, words(10)), rounds))
    return "pixels", [height * width for height, width in sizes], seconds


def draw(curves: Sequence[Curve], path: Path) -> None:
    figure = Figure(figsize=(11, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (what, counts, lines) in zip(figure.subplots(1, len(curves)), curves, strict=True):
        for (name, seconds), colour in zip(lines.items(), COLOURS, strict=False):
            panel.loglog(counts, seconds, "o-", color=colour, label=name, markersize=4)
        top = max(seconds[-1] for seconds in lines.values())
        panel.loglog(counts, [top * count / counts[-1] for count in counts], ":", color="#888888", label="linear")
        panel.set_ylim(bottom=0.3 * min(min(seconds) for seconds in lines.values()))
        panel.set_xlabel(what)
        panel.set_ylabel("seconds")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def show(curves: Sequence[Curve], *, write: bool) -> None:
    """Publish the largest size of each curve and the steepest exponent between neighbouring sizes."""
    rows: list[tuple[object, ...]] = []
    for what, counts, lines in curves:
        for name, seconds in lines.items():
            steps = range(1, len(counts))
            exponents = [
                math.log(seconds[n] / seconds[n - 1]) / math.log(counts[n] / counts[n - 1]) for n in steps
            ] or [0.0]
            ends = f"{seconds[0]:.3g} at {counts[0]:,}", f"{seconds[-1]:.3g} at {counts[-1]:,}"
            rows.append((f"{what}: {name}", *ends, f"{max(exponents):.2f}"))
    table = markdown(("seconds by the number of", "smallest", "largest", "steepest exponent"), rows)
    publish("scaling", table, page="performance.md", how="benchmarks/scaling.py", write=write)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run the smallest sizes only, as a test")
    parser.add_argument("--most-queries", type=int, default=QUERIES[-1])
    parser.add_argument("--most-images", type=int, default=100)
    parser.add_argument(
        "--output", type=Path, default=Path("docs/scaling"), help="path of the plot and the numbers, without suffix"
    )
    parser.add_argument("--write", action="store_true", help="write the table into docs/measurements/performance.md")
    options = parser.parse_args()
    rounds, sizes = (1, PIXELS_HW[:2]) if options.quick else (3, PIXELS_HW)
    most_queries, most_images = (3, 10) if options.quick else (options.most_queries, options.most_images)

    known = Text2Seg.load("demo")
    # Without the demo's closed vocabulary, so that it accepts any number of different queries.
    settings = Settings(points=PointSettings(method="reference"))
    models = Text2Seg(known.clip, known.sam, settings=settings, input_size=known.input_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "one", (480, 640), 1)
        models.segment(folder / "one" / "00000.jpg", words(2))  # warm-up
        curves = [
            by_queries(models, [n for n in QUERIES if n <= most_queries], folder / "one" / "00000.jpg", rounds),
            by_images(models, [n for n in IMAGES if n <= most_images], folder / "many"),
            by_pixels(models, sizes, folder / "sizes", rounds),
        ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    show(curves, write=options.write)
    draw(curves, options.output.with_suffix(".png"))
    options.output.with_suffix(".json").write_text(json.dumps(curves, indent=1))


if __name__ == "__main__":
    main()

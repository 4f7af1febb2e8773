"""Measure how long a person waits for an answer.

    python benchmarks/latency.py --models demo vit_b

For each model, on one image of 480 × 640: the first answer, then answers that need no new encoding of the image
(another threshold, a click, a new word). For the command line: the help, and the first mask of the demo model, each in
a new process, in processor time. Models other than demo have random weights of the published sizes, which take the same
time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from page import markdown, publish
from tqdm import tqdm

from text2seg import PointSettings, Settings, Text2Seg
from text2seg.clip.model import Clip
from text2seg.records import PointPrompts
from text2seg.runtime import choose_device, choose_precision
from text2seg.sam.sam import Sam
from text2seg.speed.flows import Model, clip_size, weights_of, words, write_images

PAGE = "performance.md"
SIZE_HW = (480, 640)
THRESHOLDS = (0.7, 0.75, 0.85)
Row = tuple[str, str, list[float]]


def load(model: str, device_name: str) -> Text2Seg:
    device = choose_device(device_name)
    clip, sam = weights_of(model)
    return Text2Seg(
        Clip.from_weights(clip, device=device, precision=choose_precision(device)),
        Sam.from_weights(sam, device=device),
        input_size=clip_size(model),
    )


def settings(threshold: float) -> Settings:
    """Return settings with which SAM runs for every query, as in the original method."""
    return Settings(points=PointSettings(method="reference", threshold=threshold))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(command: list[str]) -> float:
    """Run a command and return the processor time that it took, which other processes change less than its duration.

    Python's bytecode is kept, as on a person's machine, where only the first run compiles it.
    """
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    before = os.times()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def waits(model: str, image: Path, queries: int, device: str) -> Iterator[Row]:
    models = load(model, device)
    models.segment(np.zeros((64, 64, 3), np.uint8), "warm up", settings(0.8))
    session = models.open(image)
    for count in dict.fromkeys((1, queries)):
        names = words(count)
        session.tokens.clear()
        session.embedding = None
        models.clip.encode_texts(
            [*names, ""]
        )  # texts are cached on a machine; `benchmark speed` measures encoding them
        yield model, f"first answer, {count} known words", [seconds(partial(session.segment, names, settings(0.8)))]
        changed = [seconds(partial(session.segment, names, settings(t))) for t in THRESHOLDS]
        yield model, f"threshold changed, {count} words", changed
    spots = [
        PointPrompts(np.array([[x, 200]], np.float32), np.ones(1, np.int8), np.ones(1, np.float32))
        for x in (99, 300, 500)
    ]
    yield model, "a click", [seconds(partial(session.segment_points, names[0], p, settings(0.8))) for p in spots]
    fresh = [f"{name} at night" for name in names[:3]]
    yield (
        model,
        "a word never seen, 85 templates",
        [seconds(partial(session.segment, w, settings(0.8))) for w in fresh],
    )


def processes(image: Path, folder: Path) -> Iterator[Row]:
    segment = ["segment", str(image), "--query", "sheep", "--output", str(folder), "--overwrite"]
    for what, arguments in (
        ("text2seg --help", ["-m", "text2seg", "--help"]),
        ("text2seg segment, the demo's first mask", ["-m", "text2seg", *segment]),
        ("of that, importing torch", ["-c", "import torch"]),
    ):
        command = [sys.executable, *arguments]
        yield "a process, CPU seconds", what, [cpu_seconds(command) for _ in range(4)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=get_args(Model), default=["demo", "vit_b"])
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/measurements/{PAGE}")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder, SIZE_HW, 1)
        image = folder / "00000.jpg"
        rows = list(processes(image, folder / "out"))
        for model in tqdm(options.models, unit="model"):
            rows += waits(model, image, options.queries, options.device)
    cells = [
        (model, what, f"{statistics.median(times):.3g}", f"{min(times):.3g}–{max(times):.3g}")
        for model, what, times in rows
    ]
    table = markdown(("model", "what", "median s", "spread"), cells)
    how = f"benchmarks/latency.py --models {' '.join(options.models)}"
    publish("latency", table, page=PAGE, how=how, write=options.write)


if __name__ == "__main__":
    main()

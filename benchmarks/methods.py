"""Compare the methods of the pipeline with the demo model: accuracy, and seconds by the number of words.

    python benchmarks/methods.py table                     # the bundled scenes
    python benchmarks/methods.py table runs/new-scenes …   # splits written by training/render.py
    python benchmarks/methods.py words                     # an image with 1, 109 and 1,200 words

`table` has a row for each split and method; *uncalibrated* rows run without the calibration in the model card, and on
a few scenes only, because there all things are found in every scene. Asked for all 109 things: AP, AP50, mIoU and the
category-given IoU of `text2seg evaluate`; *lost* is the share of present things that were not found, *found* that of
absent things that were. *Covered* is the share of true things that a segment covers with an IoU of 0.5, asked for what
is there; no query counts as absent then. The seconds are CPU seconds for one image with 5 and with all words, encoders
included, text features cached. Set OMP_NUM_THREADS=1.

`words` measures an image with regions and with auto. The words beyond 109 are things with a word before them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accuracy import NEVER_ABSENT, PAGE, Table, lines, scenes_to_label, score_labels
from agreement import agreement, read_truth, scenes_of
from page import bundled, markdown, publish

from text2seg import PointSettings, Settings, Text2Seg
from text2seg.io.images import load_image

REGIONS = Settings(points=PointSettings(method="regions"))
METHODS = {
    "reference": (Settings(points=PointSettings(method="reference"), presence=NEVER_ABSENT), False),
    "auto, uncalibrated": (Settings(), False),
    "auto": (Settings(), True),
    "regions, uncalibrated": (REGIONS, False),
    "regions": (REGIONS, True),
}
"""The settings of each method, and whether the calibration in the model card is used."""
FEW_WORDS, MOST_WORDS = 5, 1200
BEFORE = ("small", "large", "red", "blue", "green", "old", "new", "round", "pale", "dark", "tall", "shiny")


def table(models: Text2Seg, folders: Sequence[Path], names: Sequence[str], limit: int | None, timed: int) -> Table:
    rows: Table = {}
    for folder in folders:
        for name in names:
            settings, calibrated = METHODS[name]
            of_method = models if calibrated else models.with_card(models.card.uncalibrated())
            count = scenes_to_label(name, limit)
            scores = score_labels(of_method, folder, settings, count)
            known = agreement(of_method, scenes_of(of_method, folder, count), replace(settings, presence=NEVER_ABSENT))
            files = [folder / entry["file_name"] for entry in read_truth(folder, timed)["images"]]
            words = models.closed_vocabulary.names
            rows[f"{folder.name}, {name}"] = {
                **{column: scores[column] for column in ("AP", "AP50", "mIoU", "category-given")},
                "lost": scores["present, lost"],
                "found": scores["absent, found"],
                "covered": float(np.mean(known.found)),
                f"CPU s, {FEW_WORDS} words": seconds(of_method, files, words[:FEW_WORDS], settings),
                f"CPU s, {len(words)} words": seconds(of_method, files, words, settings),
                "scenes": scores["scenes"],
            }
    return rows


def seconds(models: Text2Seg, files: Sequence[Path], words: Sequence[str], settings: Settings) -> float:
    """Return the median CPU seconds for an image; the first is not counted, so that text features are cached."""
    images = [load_image(file) for file in (files[0], *files)]
    taken = []
    for image in images:
        start = time.process_time()
        models.segment(image, words, settings)
        taken.append(time.process_time() - start)
    return float(np.median(taken[1:]))


def by_words(models: Text2Seg, files: Sequence[Path]) -> Table:
    known = models.closed_vocabulary.names
    more = [f"{word} {name}" for word in BEFORE for name in known]
    rows: Table = {}
    for count in (1, len(known), MOST_WORDS):
        words = (*known, *more)[:count]
        rows[f"{count:,}"] = {
            "regions, CPU s": seconds(models, files, words, REGIONS),
            "auto, CPU s": seconds(models, files, words, Settings()),
        }
    one = next(iter(rows.values()))["regions, CPU s"]
    return {count: {**row, "regions, × one word": row["regions, CPU s"] / one} for count, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("table", "words"))
    parser.add_argument("folders", nargs="*", type=Path, help="folders with dataset.json; default: the bundled scenes")
    parser.add_argument("--limit", type=int, help="use only the first scenes of each folder, this many")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--timed", type=int, default=5, help="number of images whose seconds are measured (default: 5)")
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/measurements/{PAGE}")
    args = parser.parse_args()
    models, folders = Text2Seg.load("demo", precision="fp32"), args.folders or bundled()
    if args.command == "table":
        measured, first = table(models, folders, args.methods, args.limit, args.timed), "split"
    else:
        files = [folders[0] / entry["file_name"] for entry in read_truth(folders[0], args.timed)["images"]]
        measured, first = by_words(models, files), "words"
    headings = (first, *next(iter(measured.values())))
    limit = f" --limit {args.limit}" if args.limit else ""
    how = f"benchmarks/methods.py {args.command}{limit}, fp32"
    publish(f"methods-{args.command}", markdown(headings, lines(measured)), page=PAGE, how=how, write=args.write)


if __name__ == "__main__":
    main()

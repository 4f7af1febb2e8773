"""Compare the speed of text2seg with the original flow and write the table into docs/measurements.

    python benchmarks/speed.py --models demo vit_b --images 4 1 --queries 1 20 --minutes 4

`text2seg benchmark speed` measures the same and has more options.
"""

from __future__ import annotations

import argparse
from typing import get_args

from page import markdown, publish

from text2seg.speed import measure
from text2seg.speed.flows import Model, Size

PAGE = "performance.md"
FLOWS = ("stock", "stock-half", "ours")
LEFT_OUT = ("spread", "embedding error")  # columns that the page has no room for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=get_args(Model), default=["demo"])
    parser.add_argument("--sizes", nargs="+", choices=get_args(Size), default=["vga"])
    parser.add_argument("--queries", nargs="+", type=int, default=[1, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", nargs="+", type=int, default=[4], help="for each model, or one number for all")
    parser.add_argument("--minutes", type=float, default=3, help="start no further round after this time")
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/measurements/{PAGE}")
    args = parser.parse_args()
    counts = args.images if len(args.images) == len(args.models) else args.images[:1] * len(args.models)
    kept = [place for place, heading in enumerate(measure.HEADINGS) if heading not in LEFT_OUT]
    rows = []
    for model, images in zip(args.models, counts, strict=True):
        minutes = args.minutes / len(args.models)
        plan = measure.Plan((model,), tuple(args.sizes), tuple(args.queries), FLOWS, args.rounds, images, 1, minutes)
        for case in measure.run(plan):
            rows += [[measure.title(case), *(row[place] for place in kept)] for row in measure.rows(case)]
    table = markdown(("case", *(measure.HEADINGS[place] for place in kept)), rows)
    publish(
        "speed",
        table,
        page=PAGE,
        how=f"benchmarks/speed.py --models {' '.join(args.models)} --images {' '.join(map(str, counts))}",
        write=args.write,
    )


if __name__ == "__main__":
    main()

"""Measure the explanation tools on the bundled scenes with the demo CLIP.

    python benchmarks/explain.py faithfulness --limit 3     # which saliency methods are faithful
    python benchmarks/explain.py recognition                # labels and pixels, raw CLIP against surgery

Each runs the command `text2seg explain` of the same name and makes one table of the numbers that it writes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from page import markdown, publish

PAGE = "explain.md"
METHODS = ("legrad", "surgery", "naclip", "maskclip", "relevance-last", "gradcam", "attention", "raw")


def run_tool(name: str, *flags: str) -> list[dict[str, Any]]:
    """Run `text2seg explain NAME` and return the tables that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "text2seg", "explain", name, *flags, "--output", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (path,) = Path(folder).glob("*.json")
        return list(json.loads(path.read_text(encoding="utf-8"))["tables"])


def cell(value: object) -> str:
    """Return a cell of a table: numbers with three digits, missing ones as a dash."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def measure_faithfulness(limit: int, *, write: bool) -> None:
    """Deletion, insertion, gap and pointing of each method on both splits."""
    flags = [part for method in METHODS for part in ("--method", method)]
    tables = run_tool("faithfulness", "--limit", str(limit), *flags)
    splits = [{row[0]: row[1:] for row in table["rows"]} for table in tables]
    headings = ["method"]
    for table in tables:
        split, _, what = table["title"].partition(": ")
        headings += [f"{split} ({what.split()[0]} things): deletion", "insertion", "gap", "pointing"]
    rows = []
    for method in splits[0]:
        row = [f"`{method}`" if method in METHODS else f"*{method.strip('()')}*"]
        for split in splits:
            deletion, insertion, gap, error, pointing = map(cell, split[method])
            row += [deletion, insertion, f"{gap} ± {error}", pointing]
        rows.append(row)
    publish(
        "faithfulness",
        markdown(headings, rows),
        page=PAGE,
        how=f"benchmarks/explain.py faithfulness --limit {limit}",
        write=write,
    )


def measure_recognition(*, write: bool) -> None:
    """Scores of labels and pixels for each rule on both splits."""
    (table, *_) = run_tool("recognition-scores")
    rows = [list(map(cell, row)) for row in table["rows"]]
    publish(
        "recognition", markdown(table["columns"], rows), page=PAGE, how="benchmarks/explain.py recognition", write=write
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("faithfulness", "recognition"))
    parser.add_argument("--limit", type=int, default=3, help="scenes of each split for faithfulness (default: 3)")
    parser.add_argument("--write", action="store_true", help=f"write the table into docs/measurements/{PAGE}")
    args = parser.parse_args()
    if args.what == "faithfulness":
        measure_faithfulness(args.limit, write=args.write)
    else:
        measure_recognition(write=args.write)


if __name__ == "__main__":
    main()

"""Print a measured table and write it into a page of docs/measurements.

A page marks the place of a table with `<!-- table NAME -->` and `<!-- end -->`. A line below the table names script,
version, commit, date and machine of the measurement.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from text2seg._version import __version__

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "measurements"
SCENES = ROOT / "text2seg" / "demo" / "scenes"


def bundled() -> list[Path]:
    """Return the folders of the scenes in the repository, one for each split."""
    return sorted(path for path in SCENES.iterdir() if path.is_dir())


def markdown(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; the columns after the first are right-aligned."""
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def publish(name: str, table: str, *, page: str, how: str, write: bool) -> None:
    """Print a table and, with `write`, put it into the page between its markers.

    Args:
        name: the name in the markers.
        table: Markdown.
        page: the page's file name in docs/measurements.
        how: the command and what was measured, for the line below the table.

    Raises:
        SystemExit: the page has no such markers.
    """
    print(f"\n{table}\n", flush=True)
    if not write:
        return
    path = PAGES / page
    text = path.read_text(encoding="utf-8")
    start, end = f"<!-- table {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(start)
    if not found or end not in rest:
        raise SystemExit(f"{path} has no place for the table {name}: write {start.strip()} and {end} into it")
    path.write_text(f"{before}{start}{table}\n\n*{stamp(how)}*\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def stamp(how: str) -> str:
    """Return the line with command, version, commit, date and machine of a measurement."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    import torch

    today = datetime.date.today().isoformat()
    what = f"version {__version__}, commit {commit or 'unknown'}, {today}"
    return f"`{how}`; {what}; {processor()}, {os.cpu_count()} cores, torch {torch.__version__.partition('+')[0]}"


def processor() -> str:
    """Return the name of the CPU."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()

"""Memory does not grow with what was found, only by a few words for each file name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_memory.py"
BYTES_PER_IMAGE = 1_500  # a record has more than this in the journal, and parsed several times as much


def peak(count: int) -> float:
    """Bytes that Python's allocators gave out at the most, in a process that labels so many images."""
    command = [sys.executable, str(SCRIPT), "--one", str(count), "--trace"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert told["journal"] * 1e6 > 1500 * count
    return told["traced"] * 1e6


def test_an_image_more_costs_less_than_its_record():
    few, many = peak(100), peak(1500)
    assert many - few < BYTES_PER_IMAGE * (1500 - 100), (few, many)

"""Memory does not grow with what was found, only by a few words for each file name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

BYTES_PER_IMAGE = 1_500  # a record has more than this in the journal, and parsed several times as much


def test_an_image_more_costs_less_than_its_record(tmp_path):
    path = Path(__file__).parents[1] / "scripts" / "benchmark_memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    peaks = {}
    for count in (50, 100, 3000):  # the first warms up what is made once
        (tmp_path / str(count)).mkdir()
        result = benchmark.run(count, tmp_path / str(count), hw=(48, 64), trace=True)
        assert result["journal"] * 1e6 > 1500 * count
        peaks[count] = result["traced"] * 1e6
    assert peaks[3000] - peaks[100] < BYTES_PER_IMAGE * (3000 - 100), peaks

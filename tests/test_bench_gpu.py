"""The script that measures on a GPU machine, run small on this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_gpu.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True
    )


def test_the_small_run_goes_through_and_leaves_results(tmp_path):
    done = run("run", str(tmp_path / "no wheels"), str(tmp_path / "results"), "--quick")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results" / "quick.json").read_text())
    assert "stock" in (tmp_path / "results" / "quick.md").read_text()
    assert (tmp_path / "results" / "scaling.png").is_file()


def test_without_arguments_it_says_how_it_is_used():
    done = run()
    assert done.returncode == 2
    assert "bench_gpu.sh run WHEELS RESULTS --quick" in done.stderr

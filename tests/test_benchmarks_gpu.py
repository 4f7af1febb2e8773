"""The script of the GPU benchmarks, in its quick mode on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(SCRIPT), *arguments], env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True
    )


def test_the_quick_run_writes_results(tmp_path):
    done = run("run", str(tmp_path / "no wheels"), str(tmp_path / "results"), "--quick")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results" / "quick.json").read_text())
    assert "stock" in (tmp_path / "results" / "quick.md").read_text()
    assert (tmp_path / "results" / "scaling.png").is_file()


def test_without_arguments_the_script_prints_its_usage():
    done = run()
    assert done.returncode == 2
    assert "gpu.sh run WHEELS RESULTS --quick" in done.stderr

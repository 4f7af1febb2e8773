"""Many visitors at once for a short time; benchmarks/app_load.py does this for any time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_eight_visitors_get_their_own_answers():
    command = [sys.executable, "benchmarks/app_load.py", "--users", "8", "--minutes", "0.1", "--think", "0.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    summary = json.loads(done.stdout[done.stdout.index("\n{\n") :])
    assert done.returncode == 0, summary["first_errors"] or done.stderr
    assert summary["errors"] == 0
    assert summary["answers"] >= 8

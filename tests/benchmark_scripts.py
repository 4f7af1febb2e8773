"""Import the scripts of benchmarks/, which are not part of the package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "benchmarks"


def import_benchmark(name: str) -> ModuleType:
    """Return benchmarks/NAME.py as a module; it imports its neighbours by their bare names."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))

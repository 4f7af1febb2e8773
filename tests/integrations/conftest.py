"""Real tools, each in an environment of its own that `make test-integrations` makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

collect_ignore_glob = ["*_client.py"]  # programs for the tools' environments; --doctest-modules would import them
TOOLS = Path(os.environ.get("TEXT2SEG_TOOLS", Path(__file__).parents[2] / ".tools")).absolute()


@pytest.fixture(scope="session")
def tool():
    """A program of a tool's environment; tests are skipped if it is not there."""

    def find(name: str, program: str = "python") -> Path:
        path = TOOLS / name / "bin" / program
        if not path.exists():
            pytest.skip(f"{path} is missing; `make test-integrations` installs {name} there")
        return path

    return find

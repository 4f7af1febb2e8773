from __future__ import annotations

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("text2seg", deadline=None)  # timings never decide a test
hypothesis.settings.load_profile("text2seg")
os.environ["TEXT2SEG_TEXT_CACHE"] = "off"  # no test reads or writes the user's
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(torch.get_num_threads() // max(WORKERS, 2), 1))
if WORKERS > 1:  # the commands that tests run share the processors too
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


@pytest.fixture(scope="session")
def demo():
    """The bundled demo model, in float32 so that answers can be compared closely."""
    from text2seg import Text2Seg

    return Text2Seg.load("demo", device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def _own_checkpoints_folder(tmp_path, monkeypatch):
    """No test reads or writes the user's checkpoints."""
    monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(tmp_path / "checkpoints"))

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("text2seg", deadline=None)  # timings never decide a test
hypothesis.settings.load_profile("text2seg")
os.environ["TEXT2SEG_TEXT_CACHE"] = "off"  # no test reads or writes the user's
# One thread here and in the commands that tests run: how many there are may change the order in which sums are added,
# and where a test compares bytes, both sides must have as many.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def demo():
    """The bundled demo model, in float32 so that answers can be compared closely."""
    from text2seg import Text2Seg

    return Text2Seg.load("demo", device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def _own_checkpoints_folder(tmp_path, monkeypatch):
    """No test reads or writes the user's checkpoints."""
    monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(tmp_path / "checkpoints"))

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
from filelock import FileLock

hypothesis.settings.register_profile("text2seg", deadline=None)  # timings never decide a test
hypothesis.settings.load_profile("text2seg")
os.environ["TEXT2SEG_TEXT_CACHE"] = "off"  # no test reads or writes the user's
# One thread here and in the commands that tests run: how many there are may change the order in which sums are added,
# and where a test compares bytes, both sides must have as many.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


LONGEST = (  # beginning with the file that takes most processor time
    *("test_light_model", "test_onnx", "test_calibration", "test_demo_scores", "test_labelling_kill", "test_encoder"),
    *("test_engine_ray", "test_explain_experiments", "test_cli", "test_tracking", "test_app_load"),
    *("test_engine_ray_cli", "test_benchmarks_gpu", "test_storage_s3", "test_app_serve", "test_tiling"),
)
assert all((Path(__file__).parent / f"{name}.py").is_file() for name in LONGEST), "a file was renamed"


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that no worker is left alone with one of them at the end; each file's own
    order stays. Workers take files in this order with `--no-loadscope-reorder`."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def demo():
    """The bundled demo model, in float32 so that answers can be compared closely."""
    from text2seg import Text2Seg

    return Text2Seg.load("demo", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def alone_with_ray():
    """One test file at a time starts Ray on this machine: a cluster that starts beside another may end its driver."""
    with FileLock(Path(tempfile.gettempdir()) / "text2seg-tests-ray.lock"):
        yield


@pytest.fixture(autouse=True)
def _own_checkpoints_folder(tmp_path, monkeypatch):
    """No test reads or writes the user's checkpoints."""
    monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(tmp_path / "checkpoints"))

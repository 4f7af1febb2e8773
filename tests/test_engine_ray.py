"""The Ray engine with two workers and the demo model writes the same bytes as one process. Ray runs on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import threading

import pytest
from test_labelling_kill import SCENES, records

from text2seg.coco.dataset import read_dataset
from text2seg.config import LabelSettings, ModelSettings, PointSettings, RaySettings, Settings
from text2seg.errors import EngineError
from text2seg.labelling import ray_engine
from text2seg.labelling.engine import LocalEngine
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries

pytest.importorskip("ray", reason="the extra ray")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

from text2seg.labelling.ray_engine import RayEngine  # noqa: E402

ONTOLOGY = ontology_of_queries([each["name"] for each in read_dataset(SCENES / "dataset.json")["categories"][:2]])
MODEL = ModelSettings(device="cpu", precision="fp32")
TWO = RaySettings(min_workers=2, max_workers=2)
IMAGES = 7


@pytest.fixture(scope="module", autouse=True)
def _ray(alone_with_ray):
    """Start one Ray for all tests of this file. The workers take two of its processors."""
    ray = ray_engine.import_ray()
    ray.init("local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Some of the bundled scenes, a truncated JPEG, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("photos")
    scenes = sorted((SCENES / "images").iterdir())
    for scene in scenes[:IMAGES]:
        shutil.copy(scene, folder)
    (folder / "broken.jpg").write_bytes(scenes[0].read_bytes()[:2000])
    (folder / "poison.jpg").write_text("no image", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def expected(photos, demo, tmp_path_factory):
    """Bytes of the dataset that one process writes."""
    output = tmp_path_factory.mktemp("local") / "dataset.json"
    report = label_folder(demo, photos, ONTOLOGY, LabelSettings(output=output, batch=1))
    assert (report.failed, report.images) == (2, IMAGES + 2)
    assert report.found
    return output.read_bytes()


class ObservedEngine(RayEngine):
    """Ray engine that calls `seen` with each answer before it is delivered."""

    def __init__(self, seen=lambda answer: None):
        super().__init__(MODEL, ray=TWO, workers=1)
        self.seen = seen

    def _stream(self, *arguments):
        return ObservedDataset(super()._stream(*arguments), self.seen)


class ObservedDataset:
    """Ray dataset that calls `seen` with each row."""

    def __init__(self, dataset, seen):
        self.dataset, self.seen = dataset, seen

    def iter_rows(self):
        for row in self.dataset.iter_rows():
            self.seen(row)
            yield row


def label(demo, photos, output, engine=None, **more):
    return label_folder(demo, photos, ONTOLOGY, LabelSettings(output=output, batch=1), engine=engine, **more)


def test_a_job_whose_workers_are_killed_writes_the_bytes_of_one_process(demo, photos, expected, tmp_path):
    """A truncated JPEG and a file that is not an image are one failure each."""
    processes, killed = set(), set()

    def kill(answer):
        processes.add(answer["process"])
        if len(killed) < 2 and answer["process"] not in killed:
            killed.add(answer["process"])
            os.kill(answer["process"], signal.SIGKILL)

    output = tmp_path / "dataset.json"
    report = label(demo, photos, output, ObservedEngine(kill))
    assert output.read_bytes() == expected
    assert {failure.file_name for failure in report.failures} == {"broken.jpg", "poison.jpg"}
    assert len(killed) == 2
    assert len(processes) > 2, "two workers were begun with, so one that was killed was begun anew"
    assert os.getpid() not in processes


class StopsEarly:
    """Engine that is stopped after its first delivery."""

    def __init__(self, engine):
        self.engine, self.stop = engine, threading.Event()

    def run(self, work, batches, deliver, stopping):
        def first(records):
            deliver(records)
            self.stop.set()

        self.engine.run(work, batches, first, stopping)


@pytest.mark.parametrize("begins", ["ray", "local"])
def test_a_job_that_one_engine_began_resumes_with_the_other(demo, photos, expected, tmp_path, begins):
    engines, output = {"ray": ObservedEngine(), "local": LocalEngine(demo)}, tmp_path / "dataset.json"
    early = StopsEarly(engines.pop(begins))
    begun = label(demo, photos, output, early, stop=early.stop)
    assert begun.interrupted
    assert 1 <= begun.done < begun.images
    assert records(output) == begun.done
    assert not output.exists()
    (other,) = engines.values()
    label(demo, photos, output, other)
    assert output.read_bytes() == expected


def test_a_worker_with_other_settings_ends_the_job(demo, photos, tmp_path):
    wrong = RayEngine(MODEL, Settings(points=PointSettings(threshold=0.7)))
    with pytest.raises(EngineError, match=r"models differ .* settings.points.threshold: 0.8 → 0.7"):
        label(demo, photos, tmp_path / "dataset.json", wrong)

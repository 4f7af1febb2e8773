"""The parts of the Ray engine that need no Ray: gate, worker, addresses, settings, error messages."""

from __future__ import annotations

import json
import logging
import socket
import sys
from types import SimpleNamespace

import labelling_builders as jobs
import pytest

from text2seg.config import ModelSettings, RaySettings, Settings
from text2seg.errors import EngineError, SettingsError
from text2seg.io.storage import stamp_of
from text2seg.labelling import ray_engine, ray_worker
from text2seg.labelling.engine import LocalEngine, Task, Work, model_identity
from text2seg.labelling.ray_engine import _receive
from text2seg.labelling.ray_worker import DEATHS, Gate, Worker, pack, unpack


@pytest.fixture(autouse=True)
def _level():
    """Restore the log level, because a worker sets it for its process."""
    log = logging.getLogger("text2seg")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
def work(tmp_path):
    files = jobs.fill(tmp_path, 4)
    tasks = [Task(n, file, stamp_of(tmp_path / file), n != 1) for n, file in enumerate(files)]
    models = jobs.FakeModels()
    queries = models.check(["ball", "red car"])
    return SimpleNamespace(
        work=Work(tmp_path, queries, {"ball": 1, "red car": 2}, models=model_identity(models)),
        tasks=tasks,
        models=models,
    )


def worker(monkeypatch, made, gate):
    monkeypatch.setattr(ray_worker, "fitting_models", lambda *_: made.models)
    return Worker(made.work, ModelSettings(), Settings(), gate, threads=1, decode=2)


def call(one, tasks, number=0):
    columns = one({"number": [number], "tasks": [pack(tasks)]})
    return {name: values[0] for name, values in columns.items()}


def test_a_worker_returns_the_records_of_the_local_engine(monkeypatch, work):
    delivered = []
    LocalEngine(jobs.FakeModels()).run(work.work, [work.tasks], delivered.append, lambda: False)
    answer = call(worker(monkeypatch, work, Gate()), work.tasks)
    assert json.loads(answer["records"]) == json.loads(json.dumps(delivered[0]))
    assert [index for index, _ in json.loads(answer["records"])] == [0, 2, 3]  # the unwanted one is only computed
    assert work.models.batches == [[task.file for task in work.tasks]]
    assert answer["fault"] == ""


def test_a_closed_gate_lets_no_batch_begin(monkeypatch, work):
    gate = Gate()
    one = worker(monkeypatch, work, gate)
    call(one, work.tasks, number=5)
    assert gate.close() == {5}
    assert json.loads(call(one, work.tasks, number=6)["records"]) == []
    assert gate.close() == {5}
    assert len(work.models.batches) == 1


def test_a_batch_that_repeatedly_kills_workers_is_a_failure(monkeypatch, work):
    gate = Gate()
    for _ in range(DEATHS):
        gate.begin(3)  # and never ended
    answer = call(worker(monkeypatch, work, gate), work.tasks, number=3)
    records = json.loads(answer["records"])
    assert [index for index, _ in records] == [0, 2, 3]
    assert all(record["failure"]["stage"] == "segment" for _, record in records)
    assert "--retry-failures" in records[0][1]["failure"]["message"]
    assert work.models.batches == []
    assert gate.begin(3) == 1  # ended


def test_a_worker_with_other_models_reports_the_difference(work, tmp_path):
    one = Worker(work.work, ModelSettings(device="cpu"), Settings(), Gate(), threads=1, decode=1)
    answer = call(one, work.tasks)
    assert json.loads(answer["records"]) == []
    assert "its models differ" in answer["fault"]
    assert "text2seg: test" in answer["fault"]  # what the job's own models say of themselves
    elsewhere = Work(tmp_path / "gone", work.work.queries, work.work.categories)
    blind = Worker(elsewhere, ModelSettings(), Settings(), Gate(), threads=1, decode=1)
    assert "cannot see the folder" in call(blind, work.tasks)["fault"]


def test_file_names_that_are_not_unicode_survive_packing():
    tasks = [Task(3, "b\udcff/ä.png", (1, 2), True), Task(4, "c.png", (-1, -1), False)]
    assert pack(tasks).isascii()
    assert unpack(pack(tasks)) == tasks


def answer(number, records=(), fault=""):
    return {"number": number, "records": json.dumps(records), "fault": fault}


def test_each_batch_is_delivered_once_and_after_a_stop_only_begun_batches():
    delivered = []
    answers = iter([answer(1, [(4, {"a": 1})]), answer(1, [(4, {"a": 1})]), None, answer(0, []), answer(2, [(8, {})])])
    _receive(answers, {0, 1, 2, 3}, delivered.append, lambda: {1, 2})
    assert delivered == [[(4, {"a": 1})], [(8, {})]]
    assert list(answers) == []


def test_an_error_of_a_worker_ends_the_job():
    with pytest.raises(EngineError, match="no such device"):
        _receive(iter([answer(0, fault="no such device")]), {0}, print, set)


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:port", ":6379"])
def test_an_invalid_address_is_refused(address):
    with pytest.raises(SettingsError, match="host:port"):
        ray_engine._check_answers(address)


def test_an_address_without_a_cluster_raises():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
        ray_engine._check_answers(f"127.0.0.1:{port}")


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r'pip install "text2seg\[ray\]"'):
        ray_engine.import_ray()


@pytest.mark.parametrize(
    ("settings", "there", "says"),
    [
        (RaySettings(gpus_per_worker=0.5), {"CPU": 8.0}, "1 workers of 0.5 GPUs need 0.5, and this machine has 0"),
        (RaySettings(min_workers=3, max_workers=3), {"CPU": 2.0}, "3 workers of 1 CPUs need 3, and this machine has 2"),
    ],
)
def test_a_cluster_without_enough_resources_raises(settings, there, says):
    with pytest.raises(EngineError, match=says):
        ray_engine._check_room(SimpleNamespace(cluster_resources=lambda: there), settings)


def test_one_gpu_is_enough_for_two_workers_of_half_a_gpu():
    two = RaySettings(min_workers=2, max_workers=2, gpus_per_worker=0.5)
    ray_engine._check_room(SimpleNamespace(cluster_resources=lambda: {"CPU": 2.0, "GPU": 1.0}), two)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_workers": 0},
        {"min_workers": 3, "max_workers": 2},
        {"cpus_per_worker": 0},
        {"gpus_per_worker": -0.5},
        {"gpus_per_worker": 1.5},
        {"gpus_per_worker": float("nan")},
    ],
)
def test_invalid_ray_settings_are_refused(wrong):
    with pytest.raises(SettingsError, match=r"workers|per worker"):
        RaySettings(**wrong)

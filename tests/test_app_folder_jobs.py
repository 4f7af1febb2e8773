"""Folder jobs without a page: the queue, stopping and resuming, owners, and deletion."""

from __future__ import annotations

import stat
import threading
import time
from contextlib import closing
from dataclasses import replace

import labelling_builders as builders
import pytest

from text2seg.app.folder import jobs as module
from text2seg.app.folder import layout
from text2seg.app.folder.jobs import BATCH, WORKERS, Jobs
from text2seg.app.folder.review import ContactSheet
from text2seg.coco.dataset import read_dataset
from text2seg.config import LabelSettings
from text2seg.errors import ImageError, Text2SegError
from text2seg.io.names import listed
from text2seg.io.scan import list_images
from text2seg.labelling.job import label_folder
from text2seg.runtime import before_call

HANGS = 120  # seconds after which a test has hung; no test waits that long


class Gated(builders.FakeModels):
    """Models that wait at a gate before each batch, and signal when they reach it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.arrived, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def segment_sessions(self, sessions, queries):
        self.arrived.release()
        assert self.gate.acquire(timeout=HANGS)
        return super().segment_sessions(sessions, queries)

    def arrive(self):
        assert self.arrived.acquire(timeout=HANGS)

    def open_gate(self):
        self.gate.release(1000)


@pytest.fixture
def jobs():
    made = Jobs()
    yield made
    made.close()


def images(count=5):
    def fill(into):
        builders.fill(into, count)
        return ("one note",)

    return fill


def add(jobs, owner="anna", *, models=None, fill=None, name="photos.zip"):
    return jobs.add(owner, name, models or builders.FakeModels(), builders.ONTOLOGY, fill or images())


def reach(job, *states):
    deadline = time.monotonic() + HANGS
    while job.state not in states:
        assert time.monotonic() < deadline, f"still {job.state}: {job.message}"
        time.sleep(0.01)


def test_a_job_equals_the_command_line(jobs, tmp_path):
    job = add(jobs)
    reach(job, "done")
    assert (job.total, job.done, job.notes, job.failures) == (5, 5, ("one note",), [])
    builders.fill(tmp_path / "images", 5)
    settings = LabelSettings(output=tmp_path / "dataset.json", batch=BATCH, workers=WORKERS)
    label_folder(builders.FakeModels(), tmp_path / "images", builders.ONTOLOGY, settings)
    assert job.dataset.read_bytes() == (tmp_path / "dataset.json").read_bytes()


def test_the_folder_of_a_job_is_private_and_deleted_with_it(jobs):
    job = add(jobs)
    reach(job, "done")
    for folder in (job.folder.parent, job.folder, job.images):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    jobs.remove(job)
    assert not job.folder.exists()
    assert jobs.of("anna") == []


def test_all_folders_are_deleted_with_the_app():
    jobs = Jobs()
    job = add(jobs)
    reach(job, "done")
    jobs.close()
    assert not job.folder.parent.exists()
    with pytest.raises(Text2SegError, match="too many jobs"):
        add(jobs)


def test_a_job_is_found_by_its_visitor_only(jobs):
    job = add(jobs, "anna")
    assert jobs.find("anna", job.id) is job
    assert jobs.find("bert", job.id) is None
    assert jobs.find("", job.id) is None
    assert jobs.find("anna", "") is None
    assert jobs.of("bert") == []
    assert len(job.id) >= 24


def test_progress_and_time_left_come_with_the_batches(jobs):
    models = Gated()
    job = add(jobs, models=models)
    models.arrive()
    assert (job.state, job.done, job.seconds_left) == ("running", 0, None)
    models.gate.release()
    models.arrive()
    models.gate.release()
    models.arrive()
    deadline = time.monotonic() + HANGS
    while job.done < 2 * BATCH and time.monotonic() < deadline:
        time.sleep(0.01)
    assert job.done == 2 * BATCH
    assert job.seconds_left > 0
    models.open_gate()
    reach(job, "done")
    assert job.seconds_left == 0


def test_a_job_stops_between_two_calls_of_the_networks(jobs):
    """The images of that moment are labelled when the job is resumed."""

    class Calling(Gated):
        def segment_sessions(self, sessions, queries):
            self.arrived.release()
            assert self.gate.acquire(timeout=HANGS)
            before_call()  # as real networks do
            return builders.FakeModels.segment_sessions(self, sessions, queries)

    models = Calling()
    job = add(jobs, models=models)
    models.arrive()
    jobs.cancel(job)
    models.open_gate()
    reach(job, "stopped")
    assert (job.done, job.failures, models.batches) == (0, [], [])
    jobs.resume(job)
    reach(job, "done")
    assert (job.done, job.failures) == (5, [])


def test_a_stopped_job_is_finished_with_the_images_that_are_done(jobs, tmp_path):
    models = Gated()
    job = add(jobs, models=models)
    models.arrive()
    models.gate.release()
    models.arrive()
    jobs.cancel(job)
    models.gate.release()
    reach(job, "stopped")
    done, names = job.done, list_images(job.images).files
    assert 0 < done < 5
    jobs.finish(job)
    reach(job, "done")
    assert (job.total, job.done) == (done, done)
    left = 5 - done
    counted = f"{left} image{'s' * (left != 1)}"
    assert job.notes[-1] == f"left out when the job was finished early: {counted} ({listed(names[done:])})"
    assert [each["file_name"] for each in read_dataset(job.dataset)["images"]] == [*names[:done]]


def test_a_job_without_a_finished_image_cannot_be_finished(jobs):
    models = Gated()
    job = add(jobs, models=models)
    models.arrive()
    waiting = add(jobs, models=models)
    jobs.cancel(waiting)
    jobs.finish(waiting)
    assert waiting.state == "stopped"
    assert waiting.message
    models.open_gate()
    reach(job, "done")


def test_rejected_images_are_counted_apart(jobs):
    job = add(jobs)
    reach(job, "done")
    job.sheet = ContactSheet(job.dataset, job.images)
    assert "5 with segments, 0 without, 0 failed" in layout.status_html(job, 0)
    first = job.sheet.contents.images[0]
    job.marks.decide_image(first.file_name, "rejected")
    assert "4 with segments, 0 without, 1 rejected, 0 failed" in layout.status_html(job, 0)


def test_images_that_look_like_photographs_are_known(jobs):
    models = builders.FakeModels()
    job = add(jobs, models=models)
    reach(job, "done")
    assert "photographs" not in layout.status_html(job, 0)
    first, second, *_ = (image["file_name"] for image in read_dataset(job.dataset)["images"])
    models.photographs = (first, second)
    job = add(jobs, models=models)
    reach(job, "done")
    assert job.unfamiliar == {first, second}
    shown = layout.status_html(job, 0)
    assert "2 of 5 images look like photographs, and this model knows drawings only" in shown
    assert 'data-do="models"' in shown


def test_a_stopped_job_resumes(jobs):
    models = Gated()
    job = add(jobs, models=models)
    models.arrive()
    jobs.cancel(job)
    models.open_gate()
    reach(job, "stopped")
    assert job.done == BATCH
    jobs.resume(job)
    reach(job, "done")
    assert job.done == 5
    assert sorted(name for batch in models.batches for name in batch) == sorted(
        image["file_name"] for image in read_dataset(job.dataset)["images"]
    )


def test_queue_positions_and_cancelling(jobs):
    models = Gated()
    first = add(jobs, models=models)
    models.arrive()
    second, third = add(jobs), add(jobs, "bert")
    assert [jobs.ahead(job.id) for job in (first, second, third)] == [0, 1, 2]
    assert (second.state, third.state) == ("waiting", "waiting")
    jobs.cancel(second)
    assert second.state == "stopped"
    assert jobs.ahead(third.id) == 1
    models.open_gate()
    reach(third, "done")
    assert second.state == "stopped"


def test_jobs_of_one_visitor_are_limited(jobs, monkeypatch):
    monkeypatch.setattr(module, "PER_VISITOR", 2)
    first, _ = add(jobs), add(jobs)
    with pytest.raises(Text2SegError, match="delete one first"):
        add(jobs)
    add(jobs, "bert")
    jobs.remove(first)
    add(jobs)


def test_jobs_of_all_visitors_are_limited():
    with closing(Jobs(most=2)) as jobs:
        add(jobs, "anna")
        add(jobs, "bert")
        with pytest.raises(Text2SegError, match="later"):
            add(jobs, "carl")


def test_a_refused_job_leaves_no_files(jobs):
    def refuse(into):
        (into / "a.jpg").write_bytes(b"x")
        seen.append(into.parent)
        raise Text2SegError("photos.zip leads out of its folder")

    seen = []
    with pytest.raises(Text2SegError, match="leads out"):
        add(jobs, fill=refuse)
    assert jobs.of("anna") == []
    assert not seen[0].exists()


def test_a_full_disk_has_an_error_message(jobs):
    def full(into):
        raise OSError(28, "No space left on device")

    with pytest.raises(Text2SegError, match="No space left on device; try again later"):
        add(jobs, fill=full)
    assert jobs.of("anna") == []


def test_a_failed_image_is_listed(jobs):
    def fill(into):
        builders.fill(into, 3)
        (into / "broken.png").write_bytes(b"\x89PNG")
        return ()

    job = add(jobs, fill=fill)
    reach(job, "done")
    (line,) = job.failures
    assert line.startswith("broken.png")
    assert str(job.folder) not in line
    assert (job.report.failed, job.done, job.total) == (1, 4, 4)


def test_images_are_read_with_the_limits_of_the_app():
    def refuse(path, name):
        raise ImageError(f"{name} is too large")

    jobs = Jobs(load=refuse)
    job = add(jobs)
    reach(job, "failed")
    assert job.message.startswith("None of the 5 images could be labelled, so there is no result. The first: 0")
    assert len(job.failures) == 5
    assert job.failures[0].endswith(" is too large")
    jobs.close()


class Broken(builders.FakeModels):
    def provenance(self, settings=None):
        raise RuntimeError("out of order")


def test_a_job_that_fails_lets_the_next_one_run(jobs):
    failed = add(jobs, models=Broken())
    after = add(jobs)
    reach(after, "done")
    assert failed.state == "failed"
    assert failed.message == "RuntimeError: out of order"


def test_a_message_hides_the_folder_of_the_job(jobs, monkeypatch):
    def refuse(models, folder, *_, **__):
        raise Text2SegError(f"{folder.parent}/dataset.json cannot be written: the disk is full")

    monkeypatch.setattr(module, "label_folder", refuse)
    job = add(jobs)
    reach(job, "failed")
    assert job.message == "dataset.json cannot be written: the disk is full"


def test_a_running_job_is_deleted_when_it_stops(jobs):
    models = Gated()
    job = add(jobs, models=models)
    models.arrive()
    jobs.remove(job)
    assert jobs.find("anna", job.id) is None
    assert job.folder.exists()
    models.open_gate()
    after = add(jobs)
    reach(after, "done")
    assert not job.folder.exists()


def test_old_jobs_are_removed_unless_they_run(jobs):
    models = Gated()
    done, at_work = add(jobs), add(jobs, models=models)
    reach(done, "done")
    models.arrive()
    jobs.sweep()
    assert jobs.of("anna") == [done, at_work]
    done.touched = at_work.touched = time.monotonic() - module.KEEP - 1
    jobs.sweep()
    assert jobs.of("anna") == [at_work]
    assert not done.folder.exists()
    models.open_gate()
    reach(at_work, "done")


def test_opening_a_job_keeps_it(jobs):
    job = add(jobs)
    reach(job, "done")
    job.touched -= module.KEEP + 1
    jobs.find("anna", job.id)
    jobs.sweep()
    assert jobs.of("anna") == [job]


def test_the_status_shows_a_copy_of_the_job(jobs):
    models = Gated()
    job = add(jobs, models=models)
    models.arrive()
    seen = replace(job)
    models.open_gate()
    reach(job, "done")
    assert seen.state == "running"

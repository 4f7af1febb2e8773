"""Labelling jobs that go on while nobody looks: one worker, a queue, and a private folder for each.

A job is the same `label_folder` that the command line runs. Whoever holds the visitor's token finds the visitor's jobs
again, nobody else does. A job that nobody has looked at for `KEEP` seconds is removed with its folder.
"""

from __future__ import annotations

import atexit
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from text2seg.app.folder.decisions import Decisions
from text2seg.app.folder.sheet import ContactSheet
from text2seg.app.messages import words_of
from text2seg.config import LabelSettings
from text2seg.errors import Text2SegError
from text2seg.io.files import reason
from text2seg.labelling.engines.local import Batch, Deliver, Delivery, Engine, Load, LocalEngine, Work
from text2seg.labelling.job import LabelReport, label_folder, scan_of
from text2seg.ontology import Ontology, queries_of

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg

Fill = Callable[[Path], tuple[str, ...]]  # puts pictures into a folder, says what was left out
State = Literal["filling", "waiting", "running", "stopped", "done", "failed"]

KEEP = 12 * 3600.0
PER_VISITOR = 3
MOST = 24
SWEEP = 60.0  # seconds between two looks for old jobs
BATCH = WORKERS = 2  # few, for visitors who segment single pictures meanwhile

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """A folder of pictures, what to look for, and how far it is. Changed by its manager only."""

    id: str
    owner: str
    name: str
    folder: Path
    models: Text2Seg
    ontology: Ontology
    state: State = "filling"
    total: int = 0
    done: int = 0
    notes: tuple[str, ...] = ()
    failures: list[str] = field(default_factory=list)
    message: str = ""
    report: LabelReport | None = None
    decisions: Decisions = field(default_factory=Decisions)
    sheet: ContactSheet | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    is_removed: bool = False
    touched: float = field(default_factory=time.monotonic)
    began: tuple[float, int] = (0.0, 0)  # when this run began, and with how many done

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset.json"

    @property
    def seconds_left(self) -> float | None:
        """By the pace of this run; `None` where it is not known yet."""
        since, before = self.began
        fresh = self.done - before
        return (time.monotonic() - since) / fresh * (self.total - self.done) if fresh > 0 else None


class Jobs:
    """All jobs of the app. Safe to share between threads."""

    def __init__(self, *, load: Load | None = None) -> None:
        """`load` reads a picture as for `LocalEngine`; raises `ImageError` where it may not be read."""
        self._load = load
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running: Job | None = None
        self._is_closed = False
        self._folder: Path | None = None

    def add(self, owner: str, name: str, models: Text2Seg, ontology: Ontology, fill: Fill) -> Job:
        """Put pictures into a private folder and the job at the end of the queue.

        Raises:
            Text2SegError: the models do not know what is asked for, there are too many jobs, or `fill` refuses.
        """
        models.check(queries_of(ontology))
        job = self._reserve(owner, name, models, ontology)
        try:
            job.pictures.mkdir(mode=0o700)
            job.notes = fill(job.pictures)
            job.total = len(scan_of(job.pictures, _settings(job)))
        except OSError as error:
            self.remove(job)
            raise Text2SegError(f"the pictures cannot be kept here: {reason(error)}; please try again later") from error
        except BaseException:
            self.remove(job)
            raise
        self.resume(job)
        return job

    def of(self, owner: str) -> list[Job]:
        """A visitor's jobs, in the order of their making."""
        with self._changed:
            return [job for job in self._jobs.values() if job.owner == owner]

    def find(self, owner: str, number: str) -> Job | None:
        """The visitor's job of this id. `None` where there is none, or it is another visitor's."""
        job = next((job for job in self.of(owner) if job.id == number), None)
        if job:
            job.touched = time.monotonic()
        return job

    def ahead(self, number: str) -> int:
        """How many jobs come before a waiting one."""
        with self._changed:
            waiting = [job.id for job in self._queue]
            return waiting.index(number) + (self._running is not None) if number in waiting else 0

    def cancel(self, job: Job) -> None:
        """Stop after the pictures at work. What is done is kept, so that the job can go on."""
        with self._changed:
            job.stop.set()
            if job in self._queue:
                self._queue.remove(job)
                job.state = "stopped"

    def resume(self, job: Job) -> None:
        """To the end of the queue: a new job, or one that was stopped or failed."""
        with self._changed:
            if job.state not in ("filling", "stopped", "failed") or job.is_removed:
                return
            job.stop.clear()
            job.state, job.message = "waiting", ""
            self._queue.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="text2seg-jobs", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify_all()

    def remove(self, job: Job) -> None:
        """Forget the job and delete its folder, now or, where it is at work, as soon as it has stopped."""
        self.cancel(job)
        with self._changed:
            job.is_removed = True
            self._jobs.pop(job.id, None)
            if self._running is not job:
                shutil.rmtree(job.folder, ignore_errors=True)

    def close(self, timeout: float = 30.0) -> None:
        """Stop the worker and delete all folders."""
        with self._changed:
            self._is_closed = True
            for job in self._jobs.values():
                job.stop.set()
            self._changed.notify_all()
        if self._thread:
            self._thread.join(timeout)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove jobs that are not at work and that nobody has looked at for `KEEP` seconds."""
        oldest = time.monotonic() - KEEP
        with self._changed:
            old = [job for job in self._jobs.values() if job.touched < oldest and job.state in _RESTING]
        for job in old:
            _log.info("a job of %d pictures is old and removed", job.total)
            self.remove(job)

    def _reserve(self, owner: str, name: str, models: Text2Seg, ontology: Ontology) -> Job:
        self.sweep()
        with self._changed:
            mine = sum(job.owner == owner for job in self._jobs.values())
            if mine >= PER_VISITOR:
                raise Text2SegError(f"you have {mine} jobs here already; delete one of them first")
            if len(self._jobs) >= MOST or self._is_closed:
                raise Text2SegError("there are as many jobs here as there is room for; please try again later")
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="text2seg-jobs-"))  # mode 0700
            number = secrets.token_urlsafe(18)
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            job = self._jobs[number] = Job(number, owner, name, folder, models, ontology)
            return job

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._is_closed:
                    self._changed.wait(SWEEP)
                    self.sweep()
                if self._is_closed:
                    return
                job = self._running = self._queue.popleft()
                job.state, job.began = "running", (time.monotonic(), job.done)
            self._run(job)
            with self._changed:
                self._running = None
                if job.is_removed:
                    shutil.rmtree(job.folder, ignore_errors=True)

    def _run(self, job: Job) -> None:
        """Label, and leave in the job what came of it."""
        engine = _Reported(LocalEngine(job.models, workers=WORKERS, load=self._load), job)
        try:
            report = label_folder(job.models, job.pictures, job.ontology, _settings(job), stop=job.stop, engine=engine)
        except Exception as error:  # whatever it is, the jobs behind this one must not wait for ever
            if not isinstance(error, Text2SegError):
                _log.exception("a folder job failed")
            reason = words_of(error) if isinstance(error, Text2SegError) else f"{type(error).__name__}: {error}"
            job.message = " ".join(reason.replace(f"{job.folder}/", "").split())
            job.state = "failed"
            return
        job.report = report
        job.state = "stopped" if report.interrupted else "done"


class _Reported:
    """An engine whose deliveries are counted on their way to the journal."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        def counted(delivery: Delivery) -> None:
            deliver(delivery)
            self._job.failures += [record["failure"]["message"] for _, record in delivery if "failure" in record]
            self._job.done += len(delivery)

        self._engine.run(work, batches, counted, stopping)


_RESTING: tuple[State, ...] = ("stopped", "done", "failed")


def _settings(job: Job) -> LabelSettings:
    return LabelSettings(output=job.dataset, batch=BATCH, workers=WORKERS)

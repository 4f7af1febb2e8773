"""Labelling jobs that run in the background."""

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
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from text2seg.app.folder.review import ContactSheet
from text2seg.app.messages import message_of
from text2seg.coco.marks import Marks
from text2seg.config import LabelSettings
from text2seg.errors import StoppedError, Text2SegError
from text2seg.io.files import reason
from text2seg.io.images import load_image
from text2seg.io.names import counted, listed
from text2seg.labelling.engine import Batch, Deliver, Delivery, Engine, Load, LocalEngine, Work
from text2seg.labelling.job import LabelReport, label_folder, scan_folder
from text2seg.labelling.journal import read_records
from text2seg.labelling.output import journal_path
from text2seg.ontology import Ontology, queries_of
from text2seg.records import Image
from text2seg.runtime import watched

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg


Fill = Callable[[Path], tuple[str, ...]]
"""Puts images into a folder, and returns notes on skipped files."""
State = Literal["filling", "waiting", "running", "stopped", "done", "failed"]

KEEP = 12 * 3600.0
"""Seconds after which a job is removed if its visitor does not open it."""
PER_VISITOR = 3
"""Largest number of jobs of one visitor."""
SWEEP = 60.0
"""Seconds between two checks for old jobs."""
BATCH = WORKERS = 2
"""Small, so that visitors of the Segment tab get their turn."""

_log = logging.getLogger(__name__)


class TooManyJobsError(Text2SegError):
    """There are too many jobs. `is_of_owner` says whether the owner can make room by deleting one."""

    def __init__(self, message: str, *, is_of_owner: bool) -> None:
        super().__init__(message)
        self.is_of_owner = is_of_owner


@dataclass(slots=True, eq=False)
class Job:
    """A labelling job: images, ontology, state and progress. Only `Jobs` changes it."""

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
    unknown: tuple[str, ...] = ()
    """Sentences on the categories that are not looked for, because the models do not know them."""
    failures: list[str] = field(default_factory=list)
    unfamiliar: set[str] = field(default_factory=set)
    """File names of images that look like photographs, if the models know drawings only."""
    message: str = ""
    report: LabelReport | None = None
    marks: Marks = field(default_factory=Marks)
    sheet: ContactSheet | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    is_removed: bool = False
    touched: float = field(default_factory=time.monotonic)
    began: tuple[float, int] = (0.0, 0)  # time and number of finished images at the start of this run

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset.json"

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the speed of this run, or None if it is not known yet."""
        since, before = self.began
        fresh = self.done - before
        return (time.monotonic() - since) / fresh * (self.total - self.done) if fresh > 0 else None


class Jobs:
    """All jobs of the app. Thread-safe."""

    def __init__(self, *, most: int = 24, load: Load | None = None) -> None:
        """Make a list for the jobs of all visitors, `most` at a time.

        `load` reads an image, as for `LocalEngine`. It raises `ImageError` if the image is refused.
        """
        self._most, self._load = most, load or (lambda path, name: load_image(path, file_name=name))
        self._jobs: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running: Job | None = None
        self._is_closed = False
        self._folder: Path | None = None

    def add(
        self,
        owner: str,
        name: str,
        models: Text2Seg,
        ontology: Ontology,
        fill: Fill,
        *,
        unknown: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> Job:
        """Put images into a private folder, and the job at the end of the queue. `unknown` says what it leaves out,
        and `notes` what else its visitor should know.

        Raises:
            Text2SegError: the models do not know a query, there are too many jobs, or `fill` refuses the images.
        """
        models.check(queries_of(ontology))
        job = self._reserve(owner, name, models, ontology)
        job.unknown = unknown
        try:
            job.images.mkdir(mode=0o700)
            job.notes = (*notes, *fill(job.images))
            job.total = len(scan_folder(job.images, _settings(job)))
        except OSError as error:
            self.remove(job)
            raise Text2SegError(f"the images cannot be saved: {reason(error)}; try again later") from error
        except BaseException:
            self.remove(job)
            raise
        self.resume(job)
        return job

    def of(self, owner: str) -> list[Job]:
        """Return the jobs of a visitor, oldest first."""
        with self._changed:
            return [job for job in self._jobs.values() if job.owner == owner]

    def find(self, owner: str, number: str) -> Job | None:
        """Return a visitor's job by its id, or None if there is none or it belongs to another visitor."""
        with self._changed:
            job = self._jobs.get(number)
        if job is None or job.owner != owner:
            return None
        job.touched = time.monotonic()
        return job

    def owner_of(self, number: str) -> str:
        """Return the owner of a job by its id, or "" if there is no such job."""
        with self._changed:
            return self._jobs[number].owner if number in self._jobs else ""

    def ahead(self, number: str) -> int:
        """Return the number of jobs before a waiting one."""
        with self._changed:
            waiting = [job.id for job in self._queue]
            return waiting.index(number) + (self._running is not None) if number in waiting else 0

    def cancel(self, job: Job) -> None:
        """Stop a job after its current images. Finished images are kept, so that it can be resumed."""
        with self._changed:
            job.stop.set()
            if job in self._queue:
                self._queue.remove(job)
                job.state = "stopped"

    def resume(self, job: Job) -> None:
        """Put a new, stopped or failed job at the end of the queue."""
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

    def finish(self, job: Job) -> None:
        """Finish a stopped or failed job with the images that are done. The others are deleted from it. The message of
        the job says why that is not possible."""
        with self._changed:
            if job.state not in ("stopped", "failed") or job.is_removed:
                return
            try:
                done = {record.get("file") for _, record in read_records(journal_path(job.dataset))}
                files = scan_folder(job.images, _settings(job)).files
                left = [file for file in files if file not in done]
                if len(left) == len(files):
                    raise Text2SegError("no image is done yet; resume the job")
                for file in left:
                    (job.images / file).unlink()
            except (Text2SegError, OSError) as error:
                job.message = message_of(error) if isinstance(error, Text2SegError) else reason(error)
                return
            job.total = job.done = len(files) - len(left)
            early = f"left out when the job was finished early: {counted(len(left), 'image')} ({listed(left)})"
            job.notes += (early,) * bool(left)
        self.resume(job)

    def remove(self, job: Job) -> None:
        """Delete a job and its folder. A running job is stopped first."""
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
        """Remove resting jobs that nobody has opened for `KEEP` seconds."""
        oldest = time.monotonic() - KEEP
        with self._changed:
            old = [job for job in self._jobs.values() if job.touched < oldest and job.state in _RESTING]
        for job in old:
            _log.info("removed an old job of %d images", job.total)
            self.remove(job)

    def check_room(self, owner: str) -> None:
        """Raise `TooManyJobsError` if an owner cannot have another job now."""
        self.sweep()
        with self._changed:
            mine = sum(job.owner == owner for job in self._jobs.values())
            if mine >= PER_VISITOR:
                raise TooManyJobsError(f"you have {mine} jobs already; delete one first", is_of_owner=True)
            if len(self._jobs) >= self._most or self._is_closed:
                raise TooManyJobsError("the app has too many jobs now; try again later", is_of_owner=False)

    def _reserve(self, owner: str, name: str, models: Text2Seg, ontology: Ontology) -> Job:
        with self._changed:
            self.check_room(owner)
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
        """Label the images, and set the state of the job."""
        engine = _CountingEngine(LocalEngine(job.models, workers=WORKERS, load=partial(self._look, job)), job)
        try:
            report = label_folder(job.models, job.images, job.ontology, _settings(job), stop=job.stop, engine=engine)
        except Exception as error:  # the next jobs must not wait for ever
            if not isinstance(error, Text2SegError):
                _log.exception("a folder job failed")
            reason = message_of(error) if isinstance(error, Text2SegError) else f"{type(error).__name__}: {error}"
            job.message = " ".join(reason.replace(f"{job.folder}/", "").split())
            job.state = "failed"
            return
        job.report = report
        job.state = "stopped" if report.interrupted else "done"

    def _look(self, job: Job, path: Any, name: str) -> Image:
        """Read an image, and note whether it is unlike what the models know."""
        image = self._load(path, name)
        if job.models.is_unfamiliar(image):
            job.unfamiliar.add(name)
        return image


class _CountingEngine:
    """An engine that counts finished and failed images in its job, and stops between two calls of the networks. The
    images of that moment are labelled again when the job is resumed."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self._engine, self._job = engine, job

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        def counted(delivery: Delivery) -> None:
            deliver(delivery)
            self._job.failures += [record["failure"]["message"] for _, record in delivery if "failure" in record]
            self._job.done += len(delivery)

        def watch(_: int) -> None:
            if stopping():
                raise StoppedError("the job was stopped")

        with watched(watch), suppress(StoppedError):
            self._engine.run(work, batches, counted, stopping)


_RESTING: tuple[State, ...] = ("stopped", "done", "failed")


def _settings(job: Job) -> LabelSettings:
    return LabelSettings(output=job.dataset, batch=BATCH, workers=WORKERS)

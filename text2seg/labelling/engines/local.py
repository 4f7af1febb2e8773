"""Batches of tasks in, records out: where and how the models run is this file's business alone.

`LocalEngine` overlaps three things on one machine: threads decode the next batches, the calling thread runs the
models, one more thread encodes masks and delivers records. Another engine, say one that hands batches to a cluster,
needs `Work` and `Engine` only; job, journal and writer stay as they are.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from text2seg.coco.dataset import Encoding
from text2seg.io.images import load_image
from text2seg.io.storage import Place
from text2seg.labelling.record import Json, Masks, Task, failure_record, success_record
from text2seg.queries import Query
from text2seg.records import Image, Segmentation

if TYPE_CHECKING:
    from text2seg.pipeline import Session, Text2Seg

Batch = Sequence[Task]
Delivery = list[tuple[int, Json]]  # index of the task, its record
Deliver = Callable[[Delivery], None]
Load = Callable[[Any, str], Image]  # of the file's Path or Url, as the work's folder is one

AHEAD = 2  # batches that are decoded, or being decoded, before their turn; as many wait to be written

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """What is done to every image; plain values that can be sent to another process."""

    folder: Place
    queries: tuple[Query, ...]
    categories: dict[str, int]
    encoding: Encoding = "rle"
    keep_candidates: bool = False
    models: Mapping[str, Any] = field(default_factory=dict)  # what must run it, as `described` says it


class Engine(Protocol):
    """Runs batches. `deliver` gets the records of the wanted tasks of each, in any order, from one thread at a time;
    what it raises ends the run. Once `stopping` is true, no further batch is begun."""

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None: ...


class LocalEngine:
    """This machine's processors and one device."""

    def __init__(self, models: Text2Seg, *, workers: int = 4, load: Load | None = None) -> None:
        """
        Args:
            models: run in the thread that calls `run`.
            workers: threads that decode.
            load: from a path and a file name to an image; raises `ImageError` where it cannot.
        """
        self._models, self._workers, self._load = models, workers, load or _load

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        ahead: deque[tuple[Batch, list[Future[Image]]]] = deque()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="text2seg-decode")
        source = iter(batches)
        try:
            with _Writer(deliver) as writer:
                while not stopping():
                    while len(ahead) <= AHEAD and (batch := next(source, None)) is not None:
                        ahead.append((batch, [pool.submit(self._load, work.folder / t.file, t.file) for t in batch]))
                    if not ahead:
                        break
                    writer.put(self._segment(work, *ahead.popleft()))
        finally:
            pool.shutdown(cancel_futures=True)

    def run_batch(self, work: Work, batch: Batch) -> Delivery:
        """One batch from its files to the records of the wanted tasks. What is wrong with a file raises nothing."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="text2seg-decode") as pool:
            decoded = [pool.submit(self._load, work.folder / task.file, task.file) for task in batch]
            return self._segment(work, batch, decoded)()

    def _segment(self, work: Work, batch: Batch, decoded: list[Future[Image]]) -> Callable[[], Delivery]:
        """Run the models on a batch; gives what is left to do for its records, for the writer's thread."""
        failed: list[tuple[Task, str, BaseException]] = []
        good: list[tuple[Task, Image]] = []
        for task, future in zip(batch, decoded, strict=True):
            try:
                good.append((task, future.result()))
            except Exception as error:  # decoders let anything out, and one bad file must not end a night's run
                failed.append((task, "read", error))
        found, at_fault = self._run_models(work, good)
        failed += at_fault

        def records() -> Delivery:
            done = [(task.index, _record(work, task, *result)) for task, result in found if task.wanted]
            return done + [
                (task.index, failure_record(task, stage, error, work.folder / task.file))
                for task, stage, error in failed
                if task.wanted
            ]

        return records

    def _run_models(
        self, work: Work, images: list[tuple[Task, Image]]
    ) -> tuple[list[tuple[Task, tuple[Segmentation, list[Masks]]]], list[tuple[Task, str, BaseException]]]:
        """All images at once or, where that fails, one by one, so that only those at fault are lost."""
        try:
            results = self._batch(work, [image for _, image in images])
            return [(task, result) for (task, _), result in zip(images, results, strict=True)], []
        except Exception as error:
            _log.info("%s", ", ".join(task.file for task, _ in images), exc_info=True)
            reason: BaseException = error.with_traceback(None)  # its frames would hold on to the memory of the batch
        if len(images) == 1:
            return [], [(images[0][0], "segment", reason)]
        _log.info("a batch of %d failed, its images are done one by one (%s)", len(images), reason)
        done, failed = [], []
        for one in images:
            of_one, at_fault = self._run_models(work, [one])
            done += of_one
            failed += at_fault
        return done, failed

    def _batch(self, work: Work, images: list[Image]) -> list[tuple[Segmentation, list[Masks]]]:
        if not images:
            return []
        sessions = [self._models.open(image) for image in images]
        results = self._models.segment_sessions(sessions, work.queries)
        return [
            (result, [self._others(session, n, result) for n in range(len(result.segments))])
            if work.keep_candidates
            else (result, [])
            for session, result in zip(sessions, results, strict=True)
        ]

    def _others(self, session: Session, number: int, result: Segmentation) -> Masks:
        """The candidates of a segment that were not chosen, in the order of their scores' list."""
        segment = result.segments[number]
        offered = range(len(segment.candidates))
        return [session.candidate_mask(segment, k) for k in offered if k != segment.chosen]


def described(models: Text2Seg) -> dict[str, Any]:
    """All of the models that changes results, as plain values: kind of device, checkpoints, precision, settings."""
    return {"device": models.sam.device.type, **models.provenance()}


def _load(path: Place, name: str) -> Image:
    return load_image(path, file_name=name)


def _record(work: Work, task: Task, result: Segmentation, others: list[Masks]) -> Json:
    try:
        return success_record(task, result, work.categories, encoding=work.encoding, others=others)
    except Exception as error:
        return failure_record(task, "write", error, work.folder / task.file)


class _Writer:
    """A thread that makes records and delivers them. What goes wrong in it is raised where the next one is put."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._waiting: queue.Queue[Callable[[], Delivery] | None] = queue.Queue(AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="text2seg-write", daemon=True)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self._waiting.put(None)
            self._thread.join()
            if kind is None:
                self._raise()

    def put(self, records: Callable[[], Delivery]) -> None:
        self._raise()
        self._waiting.put(records)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (records := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._deliver(records())
                except BaseException as error:
                    self._error = error

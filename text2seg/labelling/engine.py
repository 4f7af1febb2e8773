"""The engine of a labelling job: batches of images in, one record per image out.

`Task` is one image, `Work` is what is done to every image, and an `Engine` runs batches of tasks. `LocalEngine` runs
them on this machine with three kinds of threads: some decode the next batches, the calling thread runs the models, and
one encodes masks and delivers the records. `ray_engine` runs the same batches on a cluster.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from logging import getLogger
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import rle
from text2seg.coco.dataset import annotations_of
from text2seg.coco.json_file import plain_number
from text2seg.config import POLYGON_TOLERANCE, Encoding, SaveKind
from text2seg.errors import StoppedError
from text2seg.io.images import decode_ahead, load_image
from text2seg.io.output_folder import OutputFolder
from text2seg.io.storage import Place, Stamp
from text2seg.io.writing import is_disk_error
from text2seg.queries import Query
from text2seg.records import Failure, Image, Segmentation
from text2seg.render.saving import image_files

if TYPE_CHECKING:
    from text2seg.session import Pipeline, Session

SAVED = "saved"  # key of a record: the names of the image files of `--save`
AHEAD = 2  # batches decoded in advance, and batches that wait for the writer

_log = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """One image of a batch.

    `stamp` is the size and modification time of the file when the job listed it. A task without `needs_record` has
    a record already: the models still process it, because results depend on the whole batch, and the new record is
    dropped.
    """

    index: int
    file: str
    stamp: Stamp
    needs_record: bool = True


Json = dict[str, Any]
Masks = Sequence[NDArray[np.bool_]]
Batch = Sequence[Task]
Delivery = list[tuple[int, Json]]  # pairs of a task's index and its record
Deliver = Callable[[Delivery], None]
Load = Callable[[Any, str], Image]  # reads an image from a Path or Url, and gives it a file name
Annotate = Callable[..., list[Json]]  # makes the annotations of a Segmentation, see `annotations_of`
Loaded = tuple[Task, Image]
Result = tuple[Task, Segmentation, list[Masks]]  # with the candidates that were not chosen, for each segment
Fault = tuple[Task, str, BaseException]  # with the stage that failed


@dataclass(frozen=True, slots=True)
class Work:
    """What is done to every image of a job. Plain values that can be sent to another process."""

    folder: Place
    queries: tuple[Query, ...]
    categories: dict[str, int]
    encoding: Encoding = "rle"
    polygon_tolerance: float = POLYGON_TOLERANCE
    keep_candidates: bool = False
    models: Mapping[str, Any] = field(default_factory=dict)  # what `model_identity` returns for the job's models
    save: tuple[SaveKind, ...] = ()
    images: OutputFolder | None = None  # folder of the image files that `save` names


class Engine(Protocol):
    """Runs batches of tasks.

    `deliver` is called with the records of each batch, for the tasks with `needs_record`, in any order, by one thread
    at a time. An exception in it ends the run. Once `stopping` returns True, no further batch is started.
    """

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None: ...


class LocalEngine:
    """Runs batches on this machine."""

    def __init__(
        self, models: Pipeline, *, workers: int = 4, load: Load | None = None, annotate: Annotate = annotations_of
    ) -> None:
        """
        Args:
            models: run in the thread that calls `run`.
            workers: number of threads that decode images.
            load: reads an image from a path and a file name; raises `ImageError` if it cannot.
            annotate: makes the annotations of a result; with the arguments of `annotations_of`.
        """
        self._annotate = annotate
        self._models, self._workers, self._load = models, workers, load or _load
        self.say_stage: Callable[[str], None] | None = None
        """Called with an image, or the first one of a batch, and what is done to it."""

    def run(self, work: Work, batches: Iterable[Batch], deliver: Deliver, stopping: Callable[[], bool]) -> None:
        with self._decode(work, batches, stopping) as decoded, _Writer(deliver) as writer:
            for batch, images in decoded:
                writer.put(self._segment(work, batch, images, stopping))

    def run_batch(self, work: Work, batch: Batch) -> Delivery:
        """Return the records of one batch, for the tasks with `needs_record`. A file that cannot be read becomes a
        failure record."""
        with self._decode(work, [batch]) as decoded:
            return self._segment(work, *next(decoded))()

    def _decode(
        self, work: Work, batches: Iterable[Batch], stopping: Callable[[], bool] = lambda: False
    ) -> closing[Generator[tuple[Batch, list[Future[Image]]], None, None]]:
        def load(task: Task) -> Image:
            return self._load(work.folder / task.file, task.file)

        return closing(decode_ahead(batches, load, threads=self._workers, ahead=AHEAD + 1, stopping=stopping))

    def _segment(
        self,
        work: Work,
        batch: Batch,
        decoding: list[Future[Image]],
        stopping: Callable[[], bool] = lambda: False,
    ) -> Callable[[], Delivery]:
        """Run the models on a batch. Returns a function that makes the records, for the writer's thread.

        Image files take long to draw. Once `stopping`, those of further images are not drawn, and these images get no
        record.
        """
        images: list[Loaded] = []
        unreadable: list[Fault] = []
        for task, future in zip(batch, decoding, strict=True):
            try:
                images.append((task, future.result()))
            except Exception as error:  # decoders raise anything, and one bad file must not end a long run
                unreadable.append((task, "read", error))
        results, faults = self._run_models(work, images)

        def records() -> Delivery:
            done = [
                (task.index, _record(work, task, found, others, self._annotate))
                for task, found, others in results
                if task.needs_record and not (work.images and stopping())
            ]
            failed = [
                (task.index, failure_record(task, stage, error, work.folder / task.file))
                for task, stage, error in [*unreadable, *faults]
                if task.needs_record
            ]
            return done + failed

        return records

    def _run_models(self, work: Work, images: list[Loaded]) -> tuple[list[Result], list[Fault]]:
        """Segment all images together. If that fails, segment them one by one, so that only the bad ones fail."""
        if not images:
            return [], []
        try:
            sessions = [self._open(*image, others=len(images) - 1) for image in images]
            found = self._models.segment_sessions(sessions, work.queries)
            return [
                (task, result, _other_candidates(session, result) if work.keep_candidates else [])
                for (task, _), session, result in zip(images, sessions, found, strict=True)
            ], []
        except StoppedError:  # no fault of an image
            raise
        except Exception as error:
            _log.info("%s", ", ".join(task.file for task, _ in images), exc_info=True)
            reason: BaseException = error.with_traceback(None)  # its frames would keep the batch in memory
        if len(images) == 1:
            return [], [(images[0][0], "segment", reason)]
        _log.info("a batch of %d images failed; they are segmented one by one (%s)", len(images), reason)
        results: list[Result] = []
        faults: list[Fault] = []
        for image in images:
            good, bad = self._run_models(work, [image])
            results += good
            faults += bad
        return results, faults

    def _open(self, task: Task, image: Image, *, others: int) -> Session:
        session = self._models.open(image)
        if (say := self.say_stage) is not None:
            name = task.file + (f" and {others} more" if others else "")
            session.say_stage = lambda stage: say(f"{name}: {stage}")
        return session


def _load(path: Place, name: str) -> Image:
    return load_image(path, file_name=name)


def _other_candidates(session: Session, result: Segmentation) -> list[Masks]:
    """Return for each segment the masks of the candidates that were not chosen, in the order of their scores' list."""
    return [
        [session.candidate_mask(segment, k) for k in range(len(segment.candidates)) if k != segment.chosen]
        for segment in result.segments
    ]


class _Writer:
    """A thread that makes records and delivers them. `put` raises the exception that ended the thread's work.

    After a `KeyboardInterrupt` only the current record is delivered. The thread always ends before the process does:
    Python aborts a process that ends while a thread uses OpenCV or torch.
    """

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._waiting: queue.Queue[Callable[[], Delivery] | None] = queue.Queue(AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="text2seg-write", daemon=True)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def put(self, records: Callable[[], Delivery]) -> None:
        self._raise()
        self._waiting.put(records)

    def _work(self) -> None:
        while (records := self._waiting.get()) is not None:
            if self._error is None:
                try:
                    self._deliver(records())
                except BaseException as error:
                    self._error = error

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._error = self._error or kind()
        self._waiting.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


# ---- records: what the journal keeps of an image, as plain JSON


def _record(work: Work, task: Task, result: Segmentation, others: list[Masks], annotate: Annotate) -> Json:
    try:
        saved = _save_images(work, task, result)  # before the record: an image with a record is not processed again
        record = success_record(
            task,
            result,
            work.categories,
            encoding=work.encoding,
            polygon_tolerance=work.polygon_tolerance,
            others=others,
            annotate=annotate,
        )
        return {**record, SAVED: saved} if work.images else record
    except Exception as error:
        if is_disk_error(error):  # stops the job, because all further images would fail too
            raise
        return failure_record(task, "write", error, work.folder / task.file)


def _save_images(work: Work, task: Task, result: Segmentation) -> list[str]:
    """Write the image files of one image and return their names. They begin with its path in the folder, suffix
    included, because `a.jpg` and `a.png` may both be there."""
    if work.images is None:
        return []
    saved = []
    *folders, name = [part for part in task.file.split("/") if part not in ("", ".", "..")]
    for folder, file, content in image_files(result, name, work.save):
        saved.append("/".join(filter(None, [folder, *folders, file])))
        work.images.write([(saved[-1], [content])])
    return saved


def success_record(
    task: Task,
    segmentation: Segmentation,
    categories: Mapping[str, int],
    *,
    encoding: Encoding,
    polygon_tolerance: float = POLYGON_TOLERANCE,
    others: Sequence[Masks] = (),
    annotate: Annotate = annotations_of,
) -> Json:
    """Return the record of a segmented image.

    Args:
        categories: category id of each query.
        others: with `--keep-candidates`, the masks of the candidates that were not chosen, for each segment.

    Raises:
        OutputError: the segmentation does not fit into a COCO file.
    """
    annotations = annotate(segmentation, categories, encoding=encoding, polygon_tolerance=polygon_tolerance)
    if others:
        written = (masks for segment, masks in zip(segmentation.segments, others, strict=True) if segment.area)
        for annotation, masks in zip(annotations, written, strict=True):
            annotation["attributes"]["candidates"] = [dict(rle.encode(mask)) for mask in masks]
    maps = segmentation.maps
    return _image_entry(task, segmentation.image.hw, zip(maps.queries, maps.presence, strict=True), annotations)


def skip_record(task: Task, hw: tuple[int, int], presence: Mapping[str, float]) -> Json:
    """Return the record of an image that was skipped, because the index shows none of the queries in it.

    Args:
        hw: height and width of the decoded image.
        presence: presence of each query in the index.
    """
    return {**_image_entry(task, hw, presence.items(), []), "skipped": True}


def _image_entry(
    task: Task, hw: tuple[int, int], presence: Iterable[tuple[str, float]], annotations: list[Json]
) -> Json:
    return {
        **_file_entry(task),
        "width": hw[1],
        "height": hw[0],
        "presence": {query: plain_number(score) for query, score in presence},
        "annotations": annotations,
    }


def failure_record(task: Task, stage: str, error: BaseException, path: Place) -> Json:
    """Return the record of an image that failed. The message names the file relative to the folder, so that it is the
    same if the folder moves."""
    failure = Failure.from_error(task.file, stage, error, path)
    return {**_file_entry(task), "failure": {"stage": failure.stage, "message": failure.message}}


def _file_entry(task: Task) -> Json:
    size, modified = task.stamp
    return {"file": task.file, "bytes": size, "mtime_ns": modified}


def stamp_of_record(record: Mapping[str, Any]) -> Stamp:
    """Return the stamp that the file had when its record was made."""
    return record["bytes"], record["mtime_ns"]


def model_identity(models: Pipeline) -> dict[str, Any]:
    """Return everything about the models that changes results: kind of device, checkpoints, precision, settings."""
    return {"device": models.device.type, **models.provenance()}

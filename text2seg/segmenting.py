"""Segment image files one by one: image files for each, and one COCO file for all."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from text2seg.coco.dataset import DatasetBuilder
from text2seg.coco.json_file import Json, json_chunks
from text2seg.coco.provenance import run_info
from text2seg.coco.reader import Dataset, attributes_of, read_dataset
from text2seg.config import OutputSettings, Settings
from text2seg.errors import ImageError, OutputError, PartialOutputError, Text2SegError
from text2seg.io.files import exists, is_file, status
from text2seg.io.images import load_image
from text2seg.io.names import counted, escaped, unique_names
from text2seg.io.output_folder import OutputFolder
from text2seg.io.writing import fault_of, is_disk_error
from text2seg.ontology import ontology_of_queries
from text2seg.queries import Query
from text2seg.records import Failure, Image, Segmentation
from text2seg.render.saving import image_files

if TYPE_CHECKING:
    from text2seg.session import Pipeline, Queries

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """Result of a run over files.

    Without `images`, nothing was written, not even the `dataset`. `written` are the image files. `found` is the number
    of images that each query was found in. `verdicts` say for each image of this run how each query did in it. A run
    that was `interrupted` has not seen all images; if the folder had a dataset of an earlier run, it `kept_earlier` and
    wrote none. `earlier` of the images were done by a run that was stopped. `deleted` are image files that only an
    earlier run wrote.
    """

    dataset: Path
    found: dict[str, int]
    written: list[Path] = field(default_factory=list)
    verdicts: dict[Path, dict[str, str]] = field(default_factory=dict)
    images: int = 0
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    kept_earlier: bool = False
    earlier: int = 0
    deleted: list[Path] = field(default_factory=list)


SLOW = 2
"""Seconds after which the progress bar of a single image is shown, and the stage of any image."""
DRAWN_EVERY = (0.5, 10)
"""Seconds between two drawings of a bar with a stage: on a terminal, and in a file."""
STOPPED = "stopped"
"""Entry of `info` of a dataset whose run did not see all images. `images` are all images of the run and `save` the
kinds of files; `done` has, of each finished image, `stamp`, its size and time of change, and `files`, what was written
of it. The next run with the same images and settings goes on from there."""


def segment_files(
    models: Pipeline,
    paths: Sequence[Path],
    queries: Queries,
    output: OutputSettings,
    *,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> Report:
    """Segment each file, write its image files as `output.save` says, and one COCO file for all.

    A file that cannot be segmented becomes a `Failure`; if none can be, nothing is written. A file that is given twice
    is segmented once. With `output.overwrite`, a run that saw all images replaces the COCO file of an earlier run, and
    deletes image files that only the earlier run wrote.

    If `stop` is set, the current image is the last one; a `KeyboardInterrupt` ends the run at once. In both cases the
    COCO file of the finished images is written, and the report says `interrupted`. The same run again
    does the other images, and those that changed or whose files are gone. If an earlier, finished run wrote a COCO
    file, it is kept instead, and so are the files of images that were not reached.

    Raises:
        QueryError: the queries cannot be used, whatever the image.
        OutputError: the output folder cannot be written, another process writes into it, or `output.overwrite` is not
            set and it has a COCO file of a run that was finished, or of other images or settings.
        PartialOutputError: the disk is full; the images that are done are in the COCO file.
    """
    with _folder(output, paths).alone():
        return _segment_files(models, paths, queries, output, progress=progress, stop=stop)


def _segment_files(
    models: Pipeline,
    paths: Sequence[Path],
    queries: Queries,
    output: OutputSettings,
    *,
    progress: bool,
    stop: threading.Event | None,
) -> Report:
    parsed = models.check(queries)
    names = [query.name for query in parsed]
    stopped = stopped_run(output, paths)
    report = Report(output.dataset, dict.fromkeys(names, 0))
    folder = _common_folder(paths)
    info = run_info(models.provenance(), folder=folder, dataset=report.dataset, ontology=ontology_of_queries(parsed))
    builder = DatasetBuilder(
        info=info, queries=names, encoding=output.segmentation, polygon_tolerance=output.polygon_tolerance
    )
    writer = _Writer(output, report, paths, goes_on=stopped is not None)
    unique = unique_names()
    done = _done_before(stopped, builder, folder) if stopped is not None else {}
    files = dict.fromkeys(paths)
    bar = tqdm(files, unit="image", delay=SLOW if len(files) == 1 else 0, disable=not progress)
    stages = Stages(bar)
    try:
        for path in stages.each(bar):
            if stop is not None and stop.is_set():
                report.interrupted = True
                break
            stem = unique(path.stem, "")
            try:
                name = _name(path, folder)
                if name in done:
                    writer.add_earlier(builder, *done.pop(name))
                    continue
                stamp = stamp_of(path)
                stages.say(f"reading {path.name}")
                image = load_image(path, image_id=report.images + 1, file_name=name)
                result = stages.segment(models, image, parsed)
            except (Text2SegError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError without memory
                report.failures.append(Failure.from_error(str(path), "segment", error, path))
                continue
            builder.add(result)
            report.images += 1
            report.verdicts[path] = {name: result.verdict(name) for name in names}
            for query in {segment.query for segment in result.segments}:
                report.found[query] += 1
            stages.say(f"writing the results of {path.name}")
            writer.write_images(path, stem, result, stamp)
        if report.images and not report.interrupted:
            writer.write_dataset(builder)
            writer.discard_earlier()
    except KeyboardInterrupt:
        report.interrupted = True
    except BaseException as error:
        try:  # keep the finished images; if that fails too, the first error is the one to raise
            writer.write_partial_dataset(builder, done)
            if report.kept_earlier:
                _log.warning("%s is still that of the earlier run", report.dataset)
        except Text2SegError as second:
            _log.warning("%s", second)
            raise error from None
        if isinstance(error, OutputError) and is_disk_error(error) and report.images and not report.kept_earlier:
            done_of = f"{writer.finished} of {counted(len(dict.fromkeys(paths)), 'image')}"
            raise PartialOutputError(
                f"{fault_of(error)}. {done_of} are done and in "
                f"{report.dataset}. Make room and run the same command again{' without --overwrite' * output.overwrite}"
                ": it does the others"
            ) from error
        raise
    finally:
        stages.close()
    if report.interrupted:
        writer.write_partial_dataset(builder, done)
    return report


class Stages:
    """Shows in a progress bar what is done to the current image, if that takes longer than `SLOW` seconds.

    A thread draws the bar, so that its clock goes on while a stage takes long.
    """

    def __init__(self, bar: tqdm[Any], note: Callable[[], str] = lambda: "") -> None:
        """Begin. `note` returns what the bar shows before the stage."""
        self._bar, self._note, self._stage, self._ended = bar, note, "", threading.Event()
        self._since, self._lock = time.monotonic(), threading.Lock()
        if not bar.disable:
            threading.Thread(target=self._draw, name="text2seg-stages", daemon=True).start()

    def say(self, stage: str) -> None:
        """Note the stage that begins."""
        self._stage = stage

    def segment(self, models: Pipeline, image: Image, queries: tuple[Query, ...]) -> Segmentation:
        """Segment an image, and say what is done to it."""
        session, name = models.open(image), image.file_name
        session.say_stage = lambda stage: self.say(f"{name}: {stage}")
        return models.segment_sessions([session], queries)[0]

    def next(self) -> None:
        """Note that an image is done and the next one begins."""
        with self._lock:
            self._stage, self._since = "", time.monotonic()
            self._bar.set_postfix_str(self._note(), refresh=False)

    def each(self, paths: Iterable[Path]) -> Iterator[Path]:
        """Yield the paths of images that are done one after the other."""
        for path in paths:
            yield path
            self.next()

    def close(self) -> None:
        """End the drawing; see `contextlib.closing`."""
        self._ended.set()

    def _draw(self) -> None:
        while not self._ended.wait(DRAWN_EVERY[not sys.stderr.isatty()]):
            with self._lock:
                if self._stage and time.monotonic() - self._since >= SLOW:
                    self._bar.delay = 0  # or a bar that waits would not end its line
                    self._bar.set_postfix_str(", ".join(filter(None, [self._note(), escaped(self._stage)])))


def stopped_run(
    output: OutputSettings, paths: Sequence[Path], queries: Sequence[Query] = (), settings: Settings | None = None
) -> Dataset | None:
    """Return the dataset of an earlier run that was stopped, if this run may go on with it. `queries` and `settings`
    are compared if they are given.

    Raises:
        OutputError: as `segment_files`, except for other models.
    """
    folder, name = _folder(output, paths), output.dataset.name
    if not output.overwrite and is_file(output.dataset, OutputError) and folder.is_ours(name):
        dataset = read_dataset(output.dataset)
        before = dataset["info"].get(STOPPED)
        if isinstance(before, Mapping):
            same = all(before.get(key) == value for key, value in _run_of(output, paths).items())
            if not same or (settings is not None and _made_with(dataset) != _as_json(queries, settings)):
                raise _of_another_run(dataset)
            return dataset
    folder.check_result(name, text=True)
    return None


def _made_with(dataset: Dataset) -> Json:
    """Return the wordings and settings of the run that wrote a dataset."""
    info = dataset["info"]
    return {"ontology": info.get("ontology"), "settings": info.get("provenance", {}).get("settings")}


def _as_json(queries: Sequence[Query], settings: Settings) -> Json:
    """Return the same of this run, as it is read from a file."""
    made_with = {"ontology": ontology_of_queries(queries).to_dict(), "settings": asdict(settings)}
    return dict(json.loads(json.dumps(made_with)))


def _of_another_run(stopped: Dataset) -> OutputError:
    return OutputError(
        f"{stopped.name} is of a stopped run with other images, queries, settings or weights. Run that command "
        "again to finish it, choose another --output, or add --overwrite to begin again"
    )


def _run_of(output: OutputSettings, paths: Sequence[Path]) -> Json:
    """Return the images of a run, in their order, and the kinds of files that it writes."""
    folder = _common_folder(paths)
    return {"images": [_name(path, folder) for path in dict.fromkeys(paths)], "save": list(output.save)}


def _common_folder(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else Path()


def _name(path: Path, folder: Path) -> str:
    return path.absolute().relative_to(folder).as_posix()


def stamp_of(path: Path) -> list[int]:
    """Return the size and the time of change of a file, to see whether it changed. Empty if there is no such file."""
    found = status(path, ImageError)
    return [] if found is None else [found.st_size, found.st_mtime_ns]


_Done = tuple[Json, Json, list[Json]]
"""An image of a stopped run: its entry in `STOPPED`, its entry in the dataset, and its annotations."""


def _done_before(stopped: Dataset, builder: DatasetBuilder, folder: Path) -> dict[str, _Done]:
    """Return by file name the images that a stopped run has done and that did not change since, if their files are
    there.

    Raises:
        OutputError: the stopped run had other queries, settings or models.
    """
    built, before = builder.build(), stopped["info"][STOPPED]
    info = {key: value for key, value in stopped["info"].items() if key != STOPPED}
    if info != built["info"] or stopped["categories"] != built["categories"]:
        raise _of_another_run(stopped)
    of_image: dict[int, list[Json]] = defaultdict(list)
    for annotation in stopped["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    output, done = Path(stopped.name).parent, before.get("done")
    finished: dict[str, _Done] = {}
    for image in stopped["images"]:
        name = image["file_name"]
        entry = done.get(name) if isinstance(done, Mapping) else None
        if not isinstance(entry, Mapping) or not (stamp := stamp_of(folder / name)) or stamp != entry.get("stamp"):
            continue
        if all(is_file(output / file, OutputError) for file in entry.get("files", ())):
            finished[name] = (dict(entry), image, of_image[image["id"]])
    return finished


def _folder(output: OutputSettings, inputs: Sequence[Path]) -> OutputFolder:
    return OutputFolder(output.output, command="segment", overwrite=output.overwrite, inputs=inputs)


class _Writer:
    """Writes the results of a run, and notes them in its report."""

    def __init__(self, output: OutputSettings, report: Report, inputs: Sequence[Path], *, goes_on: bool) -> None:
        self._output, self._report, self._folder = output, report, _folder(output, inputs)
        self._run, self._done, self._goes_on = _run_of(output, inputs), dict[str, Json](), goes_on

    def add_earlier(self, builder: DatasetBuilder, entry: Json, image: Json, annotations: Sequence[Json]) -> None:
        """Add an image that a stopped run has done."""
        builder.add_entries(image, annotations)
        self._done[image["file_name"]] = entry
        self._report.earlier += 1
        self._report.images += 1
        queries = {attributes_of(each).get("query") for each in annotations}
        for query in self._report.found:
            self._report.found[query] += query in queries

    def write_images(self, path: Path, stem: str, result: Segmentation, stamp: list[int]) -> None:
        """Write the image files of one image, which is done then. A file that cannot be written becomes a `Failure`."""
        files: list[str] = []
        failures = len(self._report.failures)
        for folder, name, content in image_files(result, stem, self._output.save):
            files.append(f"{folder}/{name}" if folder else name)
            try:
                self._report.written += self._folder.write([(files[-1], [content])])
            except OutputError as error:
                if is_disk_error(error):  # concerns all images, unlike a name that the disk refuses
                    for file in files[:-1]:  # of an image that is not done; the COCO file needs the room
                        self._folder.delete(file)
                        self._report.written.pop()
                    raise
                self._report.failures.append(Failure.from_error(str(path), "segment", error, path))
        if len(self._report.failures) == failures:
            self._done[result.image.file_name] = {"stamp": stamp, "files": files}

    @property
    def finished(self) -> int:
        """Number of images whose files are written."""
        return len(self._done)

    def write_dataset(self, builder: DatasetBuilder, **info: Any) -> None:
        """Write the COCO file, with more entries of its `info`."""
        file, dataset = self._report.dataset, builder.build()
        dataset["info"] |= info
        self._folder.write([(file.name, json_chunks(file, dataset))])

    def write_partial_dataset(self, builder: DatasetBuilder, done: Mapping[str, _Done]) -> None:
        """Write the COCO file of a run that did not see all images, unless there is none or an earlier run wrote
        one that this run does not continue. `done` are images of a stopped run that this one did not reach."""
        for each in done.values():
            self.add_earlier(builder, *each)
        if exists(self._report.dataset, OutputError) and not self._goes_on:
            self._report.kept_earlier = True
        elif self._report.images:
            self.write_dataset(builder, **{STOPPED: {**self._run, "done": self._done}})

    def discard_earlier(self) -> None:
        """Delete what only an earlier run wrote, if it may be replaced."""
        if self._output.overwrite:
            written = [*self._report.written, self._report.dataset]
            self._report.deleted = self._folder.discard_earlier(
                keep={path.relative_to(self._output.output).as_posix() for path in written}
            )

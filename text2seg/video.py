"""A video as a job: follow things through its frames, and write one COCO file with the numbers of their tracks.

The file has the form of TAO: the frames are images with `video_id` and `frame_index`, annotations have `track_id` and
`video_id`, and the lists `videos` and `tracks` are added. Readers of COCO ignore what they do not know.

Source: Dave et al., "TAO: A Large-Scale Benchmark for Tracking Any Object" (arXiv 2005.10356).
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from text2seg.coco.dataset import ENCODERS, category_entries, dataset_info, image_entry, numbered
from text2seg.coco.json_file import Json, json_chunks, plain_number
from text2seg.coco.provenance import encoding_entry, run_info
from text2seg.config import TrackSettings
from text2seg.errors import ImageError, OutputError, PartialOutputError, SettingsError, Text2SegError
from text2seg.io.files import exists, is_dir, reason
from text2seg.io.frames import Frames, open_frames
from text2seg.io.output_folder import OutputFolder
from text2seg.io.writing import fault_of, is_disk_error, output_errors
from text2seg.ontology import ontology_of_queries
from text2seg.records import Failure
from text2seg.render.overlays import numbered_overlay
from text2seg.render.saving import png

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg
    from text2seg.session import Queries
    from text2seg.tracking import TrackedFrame

OVERLAY = "overlay.mp4"
FRAMES_PER_SECOND = 10.0
"""Of the overlay, if the video has no number of its own: a folder of frames."""
VIDEO_ID = 1

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrackReport:
    """Result of a video.

    `frames` of about `total` frames are done. `tracks` has the first frame of each track by its number, for each query.
    `written` are the files, and `failures` frames that could not be read and were left out. A job that was
    `interrupted`, or whose video is `cut_off` (see `Frames.is_cut_off`) or has a frame of another size, the last of the
    `failures`, wrote what it had, unless it `kept_earlier` results.
    """

    dataset: Path
    total: int | None
    frames: int = 0
    tracks: dict[str, dict[int, int]] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    cut_off: bool = False
    ended_early: bool = False
    kept_earlier: bool = False


def check_output(source: Path, settings: TrackSettings) -> None:
    """Check before the models are loaded.

    Raises:
        OutputError: the results cannot be written, or an earlier run has written some and `overwrite` is not set.
        SettingsError: frames are to be saved, but are files already.
    """
    if "frames" in settings.save and is_dir(source, ImageError):
        raise SettingsError(f"--save frames is for video files; the frames in {source} are files already")
    folder = _folder(source, settings)
    folder.check_result(settings.dataset.name, text=True)
    if "overlay" in settings.save:
        folder.check(OVERLAY)


def track_video(
    models: Text2Seg,
    source: Path,
    queries: Queries,
    settings: TrackSettings | None = None,
    *,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> TrackReport:
    """Follow everything that the queries name through a video, and write the COCO file and the files of `save`.

    All files are put in place together at the end. Frames that cannot be read are left out. If the job is stopped,
    fails after the first frame, or the video has clearly fewer frames than its file says, the frames that are done are
    written, unless an earlier run has written a COCO file; then everything in the folder stays as it is.

    Args:
        source: a video file or a folder of frames.
        progress: show a progress bar.
        stop: if set, the current frame is finished, and the report says `interrupted`.

    Raises:
        ImageError: the video cannot be read, or no frame of it.
        QueryError, SettingsError: see `Text2Seg.track`.
        OutputError: a file cannot be written, or another process writes into the folder.
    """
    settings = settings or TrackSettings()
    with _folder(source, settings).alone():
        return _track_video(models, source, queries, settings, progress=progress, stop=stop)


def _track_video(
    models: Text2Seg,
    source: Path,
    queries: Queries,
    settings: TrackSettings,
    *,
    progress: bool,
    stop: threading.Event | None,
) -> TrackReport:
    check_output(source, settings)
    parsed = models.check(queries)
    frames = open_frames(source, settings.every)
    tracked = models.track(frames, parsed, tracker=settings.tracker, gap=settings.gap)
    info = run_info(
        models.provenance(),
        folder=settings.output if frames.is_file else source,
        dataset=settings.dataset,
        ontology=ontology_of_queries(parsed),
        **encoding_entry(settings.segmentation, settings.polygon_tolerance),
        tracker={"name": _tracker_name(models, settings), "gap": settings.gap, "every": settings.every},
    )
    with tempfile.TemporaryDirectory(prefix="text2seg-") as scratch:
        result = _Result(source, frames, [query.name for query in parsed], settings, Path(scratch))
        report = result.report
        try:
            for frame in tqdm(tracked, total=frames.total, unit="frame", disable=not progress):
                result.add(frame)
                if stop is not None and stop.is_set() and report.frames != frames.total:
                    report.interrupted = True
                    break
            else:
                report.cut_off = frames.is_cut_off(result.last)
        except BaseException as error:
            if report.frames and isinstance(error, ImageError):  # a frame of another size
                report.ended_early = True
                result.write(info, Failure.from_error(str(source), "read", error, source))
                return report
            report.interrupted = True
            try:  # keep the finished frames; if that fails too, the first error is the one to raise
                result.write(info)
                if report.kept_earlier:
                    _log.warning("%s is still that of the earlier run", report.dataset)
                elif report.frames and not (isinstance(error, OutputError) and is_disk_error(error)):
                    _log.warning("the first %d frames are in %s", report.frames, report.dataset)
            except PartialOutputError:
                raise
            except Text2SegError as second:
                _log.warning("%s", second)
                raise error from None
            if isinstance(error, OutputError) and is_disk_error(error) and report.frames and not report.kept_earlier:
                raise PartialOutputError(
                    f"{fault_of(error)}. The first {report.frames} frames are in {report.dataset}; the same command "
                    "with --overwrite begins again"
                ) from error
            raise
        result.write(info)
    return report


def _tracker_name(models: Text2Seg, settings: TrackSettings) -> str:
    from text2seg.tracking import has_memory

    if settings.tracker != "auto":
        return settings.tracker
    return "memory" if has_memory(models.sam) else "matching"


def _folder(source: Path, settings: TrackSettings) -> OutputFolder:
    return OutputFolder(settings.output, command="track", overwrite=settings.overwrite, inputs=[source])


class _Result:
    """Collects the annotations of a video, which are small, and writes its files; no frame is kept in memory.

    What `save` asks for is drawn into the folder `scratch`, until `write` puts all files in place.
    """

    def __init__(self, source: Path, frames: Frames, names: list[str], settings: TrackSettings, scratch: Path) -> None:
        self.report = TrackReport(settings.dataset, frames.total, tracks={name: {} for name in names})
        self._settings, self._frames, self._folder = settings, frames, _folder(source, settings)
        self._name = source.name or str(source)
        self._categories = {name: number for number, name in enumerate(names, start=1)}
        self._images: list[Json] = []
        self._annotations: list[Json] = []
        self._scratch = scratch
        self._drawn: list[str] = []
        self._overlay: Any = None

    @property
    def last(self) -> int:
        """Index of the last frame that was added."""
        return int(self._images[-1]["frame_index"])

    def add(self, frame: TrackedFrame) -> None:
        """Add a frame, and draw what `save` asks for."""
        entry = image_entry(frame.image) | {"video_id": VIDEO_ID, "frame_index": frame.index}
        encode = ENCODERS[self._settings.segmentation]
        found = [
            {
                "video_id": VIDEO_ID,
                "track_id": each.track_id,
                "category_id": self._categories[each.query],
                "segmentation": encode(each.mask, self._settings.polygon_tolerance),
                "area": int(each.mask.sum()),
                "bbox": list(each.box_xywh),
                "iscrowd": 0,
                "score": plain_number(each.score),
                "attributes": {"query": each.query, "score": plain_number(each.score)},
            }
            for each in frame.objects
        ]
        if "frames" in self._settings.save:
            self._keep(entry["file_name"], png(frame.image.pixels))
        if "overlay" in self._settings.save:
            self._draw(frame)
        self._annotations += numbered(found, first=len(self._annotations) + 1, image_id=entry["id"])
        self._images.append(entry)
        for each in frame.objects:
            self.report.tracks[each.query].setdefault(each.track_id, frame.index)
        self.report.frames += 1

    def write(self, info: Json, *failures: Failure) -> None:
        """Write all files together, and delete what only an earlier run wrote, if it may be replaced. `failures` are
        those besides the frames that could not be read.

        A job that was interrupted, or whose video is cut off, writes nothing over an earlier result.
        """
        report, folder = self.report, self._folder
        report.failures = [*self._frames.failures, *failures]
        is_whole = not (report.interrupted or report.cut_off or report.ended_early)
        report.kept_earlier = not is_whole and exists(report.dataset, OutputError)
        if not report.frames or report.kept_earlier:
            return
        if self._overlay is not None:
            self._overlay.release()
            self._drawn.append(OVERLAY)
        files = [(name, _chunks(self._scratch / name)) for name in self._drawn]
        dataset = (report.dataset.name, [*json_chunks(report.dataset, self._dataset(info))])
        try:
            self._check_overlay()
            report.written = [path for path in folder.write([*files, dataset]) if path != report.dataset]
        except OutputError as error:
            if not files or not is_disk_error(error):
                raise
            self._write_alone(dataset, error)
        if is_whole and self._settings.overwrite:
            written = [*report.written, report.dataset]
            folder.discard_earlier(keep={path.relative_to(folder.folder).as_posix() for path in written})

    def _check_overlay(self) -> None:
        """Raise `OutputError` if the overlay is not whole, of which OpenCV says nothing."""
        if self._overlay is None:
            return
        import cv2

        path = self._scratch / OVERLAY
        video = cv2.VideoCapture(str(path))
        frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        video.release()
        if frames < self.report.frames:
            fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise OutputError(f"{path} cannot be written: {reason(fault)}") from fault

    def _write_alone(self, dataset: tuple[str, list[bytes]], error: OutputError) -> None:
        """Write only the COCO file, for which a full disk may have room. Raises `error` if not."""
        try:
            self._folder.write([dataset])
        except OutputError:
            raise error from None
        raise PartialOutputError(
            f"{fault_of(error)}. {self.report.dataset} has the masks of the {self.report.frames} frames, but there is "
            "no room for what --save asks for. Make room, there or where TMPDIR says, and run the same command with "
            "--overwrite"
        ) from error

    def _dataset(self, info: Json) -> Json:
        height, width = self._images[0]["height"], self._images[0]["width"]
        fps = {} if self._frames.fps is None else {"fps": plain_number(self._frames.fps)}
        starts = [
            {"id": number, "category_id": self._categories[query], "video_id": VIDEO_ID}
            for query, tracks in self.report.tracks.items()
            for number in tracks
        ]
        return {
            "info": dataset_info({**info, "failures": [asdict(each) for each in self.report.failures]}),
            "licenses": [],
            "videos": [{"id": VIDEO_ID, "name": self._name, "width": width, "height": height, **fps}],
            "tracks": sorted(starts, key=lambda track: track["id"]),
            "images": self._images,
            "annotations": self._annotations,
            "categories": category_entries(self._categories),
        }

    def _keep(self, name: str, content: bytes) -> None:
        """Keep the content of a file until the end. Raises `OutputError` at once if it could not be put in place."""
        self._folder.check(name)
        path = self._scratch / name
        try:
            with output_errors(path):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
        except OutputError as error:
            if not is_disk_error(error):
                raise
            raise OutputError(
                f"{fault_of(error)}; make room there, or set the environment variable TMPDIR to a folder with more room"
            ) from error.__cause__
        self._drawn.append(name)

    def _draw(self, frame: TrackedFrame) -> None:
        import cv2

        pixels = numbered_overlay(frame.image, [(each.track_id, each.query, each.mask) for each in frame.objects])
        if self._overlay is None:
            fps = (self._frames.fps or FRAMES_PER_SECOND) / self._settings.every
            size = (pixels.shape[1], pixels.shape[0])
            self._overlay = cv2.VideoWriter(str(self._scratch / OVERLAY), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
            if not self._overlay.isOpened():
                raise OutputError("this OpenCV cannot write MP4 videos; leave --save overlay out")
        self._overlay.write(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk

"""Frames of a video: of a file, of a folder of images, or images in memory. They are read one by one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from text2seg.errors import ImageError, SettingsError
from text2seg.io.files import is_dir
from text2seg.io.images import ImageSource as Source
from text2seg.io.images import check_file, check_images, load_image
from text2seg.io.scan import list_images
from text2seg.records import Failure, Image

ImageSource = Source | Image
MOST_MISSING, MOST_MISSING_SHARE = 2, 0.05
"""A video may have fewer frames than its file says by the larger of this number and this share: some encoders count
frames that they drop."""

_ERRORS = 2  # OpenCV's level of messages that hides its warnings
_START_BYTES = 1 << 16
_MOST_FRAMES = 10**9  # what OpenCV says of streams is larger, or negative

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of a video, read while they are iterated over, each with its index in the video.

    A frame that cannot be read is left out. `failures` has those of the latest iteration, and the log names each.

    `total` is the number of frames that will be read, or an estimate, and `fps` the number of frames in a second of the
    video; None if unknown. `is_file` says that the frames are inside a file, and no files of their own; then
    `announced` is the number of frames that the file says it has, those that `every` skips included, or None.
    """

    name: str
    read: Callable[[], Iterator[tuple[int, str, Callable[[], Image]]]]
    """Yields index, name and reader of each frame. A reader is called before the next frame is asked for."""
    every: int = 1
    total: int | None = None
    fps: float | None = None
    is_file: bool = False
    announced: int | None = None
    failures: list[Failure] = field(default_factory=list)

    def is_cut_off(self, last: int) -> bool:
        """Return whether clearly fewer frames than announced were read, if `last` is the index of the last one."""
        if self.announced is None:
            return False
        return self.announced - (last + self.every) > max(MOST_MISSING, MOST_MISSING_SHARE * self.announced)

    def __iter__(self) -> Iterator[tuple[int, Image]]:
        hw = None
        self.failures.clear()
        for index, name, read in self.read():
            try:
                image = read()
            except ImageError as error:
                _log.info("%s: frame %d is left out: %s", self.name, index, error)
                self.failures.append(Failure.from_error(name, "read", error, f"{self.name}{os.sep}{name}"))
                continue
            hw = hw or image.hw
            if image.hw != hw:
                raise ImageError(
                    f"{self.name}: frame {index} ({image.file_name}) has {image.hw[1]} x {image.hw[0]} pixels, and the "
                    f"first has {hw[1]} x {hw[0]}; the frames of one video have one size"
                )
            yield index, image
        if hw is None and self.failures:
            raise ImageError(f"{self.name}: no frame can be read; the first: {self.failures[0].message}")


FrameSource = str | os.PathLike[str] | Iterable[ImageSource] | Frames


def open_frames(source: FrameSource, every: int = 1) -> Frames:
    """Open a video file, a folder of frames in the order of the numbers in their names, or images in memory.

    Args:
        every: read only the first of as many frames.

    Raises:
        ImageError: there is no such file or folder, it has no frames, or it is not a video.
        SettingsError: `every` is below 1.
    """
    if not isinstance(every, int) or every < 1:
        raise SettingsError(f"every must be a whole number of 1 or more, got {every!r}")
    if isinstance(source, Frames):
        return source
    if not isinstance(source, (str, os.PathLike)):
        check_images(source)
        return Frames("the frames", lambda: _of_images(source, every), every)
    path = Path(source)
    if is_dir(path, ImageError):
        files = sorted(list_images(path).files, key=_by_numbers)[::every]
        return Frames(str(path), lambda: _of_files(path, files, every), every, len(files))
    check_file(path)
    capture = _capture(path)
    count, fps = capture.get(_property("FRAME_COUNT")), capture.get(_property("FPS"))
    readable = capture.grab()
    capture.release()
    if not readable:
        raise ImageError(f"{path} has no frame that can be read; it may be damaged, or of a codec that OpenCV lacks")
    estimate = int(count) if 0 < count < _MOST_FRAMES else None
    announced = estimate if _has_a_count(path) else None
    total = None if estimate is None else -(-estimate // every)
    fps = fps if 0 < fps < 1000 else None
    return Frames(str(path), lambda: _of_video(path, every, announced), every, total, fps, True, announced)


def _has_a_count(path: Path) -> bool:
    """Return whether a video is of a format whose files say how many frames they have: MP4 and QuickTime, if not in
    fragments, and AVI. For others, OpenCV multiplies the duration with the frame rate, which is wrong if the sound is
    longer or the rate changes."""
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    return start[:4] == b"RIFF" or (
        start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") and b"mvex" not in start
    )


Reader = Callable[[], Image]


def _of_images(images: Iterable[ImageSource], every: int) -> Iterator[tuple[int, str, Reader]]:
    def read(source: ImageSource, number: int) -> Image:
        image = source if isinstance(source, Image) else load_image(source)
        name = image.file_name or f"{number * every:06d}.png"
        return replace(image, file_name=name, image_id=number + 1)

    for number, source in enumerate(islice(images, 0, None, every)):
        yield number * every, f"{number * every:06d}", partial(read, source, number)


def _of_files(folder: Path, files: Sequence[str], every: int) -> Iterator[tuple[int, str, Reader]]:
    for number, name in enumerate(files):
        yield number * every, name, partial(load_image, folder / name, image_id=number + 1, file_name=name)


def _of_video(path: Path, every: int, announced: int | None) -> Iterator[tuple[int, str, Reader]]:
    import cv2

    capture, index = _capture(path), 0

    def read(index: int, name: str) -> Image:
        decoded, pixels = capture.retrieve()
        if not decoded:
            raise ImageError(f"{path}: frame {index} cannot be decoded; the file may be damaged")
        return Image(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), name, index // every + 1)

    try:
        while capture.grab():
            if index % every == 0:
                name = f"frames/{path.stem}_{index:06d}.png"
                yield index, name, partial(read, index, name)
            index += 1
    finally:
        capture.release()
    if announced is not None and index < announced:
        _log.warning("%s: %d of about %d frames could be read; it may be damaged", path, index, announced)


def _capture(path: Path) -> Any:
    import cv2

    level = cv2.getLogLevel()
    cv2.setLogLevel(_ERRORS)  # the error below says what its warning says
    try:
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    finally:
        cv2.setLogLevel(level)
    if not capture.isOpened():
        raise ImageError(f"{path} cannot be read as a video; give a video file or a folder of frames")
    return capture


def _property(name: str) -> int:
    import cv2

    return int(getattr(cv2, f"CAP_PROP_{name}"))


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Sort key by which frame2.jpg comes before frame10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]

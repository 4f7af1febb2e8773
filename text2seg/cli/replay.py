"""`text2seg replay`: one mask made again from what its annotation records."""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg._version import __version__
from text2seg.cli.terminal import FAILED, log_to_terminal, say
from text2seg.errors import OutputError

if TYPE_CHECKING:
    from text2seg.review.replay import Replayed


@dataclass(frozen=True, slots=True)
class Replay:
    """Make one mask of a dataset again, with the weights, words and settings that it records, and compare.

    Ends with status 0 where points, choice of SAM's candidate and mask are the same, with 1 where they are not.
    Example: text2seg replay outputs/dataset.json --annotation 17
    """

    dataset: tyro.conf.Positional[Path]
    """A COCO file that text2seg wrote."""
    annotation: int
    """The id of the annotation."""
    images: Path | None = None
    """The folder of the images. Default: the dataset's own, then this one."""
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write an image of both masks side by side, with their points and where they differ."""
    overwrite: bool = False
    """Write over an image that is there."""
    clip: str | None = None
    """The file of the recorded CLIP, where it is neither known by name nor in the folder of checkpoints."""
    sam: str | None = None
    """The file of the recorded SAM, where it is neither known by name nor in the folder of checkpoints."""
    device: str = "auto"
    """auto, cpu, cuda, …; which one was used is not recorded, and another may differ in a few pixels."""
    compile: bool = False
    """Let torch compile SAM's encoder, for an annotation that was made so."""
    graphs: Path | None = None
    """Of an annotation by ONNX graphs (--runtime onnx): the folder of those graphs."""
    verbose: bool = False
    """Say what runs where, and why."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        from text2seg.coco.dataset import read_dataset
        from text2seg.coco.lookup import ImageFinder
        from text2seg.io.files import check_not_input, check_writable
        from text2seg.review.replay import replay

        if self.image:
            _kind(self.image)
            check_writable(self.image, overwrite=self.overwrite, flag="--image", inputs=[self.dataset])
        result = replay(
            self.dataset,
            self.annotation,
            images=self.images,
            clip=self.clip,
            sam=self.sam,
            device=self.device,
            compile=self.compile,
            graphs=self.graphs,
        )
        say(f"annotation {result.annotation_id}: {result.query!r} in {result.image.file_name}")
        say(f"points: {_points(result)}")
        say(f"candidate: {_choice(result)}")
        say(f"mask: {_mask(result)}")
        if not result.identical and result.made_by != __version__:
            say(f"it was made by text2seg {result.made_by}; this is {__version__}")
        if self.image:
            finder = ImageFinder(self.dataset, self.images, read_dataset(self.dataset)["info"])
            check_not_input(self.image, [finder.find(result.image.file_name)], flag="--image")
            _write(result, self.image)
            say(f"image: {self.image}")
        return 0 if result.identical else FAILED


def _points(result: Replayed) -> str:
    recorded, again = len(result.recorded_points), result.rebuilt_points
    if result.points_identical:
        return f"identical ({recorded})"
    if again is None:
        return f"{recorded} recorded, but this time CLIP does not find the thing"
    if isinf(result.points_distance):
        return f"{recorded} recorded, {len(again)} now; one side has no positive or no negative ones"
    return f"{recorded} recorded, {len(again)} now, up to {result.points_distance:.2f} pixels apart"


def _choice(result: Replayed) -> str:
    if result.rebuilt_chosen is None:
        return f"{result.recorded_chosen + 1} recorded"
    if result.rebuilt_chosen == result.recorded_chosen:
        return f"identical ({result.recorded_chosen + 1})"
    return f"{result.recorded_chosen + 1} recorded, {result.rebuilt_chosen + 1} chosen now"


def _mask(result: Replayed) -> str:
    pixels = result.recorded.size
    if result.mask_identical:
        return f"identical ({int(result.recorded.sum()):,} of {pixels:,} pixels)"
    return f"{result.differing_pixels:,} of {pixels:,} pixels differ, IoU {result.iou:.4f}"


def _kind(path: Path) -> str:
    """What Pillow calls the format of this name; raises `OutputError` where it is none that is written here."""
    from PIL import Image

    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise OutputError(f"{path}: images are written as .png, .jpg or .webp")
    return kind


def _write(result: Replayed, path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    from text2seg.io.files import write_atomically
    from text2seg.render.comparison import compared

    pixels = compared(
        result.image,
        result.query,
        (result.recorded, result.recorded_points),
        (result.rebuilt, result.rebuilt_points),
    )
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, _kind(path))
    write_atomically(path, [buffer.getvalue()])

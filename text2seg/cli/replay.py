"""`text2seg replay`: reproduce a mask from the record of its annotation."""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg._version import __version__
from text2seg.cli.terminal import FAILED, log_to_terminal, say, waiting
from text2seg.errors import DatasetError, OutputError
from text2seg.io.files import open_file
from text2seg.settings_fields import check_device_name

if TYPE_CHECKING:
    from text2seg.review.replay import Replayed


@dataclass(frozen=True, slots=True)
class Replay:
    """Reproduce one mask of a dataset with the recorded weights, query and settings, and compare.

    The exit status is 0 if points, chosen candidate and mask are the same, else 1.

    Example: text2seg replay outputs/dataset.json --annotation 17
    """

    dataset: tyro.conf.Positional[Path]
    """COCO file that text2seg wrote."""
    annotation: int
    """Id of the annotation."""
    images: Path | None = None
    """Folder of the images. Default: the folder of the dataset, the one it records, and the current one."""
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write an image of both masks side by side, with their points and differences."""
    overwrite: bool = False
    """Replace an existing image."""
    clip: str | None = None
    """File of the recorded CLIP, if it is neither a known checkpoint nor in the folder of checkpoints."""
    sam: str | None = None
    """File of the recorded SAM, if it is neither a known checkpoint nor in the folder of checkpoints."""
    device: str = "auto"
    """auto, cpu, cuda, … The device is not recorded, and another one may change a few pixels."""
    compile: bool = False
    """Compile SAM's encoder, for an annotation that was made with --compile."""
    graphs: Path | None = None
    """Folder of the ONNX graphs, for an annotation that was made with --runtime onnx."""
    verbose: bool = False
    """Log which models run where."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        check_device_name(self.device)
        open_file(self.dataset, DatasetError).close()
        from text2seg.coco.dataset import read_dataset
        from text2seg.coco.lookup import ImageFinder
        from text2seg.coco.provenance import annotation_with_id
        from text2seg.io.writing import check_not_input, check_writable

        if self.image:
            _image_format(self.image)
            check_writable(self.image, overwrite=self.overwrite, flag="--image", inputs=[self.dataset])
        dataset = read_dataset(self.dataset)
        image_id = annotation_with_id(dataset, self.annotation)["image_id"]
        finder = ImageFinder(self.dataset, self.images, dataset["info"])
        for name in (entry["file_name"] for entry in dataset["images"] if entry["id"] == image_id):
            finder.find(name)  # before the models are loaded
        with waiting("loading the models and making the mask again"):
            from text2seg.review.replay import replay

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
            say(f"the annotation was made by text2seg {result.made_by}; this is {__version__}")
        if self.image:
            check_not_input(self.image, [finder.find(result.image.file_name)], flag="--image")
            _write(result, self.image)
            say(f"image: {self.image}")
        return 0 if result.identical else FAILED


def _points(result: Replayed) -> str:
    recorded, again = len(result.recorded_points), result.rebuilt_points
    if result.points_identical:
        return f"identical ({recorded})"
    if again is None:
        return f"{recorded} recorded, but now CLIP does not find the query"
    if isinf(result.points_distance):
        return f"{recorded} recorded, {len(again)} now; one set lacks positive or negative points"
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


def _image_format(path: Path) -> str:
    """Return Pillow's name of the file's format. Raises `OutputError` unless it is PNG, JPEG or WebP."""
    from PIL import Image

    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise OutputError(f"{path}: the image must be .png, .jpg or .webp")
    return kind


def _write(result: Replayed, path: Path) -> None:
    from io import BytesIO

    from PIL import Image

    from text2seg.io.writing import write_atomically
    from text2seg.render.panels import compared

    pixels = compared(
        result.image,
        result.query,
        (result.recorded, result.recorded_points),
        (result.rebuilt, result.rebuilt_points),
    )
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, _image_format(path))
    write_atomically(path, [buffer.getvalue()])

"""`text2seg convert`: a COCO file into the format of another tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from text2seg.cli.terminal import log_to_terminal, say


@dataclass(frozen=True, slots=True)
class Convert:
    """Write a COCO file in the format of another tool.

    Example: text2seg convert outputs/dataset.json --to yolo-seg --output yolo --images .
    """

    dataset: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """COCO file with masks, ours or anyone's."""
    to: Literal["yolo-seg", "voc-png", "labelme"]
    """yolo-seg: a text file of polygons for each image; voc-png: Pascal VOC's images of classes and things;
    labelme: a JSON file of polygons for each image."""
    output: Path
    """Folder for the files, new or empty."""
    images: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder that the file names in FILE start from; the images are then copied too."""
    overwrite: bool = False
    """Write into a folder that is not empty: files of the same names are replaced, others stay."""
    verbose: bool = False
    """Say more."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        from text2seg.coco.convert import convert
        from text2seg.coco.dataset import read_dataset

        done = convert(read_dataset(self.dataset), self.to, self.output, images=self.images, overwrite=self.overwrite)
        for note in done.notes:
            say(f"note: {note}")
        say(f"{self.output}: {done.annotations} masks of {done.images} image{'s' * (done.images != 1)} as {self.to}")
        return 0

"""`text2seg convert`: write a COCO file in the format of another tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from text2seg.cli.terminal import log_to_terminal, say
from text2seg.coco.convert import FORMATS, convert
from text2seg.coco.dataset import read_dataset
from text2seg.config import POLYGON_TOLERANCE
from text2seg.io.names import counted

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]

_FORMATS_HELP = "; ".join(f"{each.name}: {each.writes.replace('`', '')}" for each in FORMATS.values()) + "."


@dataclass(frozen=True, slots=True)
class Convert:
    """Write a COCO file in the format of another tool.

    Example: text2seg convert outputs/dataset.json --to yolo-seg --output yolo --images .
    """

    dataset: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """COCO file with masks, of text2seg or any other tool."""
    to: Annotated[FormatName, tyro.conf.arg(help=_FORMATS_HELP)]
    output: Path
    """New or empty folder for the files."""
    images: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder of the images. If given, the images are copied too."""
    polygon_tolerance: float = POLYGON_TOLERANCE
    """How far, in pixels, a polygon may be off the edge of its mask, so that it has few corners. 0 is exact. The IoU
    with the mask is at least 0.98. Polygons of the COCO file stay as they are."""
    overwrite: bool = False
    """Write into a folder that is not empty; files of the same names are replaced, others are kept."""
    verbose: bool = False
    """Log more."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        done = convert(
            read_dataset(self.dataset),
            self.to,
            self.output,
            images=self.images,
            overwrite=self.overwrite,
            polygon_tolerance=self.polygon_tolerance,
        )
        for note in done.notes:
            say(f"note: {note}")
        say(f"{self.output}: {counted(done.annotations, 'mask')} of {counted(done.images, 'image')} as {self.to}")
        return 0

"""`text2seg report`: write the review page of a dataset."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from text2seg.cli.terminal import PARTLY, log_to_terminal, say
from text2seg.errors import ImageError, SettingsError
from text2seg.io.names import counted


@dataclass(frozen=True, slots=True)
class Report:
    """Write an HTML page that shows the images and masks of a COCO dataset, the most uncertain first.

    Works for any COCO file. For files of text2seg, the page explains the uncertainty of each mask.

    Example: text2seg report outputs/dataset.json --images photos
    """

    dataset: tyro.conf.Positional[Path]
    """COCO file."""
    images: Path | None = None
    """Folder of the images. Default: the folder of the dataset, the one it records, and the current one."""
    marks: Path | None = None
    """Marks of this dataset that the page begins with: a file that a page or the app gave."""
    output: Path = Path("outputs/report.html")
    """HTML file to write."""
    limit: int = 500
    """Number of images on the page, the most uncertain first; the summary counts all."""
    image_side: int = 360
    """Longer side of the images on the page, in pixels. A click shows an image as large as the window; more pixels show
    more there, and make the file larger."""
    overwrite: bool = False
    """Replace an existing page."""
    verbose: bool = False
    """Log which images cannot be shown, and why."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.limit < 1:
            raise SettingsError(f"limit must be 1 or more, got {self.limit}")
        from text2seg.io.files import check_is_dir
        from text2seg.review import write_review

        if self.images is not None:
            check_is_dir(self.images, ImageError, flag="--images")
        review = write_review(
            self.dataset,
            self.output,
            images=self.images,
            marks=self.marks,
            limit=self.limit,
            image_side=self.image_side,
            overwrite=self.overwrite,
            progress=True,
        )
        left_out = f", {review.left_out} less uncertain left out (--limit)" if review.left_out else ""
        if review.unseen:
            where = f"not in {self.images}" if self.images else "not found (name their folder with --images)"
            has = "has" if review.unseen == 1 else "have"
            without = f"{review.unseen} of {counted(review.shown, 'image')} {has} no picture"
            say(f"{without}: {where}, or damaged; --verbose names them", file=sys.stderr)
        say(f"{counted(review.shown, 'image')} on the page{left_out}")
        say(f"page: {review.path}")
        return PARTLY if review.unseen else 0

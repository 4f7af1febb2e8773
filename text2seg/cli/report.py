"""`text2seg report`: a page on which a person reviews a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from text2seg.cli.terminal import log_to_terminal, say
from text2seg.errors import ImageError


@dataclass(frozen=True, slots=True)
class Report:
    """Write a page (one HTML file) that shows what is in a COCO dataset, the most doubtful images first.

    Works for any COCO file; what text2seg writes beside its masks says why something is doubtful.
    Example: text2seg report outputs/dataset.json --images photos
    """

    dataset: tyro.conf.Positional[Path]
    """The COCO file."""
    images: Path | None = None
    """The folder of the images. Default: the dataset's own, then this one."""
    output: Path = Path("report.html")
    """The page."""
    limit: int = 500
    """So many images are shown, the most doubtful ones; all are counted."""
    overwrite: bool = False
    """Write over a page that is there."""
    verbose: bool = False
    """Say what cannot be shown, and why."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        from text2seg.io.files import check_is_dir
        from text2seg.review import write_review

        if self.images is not None:
            check_is_dir(self.images, ImageError, flag="--images")
        review = write_review(
            self.dataset,
            self.output,
            images=self.images,
            limit=self.limit,
            overwrite=self.overwrite,
            progress=True,
        )
        left_out = f", {review.left_out} less doubtful ones left out (--limit)" if review.left_out else ""
        say(f"{review.shown} image{'s' * (review.shown != 1)} shown{left_out}")
        if review.unseen:
            say(f"{review.unseen} could not be shown; say with --images where the images lie")
        say(f"page: {review.path}")
        return 0

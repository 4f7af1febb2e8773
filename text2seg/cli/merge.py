"""`text2seg merge`: merge COCO files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from text2seg.cli.terminal import exit_status, say
from text2seg.errors import DatasetError
from text2seg.io.names import counted, listed


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge COCO files with the same categories, such as the shards of a labelling job, or apply the marks of a review.

    Example: text2seg merge part1.json part2.json --output dataset.json
    """

    datasets: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="")]
    ]
    """COCO files to merge."""
    output: Path
    """COCO file to write."""
    marks: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """Marks that a person downloaded from a page of text2seg report; repeat for more. Rejected annotations are left
    out, corrected categories changed, and both corrected and accepted annotations get the attribute "review"."""
    overwrite: bool = False
    """Replace an existing output."""

    def run(self) -> int:
        from text2seg.coco.dataset import merge_files
        from text2seg.coco.shards import missing_shards, shards_in
        from text2seg.io.writing import check_writable

        if not self.datasets:
            raise DatasetError("nothing to merge: name at least one COCO file")
        check_writable(self.output, overwrite=self.overwrite, inputs=[*self.datasets, *self.marks], text=True)
        merged, marks = merge_files(self.datasets, self.output, marks=self.marks)
        for path, each in zip(self.marks, marks, strict=True):
            say(f"{path}: {each.count()}")
        say(f"{counted(len(merged['images']), 'image')}, {counted(len(merged['annotations']), 'annotation')}")
        say(f"COCO file: {self.output}")
        # the marks of one shard may be applied before all are merged
        missing = missing_shards(shards_in([merged["info"]])) if len(self.datasets) > 1 or not self.marks else []
        if missing:
            say(
                f"text2seg: {self.output} lacks the images of shard{'s' * (len(missing) > 1)} {listed(missing)}; merge "
                "again with all shards and --overwrite",
                file=sys.stderr,
            )
        return exit_status(len(merged["images"]), len(missing))

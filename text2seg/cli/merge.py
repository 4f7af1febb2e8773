"""`text2seg merge`: merge COCO files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from text2seg.cli.terminal import say
from text2seg.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Merge:
    """Merge COCO files with the same categories, such as the shards of a labelling job.

    Example: text2seg merge part1.json part2.json --output dataset.json
    """

    datasets: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="")]
    ]
    """COCO files to merge."""
    output: Path
    """COCO file to write."""
    overwrite: bool = False
    """Replace an existing output."""

    def run(self) -> int:
        from text2seg.coco.dataset import merge_files
        from text2seg.io.writing import check_writable

        if not self.datasets:
            raise DatasetError("nothing to merge: name at least one COCO file")
        check_writable(self.output, overwrite=self.overwrite, inputs=self.datasets, text=True)
        merged = merge_files(self.datasets, self.output)
        say(f"{len(merged['images'])} images, {len(merged['annotations'])} annotations")
        say(f"COCO file: {self.output}")
        return 0

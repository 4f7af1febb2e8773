"""`text2seg merge`: the shards of a job as one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from text2seg.cli.terminal import say
from text2seg.errors import DatasetError


@dataclass(frozen=True, slots=True)
class Merge:
    """Put several COCO files with the same categories together, as the shards of a labelling job.

    Example: text2seg merge part1.json part2.json --output dataset.json
    """

    datasets: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="")]
    ]
    """COCO files."""
    output: Path
    """The file to write."""
    overwrite: bool = False
    """Write over the output if it is there."""

    def run(self) -> int:
        from text2seg.coco.merge import merge_files
        from text2seg.io.files import check_writable

        if not self.datasets:
            raise DatasetError("nothing to merge: name at least one COCO file")
        check_writable(self.output, overwrite=self.overwrite, inputs=self.datasets, text=True)
        merged = merge_files(self.datasets, self.output)
        say(f"{len(merged['images'])} images, {len(merged['annotations'])} annotations")
        say(f"COCO file: {self.output}")
        return 0

"""`text2seg segment`: images and words to masks, now."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from text2seg.cli.common import PipelineFlags, load_models, queries_of
from text2seg.cli.terminal import FAILED, log_to_terminal, say
from text2seg.config import ModelSettings, OutputSettings, Settings
from text2seg.errors import ImageError


@dataclass(frozen=True, slots=True)
class Segment:
    """Find what the queries name in images and cut it out.

    Writes for each image an overlay and its maps with their points, and one COCO dataset file for all.
    Example: text2seg segment photo.jpg --query dog --query "red car"
    """

    images: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="")]
    ]
    """Image files."""
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to look for; repeat for more. "person+bench" gives one segment for both together,
    "dog|puppy" are two wordings of one thing, "mouse -computer mouse" leaves something out."""
    queries: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """The same as --query: queries in one string, with commas, semicolons or line ends between them."""
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    output: OutputSettings = field(default_factory=OutputSettings)
    verbose: bool = False
    """Say what runs where, and why."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        wanted = queries_of(self.query, self.queries)
        if not self.images:
            raise ImageError("no image to look at: name at least one file")
        from text2seg.segmenting import check_results, segment_files

        check_results(self.output)
        models = load_models(self.model, self.settings)
        report = segment_files(models, self.images, wanted, self.output, progress=len(self.images) > 1)
        for failure in report.failures:
            say(f"failed: {failure.message}", file=sys.stderr)
        for name, count in report.found.items():
            say(f"{name}: " + (report.verdicts[name] if report.images == 1 else f"found in {count} of {report.images}"))
        for image in report.written:
            say(f"image: {image}")
        say(f"COCO file: {report.dataset}")
        return FAILED if report.failures else 0

"""`text2seg benchmark`: the published protocols, by one command."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from text2seg.cli.common import PipelineFlags, load_models
from text2seg.cli.terminal import FAILED, log_to_terminal, say
from text2seg.config import ModelSettings, Settings


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Cut out the things that are in COCO pictures, told their names, and score them: mean IoU with categories given.

    The published 0.500 of CLIP Surgery with SAM ViT-H: text2seg benchmark coco --images val2017
    --annotations instances_val2017.json --targets 1000 --model huge --method reference
    """

    protocol: tyro.conf.Positional[Literal["coco"]]
    """coco: a COCO ground truth with masks."""
    images: Path
    """Folder of the pictures."""
    annotations: Path
    """COCO ground truth with masks."""
    targets: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """How many (image, category) pairs, of pictures drawn at random. Default: all."""
    seed: int = 0
    """Which pictures are drawn."""
    predictions: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Write what was found as a COCO file, for `text2seg evaluate`."""
    overwrite: bool = False
    """Write over predictions that are there."""
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    verbose: bool = False
    """Say what runs where, and why."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        from text2seg.files import check_writable

        if self.predictions is not None:
            check_writable(
                self.predictions,
                overwrite=self.overwrite,
                flag="--predictions",
                inputs=[self.annotations],
                text=True,
            )
        from text2seg.benchmarking import benchmark_coco
        from text2seg.coco.dataset import read_dataset

        truth = read_dataset(self.annotations)
        models = load_models(self.model, self.settings)
        result = benchmark_coco(
            models,
            truth,
            self.images,
            targets=self.targets,
            seed=self.seed,
            output=self.predictions,
            progress=True,
        )
        for failure in result.failures:
            say(f"failed: {failure.message}", file=sys.stderr)
        say(f"category-given mean IoU   {result.mean_iou:.3f}   {result.pairs} pairs in {result.images} images")
        say(f"the map alone (> mean)    {result.map_iou:.3f}   the segments are worse in {result.worse_than_map:.1%}")
        say(f"SAM's best candidates     {result.best_iou:.3f}")
        say(f"{result.images / result.seconds:.2f} images/s")
        return FAILED if result.failures else 0

"""`text2seg bench` and `text2seg benchmark`: speed beside the original flow, and the published protocols."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from text2seg.cli.common import PipelineFlags, load_models
from text2seg.cli.tables import PlainConsole, plain_table
from text2seg.cli.terminal import FAILED, log_to_terminal, say, say_lines
from text2seg.config import ModelSettings, Settings
from text2seg.errors import SettingsError

if TYPE_CHECKING:
    from text2seg.bench.run import Plan


Model = Literal["demo", "vit_b", "vit_l", "vit_h"]
Size = Literal["small", "vga", "1080p", "12mp"]
Flow = Literal["stock", "stock-half", "stock-fused", "stock-compiled", "ours", "ours-compiled"]


@dataclass(frozen=True, slots=True)
class Bench:
    """Measure text2seg beside the original flow: same weights, images and words, in turns, with accuracy.

    From a folder of images to a COCO file. Models other than demo have random weights of the published sizes, which
    cost the same and need no download.
    """

    models: tuple[Model, ...] = ("demo", "vit_b")
    """SAMs, each with its CLIP (ViT-B/16 but for the demo)."""
    queries: tuple[int, ...] = (20,)
    """How many things are looked for in each image."""
    sizes: tuple[Size, ...] = ("vga",)
    """Sizes of the images: 240×320, 480×640, 1080×1920, 3000×4000."""
    flows: tuple[Flow, ...] = ("stock", "stock-half", "stock-compiled", "ours")
    """stock: the original flow, float32; stock-half: in the device's fast precision; stock-fused: with fused attention
    as well; stock-compiled: compiled as well; ours; ours-compiled. Ratios and accuracy are against the first."""
    rounds: int = 3
    """Rounds of each case; all flows take their turn in each."""
    images: int = 1
    """Images in the folder."""
    batch: int = 1
    """Images that go through our models at once."""
    minutes: float = 8.0
    """No further round once this is over; warm-up and each case's first round are always done."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    output: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Write all numbers here as JSON and, beside it, a plot as PNG."""
    overwrite: bool = False
    """Write over files that are there."""
    markdown: bool = False
    """Print tables for a document."""
    quick: bool = False
    """Only whether everything runs: the demo model, three queries, small images, one round, nothing compiled."""
    verbose: bool = False
    """Say how long warming up takes."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.rounds < 1 or self.images < 1 or self.batch < 1 or min(self.queries, default=0) < 1:
            raise SettingsError("rounds, images, batch and queries must be 1 or more")

        from text2seg.bench import report
        from text2seg.bench.run import run
        from text2seg.io.files import check_writable

        for path in self._outputs():
            check_writable(path, overwrite=self.overwrite, text=path == self.output)

        cases = []
        for case in run(self._plan()):
            cases.append(case)
            if self.markdown:
                say_lines(report.markdown(case))
                continue
            table = plain_table(report.title(case), *report.HEADINGS)
            for row in report.rows(case):
                table.add_row(*row)
            PlainConsole(width=150).print(table)
        if self.output:
            numbers, plot = self._outputs()
            say(report.write_json(cases, numbers))
            say(report.plot(cases, plot))
        return 0

    def _outputs(self) -> tuple[Path, ...]:
        """The file of numbers and the plot."""
        if self.output is None:
            return ()
        if self.output.suffix.lower() == ".png" or not self.output.name:
            raise SettingsError(f"{self.output} is to hold numbers and a .png beside it the plot; end it in .json")
        return self.output, self.output.with_suffix(".png")

    def _plan(self) -> Plan:
        from text2seg.bench.run import Plan

        if self.quick:
            return Plan(("demo",), ("small",), (3,), ("stock", "stock-half", "ours"), 1, 2, 2, 1.0, self.device)
        return Plan(
            self.models,
            self.sizes,
            self.queries,
            self.flows,
            self.rounds,
            self.images,
            self.batch,
            self.minutes,
            self.device,
        )


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Cut out the things that are in COCO images, told their names, and score them: mean IoU with categories given.

    The published 0.500 of CLIP Surgery with SAM ViT-H: text2seg benchmark coco --images val2017
    --annotations instances_val2017.json --targets 1000 --model huge --method reference
    """

    protocol: tyro.conf.Positional[Literal["coco"]]
    """coco: a COCO ground truth with masks."""
    images: Path
    """Folder of the images."""
    annotations: Path
    """COCO ground truth with masks."""
    targets: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """How many (image, category) pairs, of images drawn at random. Default: all."""
    seed: int = 0
    """Which images are drawn."""
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
        from text2seg.io.files import check_writable

        if self.predictions is not None:
            check_writable(
                self.predictions,
                overwrite=self.overwrite,
                flag="--predictions",
                inputs=[self.annotations],
                text=True,
            )
        from text2seg.coco.dataset import read_dataset
        from text2seg.evaluation.benchmark import benchmark_coco

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

"""`text2seg benchmark speed` and `text2seg benchmark coco`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from text2seg.cli.common import PlainConsole, check_models, known_names, load_models, plain_table
from text2seg.cli.flags import PipelineFlags
from text2seg.cli.terminal import (
    INTERRUPTED,
    exit_status,
    log_to_terminal,
    say,
    say_failures,
    say_lines,
    stop_on_signals,
)
from text2seg.config import ModelSettings, Settings
from text2seg.errors import ImageError, SettingsError
from text2seg.io.names import counted, shown
from text2seg.model_card import CALIBRATE
from text2seg.settings_fields import check_device_name

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg
    from text2seg.records import Failure
    from text2seg.session import Pipeline
    from text2seg.speed.measure import Measured, Plan


MOST_NAMED = 30
"""Largest number of unknown categories that are named."""

Model = Literal["demo", "vit_b", "vit_l", "vit_h"]
Size = Literal["small", "vga", "1080p", "12mp"]
Flow = Literal["stock", "stock-half", "stock-fused", "stock-compiled", "ours", "ours-compiled"]


@dataclass(frozen=True, slots=True)
class BenchmarkSpeed:
    """Compare the speed and masks of text2seg with the original flow, on the same weights, images and queries.

    Each flow labels a folder of images and writes a COCO file. Models other than demo have random weights of the
    published sizes, which take as long to run and need no download.
    """

    models: tuple[Model, ...] = ("demo", "vit_b")
    """SAMs to measure. The SAM of demo runs with the CLIP of demo, the others with CLIP ViT-B/16."""
    queries: tuple[int, ...] = (20,)
    """Numbers of queries per image."""
    sizes: tuple[Size, ...] = ("vga",)
    """Image sizes. small: 240×320; vga: 480×640; 1080p: 1080×1920; 12mp: 3000×4000."""
    flows: tuple[Flow, ...] = ("stock", "stock-half", "stock-compiled", "ours")
    """stock: the original flow in float32; stock-half: in the device's fast precision; stock-fused: with fused
    attention as well; stock-compiled: compiled as well; ours: text2seg; ours-compiled: text2seg with --compile. Time
    ratios are relative to the first flow, accuracy to stock."""
    rounds: int = 3
    """Number of rounds for each case; each round measures all flows."""
    images: int = 1
    """Number of images in the folder."""
    batch: int = 1
    """Number of images that text2seg processes together."""
    minutes: float = 8.0
    """Start no further round after this time. The warm-up and the first round of each case always run."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    output: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """JSON file for all numbers; a plot is written next to it as PNG."""
    overwrite: bool = False
    """Replace existing files."""
    markdown: bool = False
    """Print Markdown tables."""
    quick: bool = False
    """Only check that everything runs: demo model, three queries, small images, one round, nothing compiled."""
    verbose: bool = False
    """Print the time of the warm-up, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.rounds < 1 or self.images < 1 or self.batch < 1 or min(self.queries, default=0) < 1:
            raise SettingsError("rounds, images, batch and queries must be 1 or more")
        check_device_name(self.device)

        from text2seg.io.writing import check_writable

        for path in self._outputs():
            check_writable(path, overwrite=self.overwrite, text=path == self.output)
        from tqdm import tqdm

        from text2seg.speed import measure

        cases, plan = [], self._plan()
        count = len(plan.models) * len(plan.sizes) * len(plan.queries)
        say(
            f"text2seg: {counted(count, 'case')} (model, image size, number of queries), up to {plan.minutes:g} min "
            "each, or one round if that takes longer; a case is printed when it is done",
            file=sys.stderr,
        )
        status = 0
        try:
            with tqdm(total=count * plan.rounds * len(plan.flows), unit="run", leave=False) as bar:

                def report(text: str) -> None:
                    bar.set_description(text, refresh=False)
                    bar.update()

                for case in measure.run(plan, report):
                    cases.append(case)
                    bar.clear()
                    self._show(case)
        except KeyboardInterrupt:
            if not cases:
                raise
            say(f"text2seg: stopped after {len(cases)} of {count} cases", file=sys.stderr)
            status = INTERRUPTED
        if self.output:
            numbers, plot = self._outputs()
            say(measure.write_json(cases, numbers))
            say(measure.plot(cases, plot))
        return status

    def _show(self, case: list[Measured]) -> None:
        from text2seg.speed import measure

        if self.markdown:
            say_lines(measure.markdown(case))
            return
        table = plain_table(measure.title(case), *measure.HEADINGS)
        for row in measure.rows(case):
            table.add_row(*row)
        PlainConsole(width=150).print(table)

    def _outputs(self) -> tuple[Path, ...]:
        """Return the paths of the numbers and the plot."""
        if self.output is None:
            return ()
        if self.output.suffix.lower() == ".png" or not self.output.name:
            raise SettingsError(f"--output is the file for the numbers, got {self.output}; use a name ending in .json")
        return self.output, self.output.with_suffix(".png")

    def _plan(self) -> Plan:
        from text2seg.speed.measure import Plan

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
class BenchmarkCoco:
    """Segment COCO images, given the names of the objects in each, and compute the category-given mean IoU.

    With --download, the methods stand side by side: reference (CLIP Surgery as published), uncalibrated (these weights
    without a model card), calibrated (with their card, if they have one), and SAM 3.

    Categories that the models do not know are named and left out.

    Example: text2seg benchmark coco --download --model base
    """

    images: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder of the images."""
    annotations: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """COCO file with the true masks."""
    download: bool = False
    """Download what is needed of COCO val2017, instead of --images and --annotations."""
    count: int = 500
    """With --download: number of images, drawn at random from the half that `text2seg calibrate coco` does not use."""
    coco_folder: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Folder for the files of COCO. Default: coco/ in the folder of checkpoints."""
    compare: bool = False
    """Put the methods side by side without --download, too."""
    sam3: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Also score SAM 3, side by side: a folder with its weights and tokenizer (docs/models.md)."""
    targets: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Number of (image, category) pairs to measure, from images chosen at random. Default: all."""
    seed: int = 0
    """Random seed for the choice of images."""
    predictions: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Write the segments found into this COCO file, for `text2seg evaluate`."""
    overwrite: bool = False
    """Replace existing predictions."""
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    verbose: bool = False
    """Print which models run on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        side_by_side = self.download or self.compare or self.sam3 is not None
        if self.count < 1:
            raise SettingsError(f"count must be 1 or more, got {self.count}")
        if self.download == (self.images is not None or self.annotations is not None):
            raise SettingsError("give --images and --annotations, or --download")
        if not self.download and (self.images is None or self.annotations is None):
            raise SettingsError("--images and --annotations need each other: give both, or --download")
        if side_by_side and self.predictions is not None:
            raise SettingsError("--predictions is for one method, not for several side by side")
        from text2seg.io.writing import check_writable

        if self.predictions is not None:
            check_writable(
                self.predictions,
                overwrite=self.overwrite,
                flag="--predictions",
                inputs=[self.annotations],
                text=True,
            )
        from text2seg.coco.dataset import read_dataset
        from text2seg.coco.truth import sha256_of_truth
        from text2seg.io.files import check_is_dir

        if self.annotations is None or self.images is None:
            from text2seg.cli.calibrate import fetched_coco

            check_models(self.model)
            truth, folder = fetched_coco(self.count, self.coco_folder, seed=self.seed, to_score=True)
        else:
            check_is_dir(self.images, ImageError, flag="--images")
            truth, folder = read_dataset(self.annotations), self.images
            check_models(self.model)
        known, unknown = self._known(truth)
        from text2seg.evaluation.benchmark import benchmark_coco

        models = load_models(self.model, self.settings)
        fitted_to = models.card.calibrated_on
        if fitted_to and fitted_to.sha256 == sha256_of_truth(truth):
            say("text2seg: the card of these weights was fitted to these images: scores are too good", file=sys.stderr)
        if side_by_side:
            return self._compare(models, known, folder, unknown)
        with stop_on_signals() as stop:
            result = benchmark_coco(
                models,
                known,
                folder,
                targets=self.targets,
                seed=self.seed,
                output=self.predictions,
                progress=True,
                stop=stop,
            )
        say_failures(result.failures, verbose=self.verbose)
        say(f"category-given mean IoU   {result.mean_iou:.3f}   {result.pairs} pairs in {result.images} images")
        say(f"map alone (above mean)    {result.map_iou:.3f}   better than the segments in {result.worse_than_map:.1%}")
        say(f"SAM's best candidates     {result.best_iou:.3f}")
        say(f"{result.images / result.seconds:.2f} images/s")
        if result.stopped:
            say("text2seg: stopped; these numbers are about the images so far. Nothing was written", file=sys.stderr)
            return INTERRUPTED
        return exit_status(result.images, len(result.failures) + unknown)

    def _known(self, truth: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
        """Return the ground truth without the categories that the models cannot look for, which one line names, and
        their number."""
        from text2seg.coco.truth import with_categories

        used = {annotation["category_id"] for annotation in truth["annotations"]}
        names = sorted({entry["name"] for entry in truth["categories"] if entry["id"] in used})
        known, unknown = known_names(self.model, names)
        if unknown:
            more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
            named = ", ".join(map(shown, unknown[:MOST_NAMED])) + more
            say(f"left out: the models do not know {len(unknown)} categories: {named}", file=sys.stderr)
        return (with_categories(truth, known) if unknown else truth), len(unknown)

    def _compare(self, models: Text2Seg, truth: Mapping[str, Any], folder: Path, unknown: int) -> int:
        """Score the methods and print them side by side. `unknown` is the number of categories left out."""
        from text2seg.evaluation.benchmark import benchmark_coco

        table = plain_table(
            f"{models.names}, category-given", "method", "mean IoU", "map alone", "best candidate", "worse than map"
        )
        failures: dict[str, Failure] = {}
        methods = self._methods(models)
        found = None
        with stop_on_signals() as stop, suppress(KeyboardInterrupt):  # before the first image of a method
            for method, pipeline in methods.items():
                found = benchmark_coco(
                    pipeline, truth, folder, targets=self.targets, seed=self.seed, progress=True, stop=stop
                )
                numbers = (found.mean_iou, found.map_iou, found.best_iou, found.worse_than_map)
                name = f"{method}, {found.images} images only" if found.stopped else method
                table.add_row(name, *(f"{number:.3f}" for number in numbers))
                failures |= {failure.file_name: failure for failure in found.failures}
        if found is None:
            raise KeyboardInterrupt
        PlainConsole().print(table)
        say(f"{found.pairs} pairs of an image and a category in {found.images} images")
        if not models.card.presence:
            say(f"these weights have no card; {CALIBRATE} makes one")
        say_failures(tuple(failures.values()), verbose=self.verbose)
        if table.row_count < len(methods) or found.stopped:
            say(f"text2seg: stopped after {table.row_count} of {len(methods)} methods", file=sys.stderr)
            return INTERRUPTED
        return exit_status(found.images, len(failures) + unknown)

    def _methods(self, models: Text2Seg) -> dict[str, Pipeline]:
        points = replace(self.settings.points, method="reference")
        bare = models.with_card(models.card.uncalibrated())
        reference = copy.copy(bare)
        reference.settings = replace(self.settings, points=points)
        methods: dict[str, Pipeline] = {"reference": reference, "uncalibrated": bare}
        if models.card.presence:
            methods["calibrated"] = models
        if self.sam3 is not None:
            from text2seg.sam3_pipeline import Sam3Pipeline

            device, precision = self.model.device, self.model.precision
            methods["SAM 3"] = Sam3Pipeline.open_folder(
                self.sam3, device=device, precision=precision, settings=self.settings
            )
        return methods

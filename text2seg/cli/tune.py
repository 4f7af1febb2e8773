"""`text2seg tune`: find a threshold for each category of an ontology on some images."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg.cli.common import PipelineFlags, load_models
from text2seg.cli.terminal import FAILED, log_to_terminal, say
from text2seg.config import ModelSettings, Settings
from text2seg.errors import SettingsError

if TYPE_CHECKING:
    from text2seg.calibration import Tuning
    from text2seg.ontology import Ontology

SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True)
class Tune:
    """Find a threshold for each category of an ontology, trying many on the images of a folder.

    With ground truth the one from 0.3 to 0.95 with the best mean IoU. Without, the middle of the stretch from 0.6 on in
    which masks change least: a guess, because stable masks may be wrong.
    Example: text2seg tune --ontology things.yaml photos --truth photos/dataset.json --plot curves.png --write
    """

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]]
    """Folder of images."""
    ontology: Path
    """File of categories with their wordings, YAML or JSON."""
    truth: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """COCO file with true masks of these images and categories."""
    limit: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Use the first so many images; with ground truth, of those that show a category."""
    write: bool = False
    """Put the thresholds into the ontology file. Its comments and layout stay."""
    plot: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Draw the curve of each category into this PNG file."""
    overwrite: bool = False
    """Write over a PNG file that is there."""
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    verbose: bool = False
    """Say what runs where, and why."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit must be 1 or more, got {self.limit}")
        from text2seg.calibration.tune import check_plot, plot
        from text2seg.io.files import check_writable, is_file, resolved
        from text2seg.ontology import read_ontology, write_thresholds

        if self.plot:
            check_plot(self.plot)
            # The listing takes every PNG file in the folder for an image of it.
            images = (
                [self.plot] if is_file(self.plot) and resolved(self.plot).is_relative_to(resolved(self.folder)) else []
            )
            check_writable(
                self.plot, overwrite=self.overwrite, flag="--plot", inputs=[self.ontology, self.truth, *images]
            )
        ontology = read_ontology(self.ontology)
        if self.write:
            check_writable(self.ontology, overwrite=True, flag="--ontology")
        tuning = self._sweep(ontology)
        _show(tuning)
        if self.plot:
            say(f"curves: {plot(tuning, self.plot)}")
        changes = tuning.changes()
        if self.write and changes:
            write_thresholds(self.ontology, changes)
        if not changes:
            say(f"{self.ontology} stays as it is")
        else:
            done = "now in" if self.write else "not written yet; --write puts them into"
            say(f"{len(changes)} threshold{'s' * (len(changes) != 1)} {done} {self.ontology}")
        return FAILED if len(tuning.failures) == tuning.images else 0

    def _sweep(self, ontology: Ontology) -> Tuning:
        from text2seg.calibration import tune_by_stability, tune_by_truth
        from text2seg.coco.dataset import read_dataset
        from text2seg.io.scan import list_images

        settings = self.settings
        if self.truth is not None:
            truth = read_dataset(self.truth)
            models = load_models(self.model, settings)
            return tune_by_truth(models, ontology, self.folder, truth, limit=self.limit, progress=True)
        scan = list_images(self.folder, limit=self.limit)
        paths = [self.folder / file for file in scan.files]
        return tune_by_stability(load_models(self.model, settings), ontology, paths, progress=True)


def _show(tuning: Tuning) -> None:
    from rich.table import Table

    from text2seg.cli.tables import PlainConsole

    measure = "mean IoU" if tuning.by_truth else "stability"
    table = Table("category")
    for heading in ("images", "threshold", "chosen", *([measure, "chosen's"] if tuning.by_truth else [])):
        table.add_column(heading, justify="right")
    for each in tuning.categories:
        scores = [_number(each.score(each.used)), _number(each.score(each.chosen))] if tuning.by_truth else []
        table.add_row(each.category, str(each.curve.images), _number(each.used), _number(each.chosen), *scores)
    PlainConsole().print(table)
    for failure in tuning.failures[:SHOWN_FAILURES]:
        say(f"failed: {failure.message}", file=sys.stderr)
    if len(tuning.failures) > SHOWN_FAILURES:
        say(f"failed: {len(tuning.failures) - SHOWN_FAILURES} more", file=sys.stderr)
    for name in tuning.never_found():
        say(f"{name} was not found at any threshold; its wordings or its presence may be at fault", file=sys.stderr)
    if tuning.missing:
        say(f"{tuning.missing} images of the ground truth are not in the folder", file=sys.stderr)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

"""`text2seg tune`: find a threshold for each category of an ontology on some images."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg.cli.common import check_models, known_categories, load_models
from text2seg.cli.flags import PipelineFlags
from text2seg.cli.terminal import INTERRUPTED, exit_status, log_to_terminal, say, say_failures, stop_on_signals
from text2seg.config import ModelSettings, Settings
from text2seg.errors import SettingsError
from text2seg.io.names import counted, listed

if TYPE_CHECKING:
    from text2seg.calibration.thresholds import Tuned, Tuning
    from text2seg.coco.reader import Dataset
    from text2seg.ontology import Ontology


@dataclass(frozen=True, slots=True)
class Tune:
    """Try many thresholds on the images of a folder and choose one for each category of an ontology.

    With ground truth, it chooses the threshold from 0.3 to 0.95 that has the best mean IoU. Without it, it chooses the
    middle of the range above 0.6 in which masks change least. This second choice is a guess: masks can be stable and
    wrong. After Ctrl-C, it shows what the images so far say, and writes nothing.

    Example: text2seg tune --ontology things.yaml photos --truth photos/dataset.json --plot curves.png --write
    """

    folder: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]]
    """Folder of images."""
    ontology: Path
    """File of categories with their wordings, YAML or JSON."""
    truth: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """COCO file with true masks of these images and categories."""
    limit: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Use only this many images, from the start of the folder. With ground truth, images without a category do not
    count."""
    write: bool = False
    """Write the thresholds into the ontology file. Its comments and layout are kept."""
    plot: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Draw the curve of each category into this PNG file."""
    overwrite: bool = False
    """Replace an existing PNG file."""
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    verbose: bool = False
    """Print which models run on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit must be 1 or more, got {self.limit}")
        from text2seg.coco.dataset import read_dataset
        from text2seg.io.files import is_file, resolve_path
        from text2seg.io.scan import check_image_folder
        from text2seg.io.writing import check_writable
        from text2seg.ontology import read_ontology, write_thresholds

        if self.plot:
            if self.plot.suffix.lower() != ".png":
                raise SettingsError(f"the curves are drawn as PNG, so the name must end in .png, got {self.plot}")
            # A PNG file in the folder is one of its images, and must not be overwritten.
            images = (
                [self.plot]
                if is_file(self.plot) and resolve_path(self.plot).is_relative_to(resolve_path(self.folder))
                else []
            )
            check_writable(
                self.plot, overwrite=self.overwrite, flag="--plot", inputs=[self.ontology, self.truth, *images]
            )
        ontology, unknown = known_categories(self.model, read_ontology(self.ontology), self.settings)
        check_image_folder(self.folder)
        truth = None
        if self.truth is not None:
            truth = read_dataset(self.truth)
        check_models(self.model)
        if self.write:
            check_writable(self.ontology, overwrite=True, flag="--ontology")
        tuning = self._sweep(ontology, truth)
        _show(tuning, verbose=self.verbose)
        if tuning.images < tuning.given:
            seen = f"{tuning.images} of {counted(tuning.given, 'image')}"
            say(f"text2seg: stopped after {seen}, which the table is about; nothing was written", file=sys.stderr)
            return INTERRUPTED
        if self.plot:
            from text2seg.calibration.thresholds import plot

            say(f"curves: {plot(tuning, self.plot)}")
        changes = tuning.changes()
        if self.write and changes:
            write_thresholds(self.ontology, changes)
        if not changes:
            say(f"no threshold changes in {self.ontology}")
        else:
            done = "written to" if self.write else "not written yet; --write writes them to"
            say(f"{counted(len(changes), 'threshold')} {done} {self.ontology}")
        return exit_status(tuning.images - len(tuning.failures), len(tuning.failures) + unknown)

    def _sweep(self, ontology: Ontology, truth: Dataset | None) -> Tuning:
        from text2seg.calibration.thresholds import tune_by_stability, tune_by_truth
        from text2seg.io.scan import list_images

        settings = self.settings
        if truth is not None:
            models = load_models(self.model, settings)
            with stop_on_signals() as stop:
                return tune_by_truth(models, ontology, self.folder, truth, limit=self.limit, progress=True, stop=stop)
        scan = list_images(self.folder, limit=self.limit)
        paths = [self.folder / file for file in scan.files]
        models = load_models(self.model, settings)
        with stop_on_signals() as stop:
            return tune_by_stability(models, ontology, paths, progress=True, stop=stop)


def _show(tuning: Tuning, *, verbose: bool) -> None:
    from rich.table import Table

    from text2seg.cli.common import MOST_ROWS, PlainConsole

    scored = ["mean IoU", "mean IoU\nwith chosen"] if tuning.by_truth else []
    table = Table("category")
    for heading in ("images", "threshold", "chosen", *scored):
        table.add_column(heading, justify="right")
    rows = tuning.categories
    if len(rows) > MOST_ROWS and not verbose:
        rows = tuple(sorted(rows, key=_importance, reverse=True)[:MOST_ROWS])
    for each in rows:
        scores = [_number(each.score(each.used)), _number(each.score(each.chosen))] if tuning.by_truth else []
        table.add_row(each.category, str(each.curve.images), _number(each.used), _number(each.chosen), *scores)
    PlainConsole().print(table)
    if more := len(tuning.categories) - len(rows):
        say(f"{more} more categor{'y' if more == 1 else 'ies'}; --verbose shows all")
    say_failures(tuning.failures, verbose=verbose)
    if not_shown := tuning.not_shown():
        names = ", ".join(not_shown) if verbose else listed(not_shown)
        say(f"no image of the ground truth shows {names}, so nothing was chosen there", file=sys.stderr)
    if never := tuning.never_found():
        names = ", ".join(never) if verbose else listed(never)
        say(f"not found at any threshold: {names}; check the wordings and the presence", file=sys.stderr)
    if tuning.missing:
        say(f"{tuning.missing} images of the ground truth are not in the folder", file=sys.stderr)


def _importance(tuned: Tuned) -> tuple[float, int]:
    """Return how much the threshold of a category changes, and in how many images the category was seen."""
    return abs((tuned.chosen or tuned.used) - tuned.used), tuned.curve.images


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

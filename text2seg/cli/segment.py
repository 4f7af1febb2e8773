"""`text2seg segment`: segment images by words."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from text2seg.cli.common import (
    MOST_ROWS,
    check_everything,
    known_queries,
    load_everything,
    load_models,
    queries_of,
    without_why,
)
from text2seg.cli.flags import PipelineFlags
from text2seg.cli.terminal import FAILED, INTERRUPTED, exit_status, log_to_terminal, say, say_failures, stop_on_signals
from text2seg.config import AutomaticSettings, ModelSettings, OutputSettings, Settings
from text2seg.errors import ImageError, OutputError, SettingsError
from text2seg.io.files import exists
from text2seg.io.names import counted, listed
from text2seg.queries import Query, parse_queries

if TYPE_CHECKING:
    from text2seg.segmenting import Report
    from text2seg.session import Pipeline

NOTHING_SURE = "no mask; --predicted-iou and --stability below the defaults keep masks that SAM is less sure of"


@dataclass(frozen=True, slots=True)
class Segment:
    """Find what the queries name in images and cut it out; or cut out everything, without words.

    Writes image files for each image (see --save) and one COCO file for all.

    Examples: text2seg segment photo.jpg --query dog --query "red car"; text2seg segment photo.jpg --everything
    """

    images: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="")]
    ]
    """Image files."""
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to look for; repeat for more. "person+bench" makes one segment of both, "dog|puppy" gives two wordings of
    one query, "mouse -computer mouse" excludes something."""
    queries: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """Queries in one string, separated by commas, semicolons or line breaks."""
    everything: bool = False
    """Cut out everything in the image, without queries and without CLIP. Overlays show each mask in its own colour, and
    there is no why."""
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    output: OutputSettings = field(default_factory=OutputSettings)
    automatic: AutomaticSettings = field(default_factory=AutomaticSettings)
    verbose: bool = False
    """Print which models run on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        check_everything(self.everything, self.query or self.queries)
        queries, unknown = self._queries()
        if not self.images:
            raise SettingsError("no image given: name at least one file")
        files = self._readable(queries)
        models = self._load_models()
        from text2seg.segmenting import segment_files

        output = self.output
        if self.everything:
            output = replace(output, save=without_why(output.save))
        with stop_on_signals() as stop:
            report = segment_files(models, files, queries, output, progress=True, stop=stop)
        say_failures(report.failures, verbose=self.verbose)
        if report.interrupted:
            self._say_stopped(report, len(dict.fromkeys(files)))
            return INTERRUPTED
        if not report.images:
            say("text2seg: no image could be segmented, so nothing was written", file=sys.stderr)
            return FAILED
        for path, verdicts in report.verdicts.items():
            self._say_verdicts("" if report.images == 1 else f"{path}: ", verdicts)
        found_in = {name: count for name, count in report.found.items() if count or len(report.found) <= MOST_ROWS}
        for name, count in found_in.items() if report.images > 1 else ():
            say(f"{name}: found in {count} of {report.images}")
        for path in report.written:
            say(f"image: {path}")
        if report.deleted:
            names = listed([path.name for path in report.deleted])
            say(f"deleted, because only the earlier run wrote them: {counted(len(report.deleted), 'file')} ({names})")
        say(f"COCO file: {report.dataset}")
        return exit_status(report.images, unknown + len(report.failures) + len(self.images) - len(files))

    def _say_verdicts(self, image: str, verdicts: Mapping[str, str]) -> None:
        """Print how each query did in an image; of many queries, only those that were found."""
        short = len(verdicts) > MOST_ROWS and not self.verbose
        absent = [
            name for name, found in verdicts.items() if short and found.startswith("not found") and ";" not in found
        ]
        for name, found in verdicts.items():
            if name not in absent:
                verdict = NOTHING_SURE if self.everything and found == "not found" else found
                say(f"{image}{name}: {verdict}")
        if absent:
            say(f"{image}not found: {len(absent)} queries; --verbose names all")

    def _say_stopped(self, report: Report, files: int) -> None:
        """Print how much was done, and how to go on."""
        kept, rest = "", "The same command again begins again"
        if report.kept_earlier:
            kept = f"; {report.dataset} is still that of the earlier run"
        elif report.images:
            kept, rest = f", which are in {report.dataset}", "The same command again does the others"
            if self.output.overwrite:
                rest = "The same command without --overwrite does the others"
        say(f"text2seg: stopped with {report.images} of {counted(files, 'image')} done{kept}. {rest}", file=sys.stderr)

    def _say_going_on(self, images: list[Path], queries: tuple[Query, ...]) -> None:
        """Print how far a stopped run came. Raises `OutputError` if the earlier run was finished."""
        from text2seg.segmenting import STOPPED, stopped_run

        if stopped := stopped_run(self.output, images, queries, self.settings):
            done, given = len(stopped["info"][STOPPED]["done"]), len(dict.fromkeys(images))
            say(
                f"text2seg: going on with a stopped run, which did {done} of {counted(given, 'image')}", file=sys.stderr
            )

    def _queries(self) -> tuple[tuple[Query, ...], int]:
        """Return the queries, and how many more were left out because the models do not know them."""
        if self.everything:
            from text2seg.records import UNNAMED

            return parse_queries([UNNAMED]), 0
        return known_queries(self.model, queries_of(self.query, self.queries), self.settings)

    def _load_models(self) -> Pipeline:
        if self.everything:
            return load_everything(self.model, self.automatic, self.settings)
        return load_models(self.model, self.settings)

    def _label_command(self, folder: Path) -> str:
        """Return the command that does the same for the images of a folder."""
        words = ["--everything"] if self.everything else [each for query in self.query for each in ("--query", query)]
        if self.queries:
            words += ["--queries", self.queries]
        output = self.output.output / f"{folder.name or 'labels'}.json"
        return shlex.join(["text2seg", "label", str(folder), *words, "--output", str(output)])

    def _readable(self, queries: tuple[Query, ...]) -> list[Path]:
        """Check the output, return the images that exist, and print the others, before any model is loaded.

        Raises:
            ImageError: None exists.
            OutputError: The output cannot be written, or has a COCO file already.
        """
        from text2seg.io.images import check_file
        from text2seg.io.output_folder import OutputFolder

        found, failures = [], []
        for path in self.images:
            if path.is_dir():
                failures.append(ImageError(f"{path} is a folder. To label its images: {self._label_command(path)}"))
                continue
            try:
                check_file(path)
                found.append(path)
            except ImageError as error:
                failures.append(error)
        if not found:
            raise failures[0] if len(failures) == 1 else ImageError("; ".join(map(str, failures)))
        output = self.output
        folder = OutputFolder(output.output, command="segment", overwrite=output.overwrite, inputs=found)
        if output.overwrite or not exists(output.dataset, OutputError):
            folder.check_result(output.dataset.name, text=True)
        else:
            self._say_going_on(found, queries)
        for failure in failures:
            say(f"failed: {failure}", file=sys.stderr)
        return found

"""`text2seg label`: label a folder of images with the categories of an ontology."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from text2seg.cli.common import (
    check_everything,
    check_models,
    known_categories,
    load_everything,
    load_models,
    queries_of,
    without_why,
)
from text2seg.cli.flags import PipelineFlags
from text2seg.cli.terminal import GO_ON, INTERRUPTED, exit_status, log_to_terminal, say, say_failures, stop_on_signals
from text2seg.config import AutomaticSettings, LabelSettings, ModelSettings, RaySettings, Settings
from text2seg.errors import CheckpointError, ImageError, SettingsError
from text2seg.io.names import counted
from text2seg.io.storage import Url

if TYPE_CHECKING:
    from text2seg.labelling.engine import Engine
    from text2seg.labelling.job import LabelReport, Plan
    from text2seg.ontology import Ontology
    from text2seg.session import Pipeline


@dataclass(frozen=True, slots=True)
class Label:
    """Label all images of a folder and write one COCO file.

    If the job is stopped, by Ctrl-C or in any other way, run the same command again to go on.

    Example: text2seg label photos --ontology things.yaml --output dataset.json
    """

    folder: tyro.conf.Positional[Annotated[Url | Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]]
    """Folder of images: a path, or a URL such as s3://bucket/photos."""
    ontology: Annotated[Url | Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """File of categories and their wordings, YAML or JSON: a path or a URL."""
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A category, instead of an ontology; repeat for more."""
    queries: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """Categories in one string, separated by commas, semicolons or line breaks."""
    label: tyro.conf.UseAppendAction[LabelSettings] = field(default_factory=LabelSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    engine: Literal["local", "ray"] = "local"
    """Where the models run: in this process, or on a Ray cluster (docs/scale.md). The COCO file is the same."""
    ray: RaySettings = field(default_factory=RaySettings)
    automatic: AutomaticSettings = field(default_factory=AutomaticSettings)
    sam3: Path | None = None
    """Use SAM 3 instead of CLIP and SAM: a folder with its weights and tokenizer (docs/models.md)."""
    everything: bool = False
    """Label everything in the images with one category, "object", without words and without CLIP."""
    resume: bool = True
    """Continue an earlier run of the same job that was stopped; --no-resume is the same as --restart."""
    watch: bool = False
    """Go on until Ctrl-C: label images that arrive or change, and write the COCO file again each time. The id of an
    image grows if files arrive that come before it by name."""
    dry_run: bool = False
    """Check files, ontology, model names and output, print what would be done, and stop."""
    verbose: bool = False
    """Print which models run on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        other = "--sam3" if self.sam3 else "--everything"
        if self.sam3 and self.everything:
            raise SettingsError("--everything uses SAM without words and --sam3 needs words; leave one of them out")
        check_everything(self.everything, self.ontology or self.query or self.queries)
        if (self.sam3 or self.everything) and (self.engine != "local" or self.label.only_if_present or self.dry_run):
            raise SettingsError(f"{other} cannot be combined with --engine ray, --only-if-present or --dry-run")
        job = self.label if self.resume else replace(self.label, restart=True)
        if self.everything:
            job = replace(job, save=without_why(job.save))
        from text2seg.io.writing import check_not_input

        check_not_input(job.output, [self.ontology, job.categories_from, job.marks])
        if self.watch and self.dry_run:
            raise SettingsError("--watch cannot be combined with --dry-run")
        ontology, unknown = self._known(self._read_ontology())
        self._say_dropped(job)
        if self.dry_run:
            return self._dry_run(ontology, job, unknown)
        if self.watch:
            return self._watch(ontology, job, unknown)
        plan = self._check_before_loading(ontology, job)
        engine = self._make_engine()
        models = self._load_models()
        from text2seg.labelling.job import label_folder

        with stop_on_signals(GO_ON) as stop:
            report = label_folder(
                models, self.folder, ontology, job, progress=True, stop=stop, engine=engine, plan=plan
            )
        status = conclude(report, plan.image_folder if job.save else None, unknown, verbose=self.verbose)
        if plan.review and not report.interrupted:
            say(f"marks: {plan.review.counts}")
        return status

    def _say_dropped(self, job: LabelSettings) -> None:
        """Say that what a person decided on an earlier output is dropped."""
        from text2seg.labelling.journal import is_reviewed
        from text2seg.labelling.output import journal_path

        if job.overwrite and job.marks is None and is_reviewed(journal_path(job.output)):
            say(f"text2seg: --overwrite drops what a person decided on {job.output} (--marks)", file=sys.stderr)

    def _watch(self, ontology: Ontology, job: LabelSettings, unknown: int) -> int:
        """Label what arrives until the program is stopped; return the exit status of the last time."""
        from text2seg.io.files import check_is_dir
        from text2seg.labelling.output import check_output, image_folder

        if isinstance(self.folder, Path):
            check_is_dir(self.folder, ImageError, flag="FOLDER")
        self._check_journal(job)
        check_output(job.output, overwrite=job.overwrite, inputs=[job.categories_from, job.marks])
        self._check_models()
        engine, models, status = self._make_engine(), self._load_models(), 0
        images = image_folder(self.folder, job) if job.save else None
        from text2seg.labelling.watch import watch

        with stop_on_signals(GO_ON) as stop:
            say(f"text2seg: watching {self.folder} (Ctrl-C stops it)", flush=True)
            for report in watch(models, self.folder, ontology, job, stop=stop, engine=engine):
                status = conclude(report, images, unknown, verbose=self.verbose)
        return status

    def _check_before_loading(self, ontology: Ontology, job: LabelSettings) -> Plan:
        """Check inputs, output and models before anything slow is imported, and list the images."""
        from text2seg.labelling.job import check_same_job, prepare

        self._check_journal(job)
        plan = prepare(self.folder, ontology, job)
        check_same_job(self.folder, plan.ontology, job, self.settings)
        self._check_models()
        return plan

    def _check_journal(self, job: LabelSettings) -> None:
        from text2seg.labelling.journal import check_unlocked
        from text2seg.labelling.output import journal_path

        journal = journal_path(job.output)
        check_unlocked(journal)
        if isinstance(job.output, Url):
            say(f"text2seg: the journal of this job is {journal}", file=sys.stderr)

    def _check_models(self) -> None:
        from text2seg.io.files import check_is_dir

        if self.sam3:
            check_is_dir(self.sam3, CheckpointError, flag="--sam3")
        else:
            check_models(self.model, sam_only=self.everything)

    def _known(self, ontology: Ontology) -> tuple[Ontology, int]:
        """Return the categories that the models know, and the number of those left out."""
        return (ontology, 0) if self.sam3 or self.everything else known_categories(self.model, ontology, self.settings)

    def _read_ontology(self) -> Ontology:
        from text2seg.ontology import ontology_of_queries, read_ontology

        if self.everything:
            from text2seg.records import UNNAMED

            return ontology_of_queries([UNNAMED])
        if self.ontology is None:
            way = "give --ontology, --query at least once, or --everything"
            return ontology_of_queries(queries_of(self.query, self.queries, way=way))
        if self.query or self.queries:
            raise SettingsError("give --ontology or queries, not both; add the categories to the ontology")
        return read_ontology(self.ontology)

    def _dry_run(self, ontology: Ontology, settings: LabelSettings, unknown: int) -> int:
        from text2seg.labelling.dry_run import dry_run

        plan = dry_run(self.folder, ontology, self.model, settings, self.settings, progress=True)
        say_failures(plan.failures, verbose=self.verbose)
        names = ", ".join(category.name for category in plan.ontology.categories)
        say(f"would look for: {names}")
        ready = plan.images - plan.done
        failed = f"; {plan.failed} of them failed" * bool(plan.failed)
        say(
            f"in {counted(ready, 'image')} of {self.folder}"
            + f" ({plan.done} more are done already{failed})" * bool(plan.done)
        )
        say(f"together {plan.pixels / 1e6:,.1f} megapixels; {counted(len(plan.failures), 'file')} cannot be read")
        for name in plan.download:
            say(f"would first download {name}")
        say(f"would write {settings.output}")
        left_out = len(plan.failures) + plan.failed
        return exit_status(plan.images - left_out, left_out + unknown)

    def _make_engine(self) -> Engine | None:
        """Return the Ray engine, or None for the local engine."""
        if self.engine == "local":
            return None
        from text2seg.labelling.ray_engine import RayEngine

        engine = RayEngine(self.model, self.settings, self.ray, workers=self.label.workers)
        engine.check()
        return engine

    def _load_models(self) -> Pipeline:
        if self.everything:
            return load_everything(self.model, self.automatic, self.settings)
        if self.sam3 is None:
            return load_models(self.model, self.settings)
        from text2seg.sam3_pipeline import Sam3Pipeline

        model = self.model
        return Sam3Pipeline.open_folder(
            self.sam3, device=model.device, precision=model.precision, settings=self.settings
        )


def conclude(
    report: LabelReport, images: Path | None, left_out: int, *, has_queries: bool = True, verbose: bool = False
) -> int:
    """Print how a job ended and return the exit status.

    Args:
        images: folder of the image files, if there are any.
        left_out: words or images that the job left out besides those that failed.
        has_queries: the categories were looked for, so it counts that one was not found.
        verbose: print all failures.
    """
    if report.interrupted:
        failed = f" ({report.failed} of them failed)" * bool(report.failed)
        say(
            f"text2seg: stopped with {report.done} of {counted(report.images, 'image')} done{failed}; {GO_ON}",
            file=sys.stderr,
        )
        return INTERRUPTED
    rows = tuple(row for row in report.categories if has_queries or row.segments)
    _print_report(replace(report, categories=rows), verbose=verbose)
    if images:
        say(f"image files: {images}")
    return exit_status(report.images - report.failed, report.failed + left_out)


def _print_report(report: LabelReport, *, verbose: bool) -> None:
    from rich.table import Table

    from text2seg.cli.common import MOST_ROWS, PlainConsole
    from text2seg.labelling.summary import columns

    table = Table("category")
    shown = columns(report.categories, calibrated=report.calibrated)
    for column in shown.values():
        table.add_column(column.heading, justify="right")
    rows, others = report.categories, report.categories[:0]
    if len(rows) > MOST_ROWS and not verbose:
        most_first = tuple(sorted(rows, key=lambda category: -category.segments))
        rows, others = most_first[:MOST_ROWS], most_first[MOST_ROWS:]
    for category in rows:
        table.add_row(category.name, *category.texts(shown))
    PlainConsole().print(table)
    if others:
        found = sum(category.segments > 0 for category in others) or "none"
        more = f"{len(others)} more categor{'y' if len(others) == 1 else 'ies'}"
        say(f"{more}, {found} of them with segments; --verbose, or text2seg report {report.dataset}, shows all")
    say_failures(report.failures, all_in=f"info.failures of {report.dataset}", verbose=verbose)
    if report.earlier == report.images:
        failed = f"; {report.failed} of them failed, and --retry-failures tries again" * bool(report.failed)
        say(f"nothing new to do: earlier runs did all images{failed}; --restart does all again")
    skipped = f" ({report.skipped} of them skipped)" * bool(report.skipped)
    rejected = f"{report.rejected} rejected, " * bool(report.rejected)
    say(
        f"{counted(report.images, 'image')}: {report.found} with segments, {report.empty} without{skipped}, {rejected}"
        f"{report.failed} failed"
    )
    say(f"COCO file: {report.dataset}")

"""`text2seg label`: a folder of images and an ontology to one COCO file, and on again after a stop."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from text2seg.cli.common import PipelineFlags, load_models, queries_of
from text2seg.cli.terminal import FAILED, INTERRUPTED, log_to_terminal, say
from text2seg.config import LabelSettings, ModelSettings, RaySettings, Settings
from text2seg.errors import QueryError, SettingsError
from text2seg.io.storage import Url

if TYPE_CHECKING:
    from text2seg.labelling.engines.local import Engine
    from text2seg.labelling.job import LabelReport
    from text2seg.ontology import Ontology
    from text2seg.records import Failure
    from text2seg.sam3_pipeline import Sam3Pipeline

SHOWN_FAILURES = 10


@dataclass(frozen=True, slots=True)
class Label:
    """Label all images of a folder and write one COCO file.

    Stopped, by Ctrl-C or in any other way, the same command goes on where it was.
    Example: text2seg label photos --ontology things.yaml --output dataset.json
    """

    folder: tyro.conf.Positional[Annotated[Url | Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]]
    """Folder of images, a path or a URL such as s3://bucket/photos."""
    ontology: Annotated[Url | Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """File of categories with their wordings, YAML or JSON; a path or a URL."""
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """In place of an ontology: a category; repeat for more."""
    queries: Annotated[str, tyro.conf.arg(help_behavior_hint="")] = ""
    """More categories in one string, with commas between them."""
    label: tyro.conf.UseAppendAction[LabelSettings] = field(default_factory=LabelSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    settings: PipelineFlags = field(default_factory=Settings)
    engine: Literal["local", "ray"] = "local"
    """What runs the models: this process, or workers of a Ray cluster (docs/scale.md). The COCO file is the same."""
    ray: RaySettings = field(default_factory=RaySettings)
    sam3: Path | None = None
    """Compare with SAM 3: a folder with its weights and tokenizer, in place of CLIP and SAM (docs/models.md)."""
    resume: bool = True
    """Go on where an earlier run of the same job stopped; --no-resume is another word for --restart."""
    strict: bool = False
    """Exit with status 1 if any image failed; otherwise only if all did."""
    dry_run: bool = False
    """Check files, ontology, models' names and output, say what would be done, and do nothing."""
    verbose: bool = False
    """Say what runs where, and why."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if self.sam3 and (self.engine != "local" or self.label.only_if_present or self.dry_run):
            raise SettingsError("--sam3 goes with none of --engine ray, --only-if-present and --dry-run")
        ontology = self._ontology()
        job = self.label if self.resume else replace(self.label, restart=True)
        from text2seg.io.files import check_not_input

        check_not_input(job.output, [self.ontology, job.categories_from])
        if self.dry_run:
            return self._dry_run(ontology, job)
        from text2seg.io.signals import stop_on_signals
        from text2seg.labelling.job import label_folder
        from text2seg.labelling.journal import check_unlocked
        from text2seg.labelling.output import check_output, journal_path

        check_unlocked(journal_path(job.output))
        if not isinstance(job.output, Url):  # a store is asked once, when the job begins
            check_output(job.output, overwrite=job.overwrite)
        if isinstance(job.output, Url):
            say(f"text2seg: the journal of this job is {journal_path(job.output)}", file=sys.stderr)
        engine = self._engine()
        models = self._sam3_pipeline(self.sam3) if self.sam3 else load_models(self.model, self.settings)
        with stop_on_signals() as stop:
            report = label_folder(models, self.folder, ontology, job, progress=True, stop=stop, engine=engine)
        if report.interrupted:
            failed = f" ({report.failed} of them failed)" * bool(report.failed)
            say(
                f"text2seg: stopped with {report.done} of {report.images} images done{failed}; "
                "the same command goes on from there",
                file=sys.stderr,
            )
            return INTERRUPTED
        _show(report)
        return FAILED if report.failed and (self.strict or report.failed == report.images) else 0

    def _sam3_pipeline(self, folder: Path) -> Sam3Pipeline:
        from text2seg.sam3_pipeline import Sam3Pipeline

        return Sam3Pipeline.open_folder(
            folder, device=self.model.device, precision=self.model.precision, settings=self.settings
        )

    def _engine(self) -> Engine | None:
        if self.engine == "local":
            if self.ray != RaySettings():
                raise SettingsError("--address, workers and what is set aside for each are for --engine ray")
            return None
        from text2seg.labelling.engines.ray_engine import RayEngine

        engine = RayEngine(self.model, self.settings, self.ray, workers=self.label.workers)
        engine.check()
        return engine

    def _ontology(self) -> Ontology:
        from text2seg.ontology import ontology_of_queries, read_ontology

        if self.ontology is None:
            if not self.query and not self.queries:
                raise QueryError("nothing to look for: give --ontology, or --query at least once")
            return ontology_of_queries(queries_of(self.query, self.queries))
        if self.query or self.queries:
            raise QueryError("give --ontology or queries, not both; categories belong into the ontology")
        return read_ontology(self.ontology)

    def _dry_run(self, ontology: Ontology, settings: LabelSettings) -> int:
        from text2seg.labelling.dry_run import dry_run

        plan = dry_run(self.folder, ontology, self.model, settings)
        _show_failures(plan.failures, "--verbose shows all", limit=plan.images if self.verbose else SHOWN_FAILURES)
        names = ", ".join(category.name for category in plan.ontology.categories)
        say(f"would look for: {names}")
        ready = plan.images - plan.done
        say(f"in {ready} images of {self.folder}" + f" ({plan.done} more are done already)" * bool(plan.done))
        say(f"together {plan.pixels / 1e6:,.1f} megapixels; {len(plan.failures)} files cannot be read")
        for name in plan.download:
            say(f"would first download {name}")
        say(f"would write {settings.output}")
        failed = len(plan.failures)
        return FAILED if failed and (self.strict or failed == plan.images) else 0


def _show(report: LabelReport) -> None:
    from rich.table import Table

    from text2seg.cli.tables import PlainConsole

    table = Table("category")
    for heading in ("images", "segments", "median area", "mean score"):
        table.add_column(heading, justify="right")
    for each in report.categories:
        area = "" if each.area_share is None else f"{each.area_share:.1%}"
        score = "" if each.score is None else f"{each.score:.2f}"
        table.add_row(each.name, str(each.images), str(each.segments), area, score)
    PlainConsole().print(table)
    _show_failures(report.failures, f"all stand in info.failures of {report.dataset}")
    skipped = f" ({report.skipped} of them not looked at)" * bool(report.skipped)
    say(
        f"{report.images} images: {report.found} with segments, {report.empty} without{skipped}, {report.failed} failed"
    )
    say(f"COCO file: {report.dataset}")


def _show_failures(failures: tuple[Failure, ...], rest: str, *, limit: int = SHOWN_FAILURES) -> None:
    for failure in failures[:limit]:
        say(f"failed: {failure.message}", file=sys.stderr)
    if len(failures) > limit:
        say(f"failed: {len(failures) - limit} more; {rest}", file=sys.stderr)

"""`text2seg refine`: turn boxes and coarse masks of a COCO dataset into fine masks."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from text2seg.cli.common import check_models, chosen_pair, say_names
from text2seg.cli.label import conclude
from text2seg.cli.terminal import GO_ON, SHOWN_FAILURES, log_to_terminal, say, stop_on_signals, waiting
from text2seg.config import (
    POLYGON_TOLERANCE,
    Encoding,
    LabelSettings,
    ModelSettings,
    RefineSettings,
    SaveKind,
)
from text2seg.errors import SettingsError
from text2seg.io.names import counted, listed


@dataclass(frozen=True, slots=True)
class Refine:
    """Turn the boxes and coarse masks of a COCO dataset into fine masks, with SAM alone.

    Ids, categories and attributes are kept. If the job is stopped, run the same command again to go on.

    Example: text2seg refine boxes.json --images photos --output masks.json
    """

    dataset: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]]
    """COCO file. Annotations with a mask get a finer one, those with only a box get a mask. Crowds, and those
    with neither, stay as they are."""
    images: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder of the images."""
    results: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Detections to refine instead of the annotations: a JSON list with image_id, category_id, bbox and score."""
    output: Path = Path("outputs/refined.json")
    """COCO file. A journal (.journal) beside it keeps finished images, so that a stopped job can continue."""
    refine: RefineSettings = field(default_factory=RefineSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    segmentation: Encoding = "rle"
    """How refined masks are written: rle is lossless, polygon suits labelling tools. Others stay as they were."""
    polygon_tolerance: float = POLYGON_TOLERANCE
    """With polygons: how far, in pixels, a polygon may be off the edge of its mask, so that it has few corners. 0 is
    exact. The IoU with the mask is at least 0.98."""
    limit: int | None = None
    """Only this many files, in the order of their paths."""
    batch: int = 4
    """Number of images that SAM processes together; more need more memory."""
    workers: int = 4
    """Number of threads that read and decode images."""
    save: Annotated[tuple[SaveKind, ...], tyro.conf.arg(metavar="overlay,masks,cutouts")] = ()
    """Files to write for each image into the folder <output>_images, with commas between them: overlay, masks,
    cutouts; or none."""
    restart: bool = False
    """Discard the results of earlier runs of this job."""
    retry_failures: bool = False
    """Try images again that failed in an earlier run."""
    overwrite: bool = False
    """Overwrite an output that this job did not write."""
    verbose: bool = False
    """Print which model runs on which device, and other details."""

    def run(self) -> int:
        log_to_terminal(verbose=self.verbose)
        if "why" in self.save:
            raise SettingsError("refine uses no words, so there is no why image; leave it out of --save")
        if self.model.runtime != "torch":
            raise SettingsError("refine runs with torch only; leave --runtime out")
        shared = {each.name for each in fields(LabelSettings)} & {each.name for each in fields(self)}
        job = LabelSettings(**{name: getattr(self, name) for name in shared})
        from text2seg.labelling.job import check_same_job, source_entry
        from text2seg.labelling.journal import check_unlocked
        from text2seg.labelling.output import journal_path
        from text2seg.labelling.refine import prepare_refinement, read_source, refine_dataset, refined_in

        source = read_source(self.dataset, self.results)
        check_unlocked(journal_path(job.output))
        plan, missing = prepare_refinement(source, self.images, job, [self.dataset, self.results])
        check_same_job(self.images, plan.ontology, job, **source_entry(source))
        check_models(self.model, sam_only=True)
        with waiting("loading the model"):
            pair = chosen_pair(self.model, sam_only=True)
            from text2seg.refining import Refiner

            models = Refiner.load(replace(self.model, model=pair), source, self.refine)
        say_names(models.names, self.model, pair, is_whole=bool(self.model.sam))
        if missing and self.limit is None:
            say(
                f"left out, because not in {self.images}: {counted(len(missing), 'image')}, {listed(missing)}",
                file=sys.stderr,
            )
        with stop_on_signals(GO_ON) as stop:
            report = refine_dataset(models, plan, job, progress=True, stop=stop)
        status = conclude(
            report, plan.image_folder if job.save else None, 0 if self.limit else len(missing), has_queries=False
        )
        if not report.interrupted:
            refined, kept, without = refined_in(report.dataset)
            say(
                f"{counted(refined, 'mask')} refined, {len(kept)} kept as before "
                "because SAM was not sure or found nothing"
            )
            if kept:
                shown = kept if self.verbose else kept[:SHOWN_FAILURES]
                more = f"; --verbose lists all {len(kept)}" * (len(kept) > len(shown))
                say(f"kept, the least sure first: annotations {', '.join(shown)}{more}")
            if without:
                say(f"{counted(without, 'annotation')} without a mask or a box in the image stay as before")
        return status

"""`text2seg evaluate`: score predictions against a ground truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from text2seg.cli.common import MOST_ROWS, PlainConsole, plain_table
from text2seg.cli.terminal import log_to_terminal, say
from text2seg.errors import OutputError
from text2seg.io.names import counted

if TYPE_CHECKING:
    from text2seg.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Score predictions against a ground truth, both COCO files, and explain why objects were missed.

    Example: text2seg evaluate truth.json outputs/dataset.json --match file-name --report scores.html
    """

    truth: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="GT.json")]]
    """COCO dataset with the ground truth."""
    predicted: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PRED.json")]]
    """COCO dataset with predictions, or a flat list of COCO results."""
    protocol: Literal["instances", "semantic", "category-given", "multilabel", "all"] = "all"
    """instances: COCO's AP; semantic: mean IoU of pixels; category-given: mean IoU of the categories in each image, and
    why objects were missed; multilabel: mean AP of presence."""
    match: Literal["id", "file-name"] = "id"
    """How to match the two files. id: images and categories by id; file-name: images by file name, categories by
    name."""
    report: Path | None = None
    """Also write an HTML page."""
    json: Path | None = None
    """Also write all numbers as JSON."""
    overwrite: bool = False
    """Replace existing files."""

    def run(self) -> int:
        log_to_terminal()
        from text2seg.coco.json_file import json_chunks
        from text2seg.evaluation import as_json, evaluate_files
        from text2seg.evaluation.evaluate import render_page
        from text2seg.io.files import resolve_path
        from text2seg.io.writing import check_writable, write_together

        outputs = {flag: path for flag, path in (("--report", self.report), ("--json", self.json)) if path is not None}
        files = [resolve_path(path) for path in outputs.values()]
        for flag, path in outputs.items():
            inputs = (self.truth, self.predicted)
            check_writable(path, overwrite=self.overwrite, flag=flag, inputs=inputs, text=True)
            if files.count(resolve_path(path)) > 1:
                raise OutputError(f"{path} is given twice; --report and --json need different files")
        evaluation = evaluate_files(self.truth, self.predicted, protocol=self.protocol, match=self.match)
        writing: list[tuple[Path, Iterable[bytes]]] = []
        if self.json is not None:
            writing.append((self.json, json_chunks(self.json, as_json(evaluation))))
        if self.report is not None:
            page = render_page(evaluation, truth=self.truth.name, predicted=self.predicted.name)
            writing.append((self.report, [page.encode("utf-8", "backslashreplace")]))
        try:
            write_together(writing)  # before printing, which fails if the reader of a pipe is gone
        except OutputError:
            _print(evaluation, ())
            raise
        _print(evaluation, list(outputs.values()))
        if self.json is not None:
            say(f"numbers: {self.json}")
        if self.report is not None:
            say(f"page: {self.report}")
        return 0


def _print(evaluation: Evaluation, files: Sequence[Path]) -> None:
    from text2seg.evaluation.evaluate import category_rows, columns, headline

    console = PlainConsole()
    console.print(
        f"{counted(evaluation.images, 'image')}, {evaluation.true_annotations} true and "
        f"{evaluation.predicted_annotations} predicted annotations"
    )
    scores = plain_table("", "protocol", "number", "value")
    for protocol, name, value in headline(evaluation):
        scores.add_row(protocol, name, _number(value))
    console.print(scores)
    if evaluation.note:
        say(f"note: {evaluation.note}")
    names = [name for name, _ in columns(evaluation)]
    if names:
        categories = plain_table("by category", "category", *(name.replace(" ", "\n") for name in names))
        rows = category_rows(evaluation)
        for name, cells in rows[:MOST_ROWS]:
            categories.add_row(name, *(_number(value) for value in cells))
        console.print(categories)
        if len(rows) > MOST_ROWS:
            where = " and ".join(map(str, files)) or "the files that --report and --json write"
            more = len(rows) - MOST_ROWS
            say(f"{more} more {'category is' if more == 1 else 'categories are'} in {where}")
    if (misses := evaluation.misses) is not None:
        why = plain_table("category-given pairs", "outcome", "pairs")
        for cause, count in misses.counts.items():
            why.add_row(cause, str(count))
        why.add_row("false (not present)", str(misses.false))
        console.print(why)
        if not misses.candidates_kept:
            console.print("SAM's other candidates were not kept: a wrong choice among them counts as a wrong mask.")


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"

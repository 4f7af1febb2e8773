"""Segment image files one by one: image files for each, and one COCO file for all."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from text2seg.coco.dataset import DatasetBuilder
from text2seg.coco.json_file import json_chunks
from text2seg.coco.provenance import run_info
from text2seg.config import OutputSettings
from text2seg.errors import OutputError, Text2SegError
from text2seg.io.files import exists
from text2seg.io.images import load_image
from text2seg.io.names import unique_names
from text2seg.io.output_folder import OutputFolder
from text2seg.io.writing import is_disk_error
from text2seg.ontology import ontology_of_queries
from text2seg.records import Failure, Segmentation
from text2seg.render.saving import image_files
from text2seg.session import Pipeline, Queries

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """Result of a run over files.

    Without `images`, nothing was written, not even the `dataset`. `written` are the image files. `found` is the number
    of images that each query was found in. `verdicts` say for each image how each query did in it. A run that was
    `interrupted` has not seen all images; if the folder had a dataset of an earlier run, it `kept_earlier` and wrote
    none.
    """

    dataset: Path
    found: dict[str, int]
    written: list[Path] = field(default_factory=list)
    verdicts: dict[Path, dict[str, str]] = field(default_factory=dict)
    images: int = 0
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    kept_earlier: bool = False


def segment_files(
    models: Pipeline, paths: Sequence[Path], queries: Queries, output: OutputSettings, *, progress: bool = False
) -> Report:
    """Segment each file, write its image files as `output.save` says, and one COCO file for all.

    A file that cannot be segmented becomes a `Failure`; if none can be, nothing is written. A file that is given twice
    is segmented once. With `output.overwrite`, a run that saw all images replaces the COCO file of an earlier run, and
    deletes image files that only the earlier run wrote.

    After Ctrl-C, the COCO file of the finished images is written, and the report says `interrupted`. If an earlier run
    wrote a COCO file, it is kept instead, and so are the files of images that were not reached.

    Raises:
        QueryError: the queries cannot be used, whatever the image.
        OutputError: the output folder cannot be written, or it has a COCO file and `output.overwrite` is not set.
    """
    parsed = models.check(queries)
    names = [query.name for query in parsed]
    _folder(output, paths).check_result(output.dataset.name, text=True)
    report = Report(output.dataset, dict.fromkeys(names, 0))
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else Path()
    info = run_info(models.provenance(), folder=folder, dataset=report.dataset, ontology=ontology_of_queries(parsed))
    builder = DatasetBuilder(
        info=info, queries=names, encoding=output.segmentation, polygon_tolerance=output.polygon_tolerance
    )
    writer = _Writer(output, report, paths)
    unique = unique_names()
    try:
        for path in tqdm(dict.fromkeys(paths), unit="image", disable=not progress):
            stem = unique(path.stem, "")
            try:
                name = path.absolute().relative_to(folder).as_posix()
                image = load_image(path, image_id=report.images + 1, file_name=name)
                result = models.segment(image, parsed)
            except (Text2SegError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError without memory
                report.failures.append(Failure.from_error(str(path), "segment", error, path))
                continue
            builder.add(result)
            report.images += 1
            report.verdicts[path] = {name: result.verdict(name) for name in names}
            for query in {segment.query for segment in result.segments}:
                report.found[query] += 1
            writer.write_images(path, stem, result)
    except KeyboardInterrupt:
        report.interrupted = True
    except BaseException:
        try:  # keep the finished images; if that fails too, the first error is the one to raise
            writer.write_partial_dataset(builder)
            if report.kept_earlier:
                _log.warning("%s is still that of the earlier run", report.dataset)
        except Text2SegError as second:
            _log.warning("%s", second)
        raise
    if report.interrupted:
        writer.write_partial_dataset(builder)
    elif report.images:
        writer.write_dataset(builder)
        writer.discard_earlier()
    return report


def _folder(output: OutputSettings, inputs: Sequence[Path]) -> OutputFolder:
    return OutputFolder(output.output, command="segment", overwrite=output.overwrite, inputs=inputs)


class _Writer:
    """Writes the results of a run, and notes them in its report."""

    def __init__(self, output: OutputSettings, report: Report, inputs: Sequence[Path]) -> None:
        self._output, self._report, self._folder = output, report, _folder(output, inputs)

    def write_images(self, path: Path, stem: str, result: Segmentation) -> None:
        """Write the image files of one image. A file that cannot be written becomes a `Failure`."""
        for folder, name, content in image_files(result, stem, self._output.save):
            try:
                self._report.written += self._folder.write([(f"{folder}/{name}" if folder else name, [content])])
            except OutputError as error:
                if is_disk_error(error):  # concerns all images, unlike a name that the disk refuses
                    raise
                self._report.failures.append(Failure.from_error(str(path), "segment", error, path))

    def write_dataset(self, builder: DatasetBuilder) -> None:
        """Write the COCO file."""
        file = self._report.dataset
        self._folder.write([(file.name, json_chunks(file, builder.build()))])

    def write_partial_dataset(self, builder: DatasetBuilder) -> None:
        """Write the COCO file of a run that did not see all images, unless there is none or an earlier run wrote
        one."""
        if exists(self._report.dataset, OutputError):
            self._report.kept_earlier = True
        elif self._report.images:
            self.write_dataset(builder)

    def discard_earlier(self) -> None:
        """Delete what only an earlier run wrote, if it may be replaced."""
        if self._output.overwrite:
            written = [*self._report.written, self._report.dataset]
            self._folder.discard_earlier(keep={path.relative_to(self._output.output).as_posix() for path in written})

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
from text2seg.io.images import load_image
from text2seg.io.names import unique_names
from text2seg.io.output_folder import OutputFolder
from text2seg.io.writing import check_writable, is_disk_error
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
    `interrupted` has not seen all images.
    """

    dataset: Path
    found: dict[str, int]
    written: list[Path] = field(default_factory=list)
    verdicts: dict[Path, dict[str, str]] = field(default_factory=dict)
    images: int = 0
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False


def segment_files(
    models: Pipeline, paths: Sequence[Path], queries: Queries, output: OutputSettings, *, progress: bool = False
) -> Report:
    """Segment each file, write its image files as `output.save` says, and one COCO file for all.

    A file that cannot be segmented becomes a `Failure`; if none can be, nothing is written. A file that is given twice
    is segmented once. After Ctrl-C, the COCO file of the finished images is written, and the report says `interrupted`.
    With `output.overwrite`, files that an earlier run wrote and this one did not are deleted.

    Raises:
        QueryError: the queries cannot be used, whatever the image.
        OutputError: the output folder cannot be written, or it has a COCO file and `output.overwrite` is not set.
    """
    parsed = models.check(queries)
    names = [query.name for query in parsed]
    check_output(output, paths)
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
            writer.write_dataset(builder)
        except Text2SegError as second:
            _log.warning("%s", second)
        raise
    writer.write_dataset(builder)
    return report


def check_output(output: OutputSettings, inputs: Sequence[Path]) -> None:
    """Raise `OutputError` if the COCO file cannot be written, or is there already and must not be replaced."""
    check_writable(output.dataset, overwrite=output.overwrite, inputs=inputs, text=True)
    _folder(output, inputs).check(output.dataset.name)


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
        """Write the COCO file, unless no image was segmented, and delete what only an earlier run wrote."""
        if not self._report.images:
            return
        file = self._report.dataset
        written = self._folder.write([(file.name, json_chunks(file, builder.build()))])
        if self._output.overwrite:
            names = {path.relative_to(self._output.output).as_posix() for path in [*self._report.written, *written]}
            self._folder.discard_earlier(keep=names)

"""Segment files: every image on its own, results written as they come, bad files reported and passed over."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from tqdm import tqdm

from text2seg.coco.dataset import DatasetBuilder, json_chunks
from text2seg.coco.lookup import relative_folder
from text2seg.config import OutputSettings
from text2seg.errors import OutputError, Text2SegError
from text2seg.io.files import fitting, is_of_disk, make_folder
from text2seg.io.images import load_image
from text2seg.io.names import unique_names
from text2seg.io.outputs import OutputFolder
from text2seg.ontology import ontology_of_queries
from text2seg.pipeline import Queries, Text2Seg
from text2seg.records import Failure
from text2seg.render import maps_with_points, overlay

_log = logging.getLogger(__name__)

DATASET_NAME = "dataset.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What a run over files left behind. `found` counts the images that each query was found in; `verdicts` say what
    became of each query in the last image."""

    dataset: Path
    written: tuple[Path, ...]
    found: dict[str, int]
    verdicts: dict[str, str]
    images: int
    failures: tuple[Failure, ...]


def segment_files(
    models: Text2Seg, paths: Sequence[Path], queries: Queries, output: OutputSettings, *, progress: bool = False
) -> Report:
    """Segment each file and write `<name>_overlay.png`, `<name>_maps.png` and one COCO file for all.

    A file that cannot be done becomes a `Failure`; a file that is named twice is done once. On Ctrl-C, what is done
    until then is still written to the COCO file before the interrupt goes on.

    Raises:
        QueryError: the queries cannot be used, whatever the image.
        OutputError: nothing can be written to the output folder, or the COCO file in it is not one that an earlier run
            left there as it is.
    """
    parsed = models.check(queries)
    names = [query.name for query in parsed]
    results = check_results(output)
    make_folder(output.output)
    dataset = output.output / DATASET_NAME
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths])) if paths else Path()
    info = {"folder": relative_folder(folder, dataset), "ontology": ontology_of_queries(parsed).to_dict()}
    builder = DatasetBuilder(info=info, queries=names, encoding=output.segmentation, provenance=models.provenance())
    found, images = dict.fromkeys(names, 0), 0
    verdicts: dict[str, str] = {}
    written: list[Path] = []
    failures: list[Failure] = []
    try:
        for path, stem in tqdm(_stems(paths), unit="image", disable=not progress):
            try:
                image = load_image(path, image_id=images + 1, file_name=_relative(path, folder))
                result = models.segment(image, parsed)
            except (Text2SegError, MemoryError, RuntimeError) as error:  # torch is out of memory with a RuntimeError
                failures.append(_failure(path, error))
                continue
            builder.add(result)
            images += 1
            verdicts = {name: result.verdict(name) for name in names}
            for query in {segment.query for segment in result.segments}:
                found[query] += 1
            drawn = [("_overlay.png", overlay)] * output.overlay + [("_maps.png", maps_with_points)] * output.explain
            for suffix, draw in drawn:
                try:
                    written += results.write([(fitting(stem, suffix), [_png(draw(result))])])
                except OutputError as error:  # of this one image, such as a name that the disk does not take
                    if is_of_disk(error):
                        raise
                    failures.append(_failure(path, error))
    except BaseException:
        try:  # what was done until then is kept; where that fails, the first error is the one to be told
            results.write([(DATASET_NAME, json_chunks(dataset, builder.build()))])
        except Text2SegError as second:
            _log.warning("%s", second)
        raise
    results.write([(DATASET_NAME, json_chunks(dataset, builder.build()))])
    return Report(dataset, tuple(written), found, verdicts, images, tuple(failures))


def check_results(output: OutputSettings) -> OutputFolder:
    """The folder of the results. Raises `OutputError` where the COCO file cannot be written there, or is not one that
    an earlier run left as it is."""
    results = OutputFolder(output.output)
    results.check(DATASET_NAME)
    return results


def _relative(path: Path, folder: Path) -> str:
    return path.absolute().relative_to(folder).as_posix()


def _failure(path: Path, error: Exception) -> Failure:
    """One line that names the file."""
    if isinstance(error, Text2SegError):
        message = str(error)
    else:
        _log.info("%s", path, exc_info=error)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"not enough memory, or a fault of the machine or of text2seg ({reason})"
    return Failure(str(path), "segment", message if str(path) in message else f"{path}: {message}")


def _stems(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each path once, with the name for its images; files of one name from two folders get a number."""
    unique = unique_names()
    return [(path, unique(path.stem, "")) for path in dict.fromkeys(paths)]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    PilImage.fromarray(pixels).save(file, "PNG")
    return file.getvalue()

"""Segment files: every picture on its own, results written as they come, bad files reported and passed over."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from tqdm import tqdm

from text2seg.coco.dataset import build_dataset, write_dataset
from text2seg.config import OutputSettings
from text2seg.errors import OutputError, Text2SegError
from text2seg.images import load_image
from text2seg.pipeline import Queries, Text2Seg
from text2seg.records import Failure, Segmentation
from text2seg.render import maps_with_points, overlay
from text2seg.vocabulary import parse_queries

log = logging.getLogger(__name__)

DATASET_NAME = "dataset.json"


@dataclass(frozen=True, slots=True)
class Report:
    """What a run over files left behind. `found` counts the images that each query was found in."""

    dataset: Path
    pictures: tuple[Path, ...]
    found: dict[str, int]
    images: int
    failures: tuple[Failure, ...]


def segment_files(
    models: Text2Seg, paths: Sequence[Path], queries: Queries, output: OutputSettings, *, progress: bool = False
) -> Report:
    """Segment each file and write `<name>_overlay.png`, `<name>_maps.png` and one COCO file for all.

    A file that cannot be done becomes a `Failure`. On Ctrl-C, what is done until then is still written to the COCO
    file before the interrupt goes on.

    Raises:
        QueryError: the queries cannot be used, whatever the picture.
        OutputError: nothing can be written to the output folder.
    """
    parsed = [query.name for query in parse_queries(queries)]
    models.check(parsed)
    _make_folder(output.output)
    done: list[Segmentation] = []
    pictures: list[Path] = []
    failures: list[Failure] = []
    dataset = output.output / DATASET_NAME
    try:
        for path, stem in tqdm(_stems(paths), total=len(paths), unit="image", disable=not progress):
            try:
                result = _segment_file(models, path, parsed, image_id=len(done) + 1)
            except Text2SegError as error:
                failures.append(Failure(str(path), "segment", str(error)))
                continue
            done.append(result)
            if output.pictures:
                pictures.append(_save(overlay(result), output.output / f"{stem}_overlay.png"))
                pictures.append(_save(maps_with_points(result), output.output / f"{stem}_maps.png"))
    finally:
        built = build_dataset(done, queries=parsed, encoding=output.segmentation, provenance=models.provenance())
        write_dataset(built, dataset)
    found = {query: sum(any(s.query == query for s in result.segments) for result in done) for query in parsed}
    return Report(dataset, tuple(pictures), found, len(done), tuple(failures))


def _segment_file(models: Text2Seg, path: Path, queries: list[str], *, image_id: int) -> Segmentation:
    image = load_image(path, image_id=image_id, file_name=path.as_posix())
    return models.segment(image, queries)


def _stems(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Each path once, with the name for its pictures; files of one name from two folders get a number."""
    taken: set[str] = set()
    for path in dict.fromkeys(paths):
        stem, number = path.stem, 1
        while stem in taken:
            number += 1
            stem = f"{path.stem}_{number}"
        taken.add(stem)
        yield path, stem


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}; choose another with --output") from error


def _save(pixels: NDArray[np.uint8], path: Path) -> Path:
    try:
        PilImage.fromarray(pixels).save(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
    return path

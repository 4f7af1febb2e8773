"""Refining a COCO dataset as a labelling job: the same journal, resume, failures and output."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2seg.coco.dataset import read_dataset
from text2seg.coco.json_file import read_json
from text2seg.coco.reader import Dataset, attributes_of, check_dataset, check_references, check_results
from text2seg.config import LabelSettings
from text2seg.errors import DatasetError, ImageError
from text2seg.io.images import load_image
from text2seg.io.names import listed, pair_names
from text2seg.io.scan import Scan
from text2seg.io.storage import Place
from text2seg.labelling.engine import LocalEngine
from text2seg.labelling.job import LabelReport, Plan, label_folder, scan_folder
from text2seg.labelling.output import check_output, image_folder
from text2seg.ontology import Category, Ontology
from text2seg.records import Image

if TYPE_CHECKING:
    from text2seg.refining import Refiner


def read_source(dataset: Path, results: Path | None = None) -> Dataset:
    """Read the dataset to refine. With `results`, a list of detections as COCO's tools write it, these are refined
    instead of the annotations of the dataset.

    Raises:
        DatasetError: a file cannot be read, or refers to images or categories that the dataset does not list.
    """
    source = read_dataset(dataset)
    if results is not None:
        content = read_json(results)
        if not isinstance(content, list):
            raise DatasetError(f"{results} is not a list of detections; give a dataset without --results")
        found = check_results(content, str(results))
        numbered = [{**each, "id": number} for number, each in enumerate(found, start=1)]
        source = check_dataset({**source, "annotations": numbered}, str(results))
    check_references(source)
    if not source["annotations"]:
        raise DatasetError(f"{source.name} has no annotations to refine")
    return source


def prepare_refinement(
    source: Dataset, folder: Place, settings: LabelSettings, inputs: Iterable[object] = ()
) -> tuple[Plan, tuple[str, ...]]:
    """Find the images of the dataset and check that the output may be written.

    Returns:
        The plan for `refine_dataset`, and the names of the images that are not in the folder.

    Raises:
        ImageError: there is no such folder, or no image of the dataset is in it.
        DatasetError: a file matches several images of the dataset, or several files match one.
        OntologyError: two categories share a name.
        OutputError, SettingsError: the output may not be written.
    """
    entries = source["images"]
    files = scan_folder(folder, settings)
    names = [entry["file_name"] for entry in entries]
    pairs = pair_names(files.files, names, ours=str(folder), theirs=f"the images of {source.name}")
    if not pairs:
        raise ImageError(f"no image of {source.name} is in {folder}; the first is {listed(names[:1])}")
    indices = sorted(pairs)
    stamps = array("q", (number for index in indices if files.stamps for number in files.stamp(index)))
    scan = Scan(folder, tuple(files.files[index] for index in indices), stamps=stamps)
    ids = array("q", (entries[pairs[index]]["id"] for index in indices))
    ontology = Ontology(tuple(map(_category, source["categories"])))
    check_output(settings.output, overwrite=settings.overwrite, inputs=inputs)
    found = set(pairs.values())
    missing = tuple(name for place, name in enumerate(names) if place not in found)
    return Plan(scan, ontology, lambda index: ids[index], image_folder(folder, settings), source), missing


def _category(entry: Mapping[str, Any]) -> Category:
    name, supercategory = entry["name"], entry.get("supercategory") or "thing"
    return Category(name, entry["id"], supercategory, (name,), (), None, None, 0, None)


def refine_dataset(
    models: Refiner,
    plan: Plan,
    settings: LabelSettings,
    *,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> LabelReport:
    """Refine the annotations of a dataset and write another. Like `label_folder`, also in what it raises.

    Args:
        models: for the dataset of the plan.
        plan: of `prepare_refinement`.
    """
    numbers = {file: index for index, file in enumerate(plan.scan.files)}

    def load(path: Place, name: str) -> Image:
        return load_image(path, image_id=plan.image_id(numbers[name]), file_name=name)

    from text2seg.refining import refined_annotations

    engine = LocalEngine(models, workers=settings.workers, load=load, annotate=refined_annotations)
    return label_folder(
        models, plan.scan.folder, plan.ontology, settings, progress=progress, stop=stop, engine=engine, plan=plan
    )


def refined_in(dataset: Place) -> tuple[int, tuple[str, ...], int]:
    """Return how many annotations of a refined dataset have a new mask, which kept what they had, for people, and how
    many, besides crowds, had neither a mask nor a box in their image."""
    content = read_dataset(dataset)
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    judged = [(each, attributes_of(each).get("refined")) for each in content["annotations"] if not each.get("iscrowd")]
    verdicts = [verdict for _, verdict in judged]
    kept = [each for each, verdict in judged if verdict is False]
    kept.sort(key=lambda each: attributes_of(each)["sam_score"])
    texts = (f"{each['id']} ({names[each['category_id']]} in {files[each['image_id']]})" for each in kept)
    return verdicts.count(True), tuple(texts), verdicts.count(None)

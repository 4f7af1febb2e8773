"""What a person decided on the output of a labelling job, kept when the job writes it again (`label --marks`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset
from text2seg.coco.json_file import Json
from text2seg.coco.marks import CATEGORY_BEFORE, REVIEW, Marks, find_marked, identity, read_marks
from text2seg.coco.reader import Dataset, attributes_of, check_references
from text2seg.errors import DatasetError, ImageError, OutputError
from text2seg.io.files import is_file
from text2seg.io.names import listed
from text2seg.io.scan import Scan
from text2seg.io.storage import Place, Url, exists
from text2seg.ontology import Ontology

SAME_MASK = 0.5
"""IoU from which a new mask of the same category counts as the one that a person decided on."""


@dataclass(slots=True)
class Decided:
    """What was decided in one image: `kept` annotations as the output has them, without ids and with the category ids
    of the new ontology, and `rejected` ones as {category, segmentation}."""

    kept: list[Json] = field(default_factory=list)
    rejected: list[Json] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Review:
    """What a job keeps of a reviewed output.

    `dataset` and `marks` are the hashes of the dataset that was marked and of the marks; `images` has the verdicts on
    whole images and `decided` the decisions on annotations, both by file name; `names` are the categories by their new
    ids; `provenance` is that of the reviewed output; `counts` says in words what was decided.
    """

    dataset: str
    marks: str
    images: Mapping[str, str]
    decided: Mapping[str, Decided]
    names: Mapping[int, str]
    provenance: Any
    counts: str

    def has_rejected(self, file: str) -> bool:
        """Return whether a whole image was rejected."""
        return self.images.get(file) == "rejected"

    def annotations(self, record: Mapping[str, Any], provenance: Any) -> list[Json]:
        """Return the annotations of an image: those that a person accepted or corrected, then the new ones of its
        record in the journal that are neither one of these nor one that was rejected.

        Args:
            provenance: that of this run; annotations of another one get their own.
        """
        decided = self.decided.get(record["file"])
        new = list(record["annotations"])
        if decided is None:
            return new
        hw = record["height"], record["width"]
        label = f"a reviewed annotation of {record['file']}"
        known = [(each["category"], rle.rle_of(each, hw, label=label)) for each in decided.rejected]
        for each in decided.kept:
            mask, before = rle.rle_of(each, hw, label=label), attributes_of(each).get(CATEGORY_BEFORE)
            known += [(name, mask) for name in (self.names[each["category_id"]], before) if name]
        for annotation in record["annotations"]:
            same = [mask for name, mask in known if name == self.names[annotation["category_id"]]]
            mine = rle.rle_of(annotation, hw) if same else None
            if mine and any(rle.iou(mine, mask) >= SAME_MASK for mask in same):
                new.remove(annotation)
        if self.provenance == provenance or not self.provenance:
            return [*decided.kept, *new]
        of_then = {"provenance": self.provenance}
        return [*({**each, "attributes": of_then | dict(attributes_of(each))} for each in decided.kept), *new]

    def info(self) -> Json:
        """Return what `info.review` of the new output records, so that a later run of the job finds the decisions."""
        by_verdict = {
            verdict: sorted(name for name, each in self.images.items() if each == verdict)
            for verdict in ("accepted", "rejected")
        }
        masks = [{"file_name": name, **each} for name, found in self.decided.items() for each in found.rejected]
        return {"dataset": self.dataset, "marks": self.marks, **by_verdict, "rejected_masks": masks}


def read_review(marks: Path | None, output: Place, ontology: Ontology, scan: Scan) -> Review | None:
    """Read what a person decided on the output of a job: from the marks, and from earlier reviews that it records.

    Args:
        marks: the file of marks; without one, only what the output records counts. None is returned if that is nothing.
        output: the output of an earlier run. If it was written with the same marks, it has their decisions already.
        ontology: categories of this run.
        scan: images of this run.

    Raises:
        DatasetError: the marks cannot be read, belong to another dataset, or name what it does not have; there is no
            output yet; or a category that a kept annotation needs is not in the ontology.
        ImageError: an image with kept annotations is not among the images of the job.
    """
    name = str(marks or output)
    if not (exists(output) if isinstance(output, Url) else is_file(output, OutputError)):
        if marks is None:
            return None
        raise DatasetError(f"{name}: there is no {output} that these marks could belong to; name it with --output")
    file = read_marks(marks) if marks else None
    dataset = read_dataset(output)
    check_references(dataset)
    before = dataset["info"].get("review")
    before = before if isinstance(before, Mapping) else {}
    belongs = file is not None and before.get("dataset") == file.dataset.sha256
    done, source = Marks(), (str(before.get("dataset")), str(before.get("marks")))
    if file is None:
        if "dataset" not in before:
            return None
        counts = "those of an earlier run are kept; --overwrite drops them"
    elif belongs and before.get("marks") == file.sha256:
        counts = "applied by an earlier run"
    elif belongs and identity(dataset) != file.dataset.sha256:
        raise DatasetError(
            f"{name} has marks of {output} as it was before other marks were applied. If it has those marks too, run "
            "the same command once without --marks and with --overwrite, which takes them back, and then with this "
            "file; if not, mark a new page of text2seg report"
        )
    else:
        done = file.marks_of(find_marked(file, name, [dataset]), name)
        counts, source = done.count(), (file.dataset.sha256, file.sha256)
    review = _review(dataset, before, done, source, ontology, counts)
    gone = sorted({image for image, each in review.decided.items() if each.kept} - set(scan.files))
    if gone:
        raise ImageError(
            f"{name}: annotations of {listed(gone)} are kept, but the job has no such images; label the folder and the "
            "files that the marks belong to"
        )
    return review


def _review(
    dataset: Dataset, before: Mapping[str, Any], marks: Marks, source: tuple[str, str], ontology: Ontology, counts: str
) -> Review:
    """Return the review of a dataset: with the marks, and with the decisions `before` that it records.

    `source` has the hashes of the dataset that was marked and of the marks.
    """
    files = {each["id"]: each["file_name"] for each in dataset["images"]}
    names = {each["id"]: each["name"] for each in dataset["categories"]}
    ids = {each.name: each.id for each in ontology.categories}
    images = {str(each): verdict for verdict in ("accepted", "rejected") for each in _listed(before.get(verdict))}
    decided: dict[str, Decided] = {}
    for each in _listed(before.get("rejected_masks")):
        if isinstance(each, Mapping) and {"file_name", "category", "segmentation"} <= each.keys():
            rejected = {key: each[key] for key in ("category", "segmentation")}
            decided.setdefault(str(each["file_name"]), Decided()).rejected.append(rejected)
    for annotation in dataset["annotations"]:
        if marks.annotations.get(annotation["id"]) == "rejected":
            rejected = {"category": names[annotation["category_id"]], "segmentation": annotation.get("segmentation")}
            decided.setdefault(files[annotation["image_id"]], Decided()).rejected.append(rejected)
    for annotation in marks.apply(dataset)["annotations"]:
        if REVIEW not in attributes_of(annotation):
            continue
        category = names[annotation["category_id"]]
        if category not in ids:
            raise DatasetError(
                f"{dataset.name}: annotation {annotation['id']} was accepted, but the ontology has no category "
                f"{category!r} any more; add it, choose another --output, or drop what was decided with --overwrite"
            )
        kept = {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
        decided.setdefault(files[annotation["image_id"]], Decided()).kept.append(kept | {"category_id": ids[category]})
    by_id = {number: name for name, number in ids.items()}
    made_by = dataset["info"].get("provenance")
    return Review(*source, images | marks.images, decided, by_id, made_by, counts)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

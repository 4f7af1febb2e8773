"""Refinement of a COCO dataset as a pipeline: SAM alone, with the regions of its annotations in place of words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from text2seg.coco.dataset import ENCODERS
from text2seg.coco.json_file import Json, plain_number
from text2seg.coco.reader import Dataset, attributes_of, size_of
from text2seg.coco.rle import mask_of
from text2seg.config import POLYGON_TOLERANCE, Encoding, ModelSettings, RefineSettings, Settings
from text2seg.errors import ImageError, SettingsError
from text2seg.everything import SamPipeline
from text2seg.grids import tight_box
from text2seg.loading import load_sam
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query, parse_queries
from text2seg.records import Segment, Segmentation, SimilarityMaps
from text2seg.sam.base import AnySam
from text2seg.sam.refinement import Refined, Region, refine
from text2seg.session import ImageSource, Queries, Session


def refine_image(
    models: Text2Seg | SamPipeline,
    image: ImageSource,
    regions: Sequence[Region],
    settings: RefineSettings | None = None,
) -> tuple[Refined, ...]:
    """Refine boxes and masks of one image.

    Args:
        models: whose SAM is used.
        regions: masks bool[H, W] and boxes (x, y, width, height), in pixels of the image.

    Raises:
        ImageError: the image cannot be read.
        SettingsError: a region is neither a mask nor a box, a mask has another size than the image, or a region has no
            pixel in it.
    """
    session = models.open(image)
    for region in regions:
        if not isinstance(region, np.ndarray) and (not hasattr(region, "__len__") or len(region) != 4):
            raise SettingsError(
                f"regions must be masks and boxes (x, y, width, height), got {region!r}; one box is [box]"
            )
        if isinstance(region, np.ndarray) and (region.shape != session.image.hw or region.dtype != np.bool_):
            raise SettingsError(f"a mask must be bool{list(session.image.hw)}, got {region.dtype}{list(region.shape)}")
    if not regions:
        return ()
    (embedding,) = models.sam.embed([session.image])
    return refine(models.sam, [(embedding, region) for region in regions], settings or RefineSettings())


class Refiner(SamPipeline):
    """The pipeline that refines the annotations of one dataset.

    An image is known by its `image_id` in the dataset. The segments of an image are its annotations in their order,
    each with the name of its category as query. Crowds, and annotations with neither a mask nor a box in the image,
    have none and stay as they are.
    """

    def __init__(
        self,
        sam: AnySam,
        dataset: Dataset,
        refine: RefineSettings | None = None,
        *,
        provenance: dict[str, object] | None = None,
    ) -> None:
        """
        Args:
            dataset: checked, with references that exist. An annotation without a mask is refined from its box.
        """
        super().__init__(sam, settings=Settings(), provenance=provenance)
        self.refine, self._name = refine or RefineSettings(), dataset.name
        self._categories = {each["id"]: each["name"] for each in dataset["categories"]}
        self._images = {each["id"]: each for each in dataset["images"]}
        self._annotations: Mapping[int, list[Json]] = defaultdict(list)
        for annotation in dataset["annotations"]:
            self._annotations[annotation["image_id"]].append(annotation)

    @classmethod
    def load(cls, model: ModelSettings, dataset: Dataset, refine: RefineSettings | None = None) -> Refiner:
        """Load the SAM of a pair; its CLIP is not needed. Raises as `Text2Seg.load`."""
        sam, provenance = load_sam(
            model.model, sam=model.sam, device=model.device, precision=model.precision, compile_sam=model.compile
        )
        return cls(sam, dataset, refine, provenance=provenance)

    def describe_models(self) -> dict[str, object]:
        return super().describe_models() | {"refine": asdict(self.refine)}

    def check(self, queries: Queries, settings: Settings | None = None) -> tuple[Query, ...]:
        return parse_queries(queries)

    def segment_sessions(
        self, sessions: Sequence[Session], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        regions = [self._regions(session) for session in sessions]
        used = [number for number, of_image in enumerate(regions) if of_image]
        embeddings = dict(zip(used, self.sam.embed([sessions[number].image for number in used]), strict=True))
        answers = iter(
            refine(self.sam, [(embeddings[n], region) for n in used for _, region in regions[n]], self.refine)
        )
        return tuple(
            self._segmentation(
                session,
                [(annotation, next(answers)) for annotation, _ in of_image],
                frozenset(annotation["id"] for annotation, region in of_image if isinstance(region, np.ndarray)),
            )
            for session, of_image in zip(sessions, regions, strict=True)
        )

    def _regions(self, session: Session) -> list[tuple[Json, Region]]:
        """Return the annotations of an image that have a region, with it. Raises `DatasetError`, `ImageError`."""
        image = session.image
        hw = size_of(self._images[image.image_id], self._name)
        if hw != image.hw:
            raise ImageError(
                f"{image.file_name} is {image.hw[1]} x {image.hw[0]} pixels, the dataset says {hw[1]} x {hw[0]}; is it "
                "another image with the same name?"
            )
        found: list[tuple[Json, Region]] = []
        for annotation in self._annotations[image.image_id]:
            region = None if annotation.get("iscrowd") else self._region(annotation, hw)
            if region is not None:
                found.append((annotation, region))
        return found

    def _region(self, annotation: Json, hw: tuple[int, int]) -> Region | None:
        if annotation.get("segmentation"):
            mask = mask_of(annotation, hw, self._name)
            if mask.any():
                return mask
        box = annotation.get("bbox")
        if not box:
            return None
        x, y, width, height = map(float, box)
        inside = min(x + width, hw[1]) - max(x, 0) >= 1 and min(y + height, hw[0]) - max(y, 0) >= 1
        return (x, y, width, height) if inside else None

    def _segmentation(
        self, session: Session, answers: Sequence[tuple[Json, Refined]], had_mask: frozenset[int]
    ) -> RefinedImage:
        names = tuple(dict.fromkeys(self._categories[annotation["category_id"]] for annotation, _ in answers))
        count, image = len(names), session.image
        maps = SimilarityMaps(names, np.zeros((count, 1, 1), np.float32), np.ones(count, np.float32), image.hw)
        segments = tuple(
            Segment(
                query=self._categories[annotation["category_id"]],
                mask=refined.mask,
                sam_score=refined.sam_score,
                map_score=0.0,
                presence=1.0,
                points=refined.points,
                candidates=refined.candidates,
                chosen=0,
            )
            for annotation, refined in answers
        )
        found = {annotation["id"]: refined for annotation, refined in answers}
        annotations = tuple(self._annotations[image.image_id])
        return RefinedImage(image, segments, maps, annotations=annotations, refined=found, had_mask=had_mask)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RefinedImage(Segmentation):
    """Result of one image: its annotations of the dataset, by their ids what was found for them, and the ids of those
    that had a mask, not only a box."""

    annotations: tuple[Json, ...] = ()
    refined: Mapping[int, Refined] = field(default_factory=dict)
    had_mask: frozenset[int] = frozenset()


def refined_annotations(
    result: Segmentation,
    categories: Mapping[str, int],
    *,
    encoding: Encoding = "rle",
    polygon_tolerance: float = POLYGON_TOLERANCE,
) -> list[Json]:
    """Return the annotations of a `RefinedImage` with their ids, categories and attributes. Like `annotations_of`.

    Refined ones get another mask, area, box and, if they had none, a score. All that SAM was asked about get
    attributes: `refined` says whether they have another mask, `sam_score` is SAM's predicted IoU, and `agreement`, if
    there was a mask, its IoU with SAM's. Others stay as they are.
    """
    assert isinstance(result, RefinedImage)
    return [
        _annotation(
            each, result.refined[each["id"]], encoding, polygon_tolerance, had_mask=each["id"] in result.had_mask
        )
        if each["id"] in result.refined
        else {key: value for key, value in each.items() if key != "image_id"}
        for each in result.annotations
    ]


def _annotation(old: Json, refined: Refined, encoding: Encoding, polygon_tolerance: float, *, had_mask: bool) -> Json:
    score, is_new = plain_number(refined.sam_score), not refined.kept and bool(refined.mask.any())
    attributes = {"refined": is_new, "sam_score": score}
    if had_mask:
        attributes["agreement"] = plain_number(refined.agreement)
    new = {key: value for key, value in old.items() if key != "image_id"}
    new["attributes"] = {**attributes_of(old), **attributes}
    if not is_new:
        return new
    new.setdefault("score", score)
    return new | {
        "iscrowd": 0,
        "segmentation": ENCODERS[encoding](refined.mask, polygon_tolerance),
        "area": int(np.count_nonzero(refined.mask)),
        "bbox": list(tight_box(refined.mask) or (0, 0, 0, 0)),
    }

"""Replay: reproduce a mask of a dataset from the record of its annotation and compare the two."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from text2seg import weights
from text2seg.coco import polygon, simplify
from text2seg.coco.json_file import short
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.provenance import (
    annotation_with_id,
    chosen_of,
    compiled_of,
    points_of,
    provenance_of,
    query_of,
    recorded_queries,
    settings_of,
    view_of,
)
from text2seg.coco.reader import check_dataset, check_references, read_dataset
from text2seg.coco.rle import mask_of
from text2seg.config import Settings, TileSettings, check_tolerance
from text2seg.errors import CheckpointError, ImageError, SettingsError, Text2SegError
from text2seg.grids import iou, place
from text2seg.io.images import load_image
from text2seg.loading import fetch, is_here
from text2seg.onnx.networks import read_manifest
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query, parse_query
from text2seg.records import Image, PointPrompts, Segment
from text2seg.runtime import PrecisionName
from text2seg.sam.base import AnySam
from text2seg.session import Session
from text2seg.tiling import shift
from text2seg.weights.registry import is_openclip, is_published

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A recorded annotation and its reproduction with the same models and image.

    `made_by` is the version of text2seg that recorded it. `rebuilt_points` and `rebuilt_chosen` are None if the query
    was not found again. `points_distance` is the Hausdorff distance in pixels between recorded and rebuilt points,
    the larger of that of positive and that of negative points, infinite if one side has none. `rebuilt` is SAM's mask
    for the *recorded* points and candidate, bool[H, W] like `recorded`, so it differs only if SAM differs.
    """

    annotation_id: int
    made_by: str
    query: str
    image: Image
    recorded_points: PointPrompts
    rebuilt_points: PointPrompts | None
    points_identical: bool
    points_distance: float
    recorded_chosen: int
    rebuilt_chosen: int | None
    recorded: NDArray[np.bool_]
    rebuilt: NDArray[np.bool_]
    differing_pixels: int
    iou: float

    @property
    def mask_identical(self) -> bool:
        return not self.differing_pixels

    @property
    def identical(self) -> bool:
        """Whether points, chosen candidate and mask are all the same."""
        return self.points_identical and self.rebuilt_chosen == self.recorded_chosen and self.mask_identical


def replay(
    dataset: str | os.PathLike[str] | Json,
    annotation_id: int,
    *,
    images: str | os.PathLike[str] | None = None,
    clip: str | None = None,
    sam: str | None = None,
    device: str = "auto",
    compile: bool = False,
    graphs: str | os.PathLike[str] | None = None,
    models: Text2Seg | None = None,
) -> Replayed:
    """Reproduce one annotation: points from CLIP, and the mask from SAM with the recorded points.

    Args:
        dataset: a COCO file that text2seg wrote, or its content.
        annotation_id: id of the annotation.
        images: folder of the images. Default: see `text2seg.coco.lookup.ImageFinder`.
        clip, sam: name or file of the recorded weights. Default: the known checkpoint with the recorded name, or a
            checkpoint with the recorded hash. A path in the dataset is never opened.
        device: auto, cpu, cuda, … The device is not recorded; another one may differ in the last digits.
        compile: compile SAM's encoder, for an annotation made with `--compile`. A dataset alone does not switch it on.
        graphs: folder of the ONNX graphs, for an annotation made with `--runtime onnx`.
        models: the recorded models, already loaded, to replay many annotations.

    Raises:
        Text2SegError: there is no such annotation, or its record is incomplete.
        CheckpointError: the weights or graphs are not the recorded ones, or the weights are not on this machine; only
            weights given as `clip` or `sam` are downloaded.
        ImageError: the image is missing or has another size.
        SettingsError, OntologyError, QueryError: the record does not fit this version of text2seg, or `graphs` is
            missing or not needed.
    """
    file = Path(dataset) if isinstance(dataset, str | os.PathLike) else None
    content = check_dataset(dataset, "the dataset") if isinstance(dataset, Mapping) else read_dataset(dataset)
    check_references(content)
    annotation = annotation_with_id(content, annotation_id)
    points = points_of(annotation)
    query = query_of(annotation, content)
    origin = provenance_of(annotation, content)
    settings = settings_of(annotation_id, origin)
    image = image_of(annotation, content, file, images)
    recorded = mask_of(annotation, image.hw, content.name)
    models = models or load_recorded(origin, clip=clip, sam=sam, device=device, compile=compile, graphs=graphs)
    check_models(models, origin)
    view = view_of(annotation, image.hw)
    session = models.open(image).view(view)
    prompts = shift(points, view, back=True)  # in pixels of the view, apart from rounding
    again = _found_again(session, query, content, replace(settings, tiles=TileSettings()), prompts)
    distance = _distance(points, shift(again.points, view)) if again else np.inf
    if view and again and distance == 0:
        prompts = again.points
    chosen = chosen_of(annotation)
    own_mask = rebuilt_mask(models.sam, session, prompts, chosen, again, settings, annotation_id)
    rebuilt = _as_written(place(own_mask, view, image.hw), annotation, content)
    return Replayed(
        annotation_id=annotation_id,
        made_by=str(origin.get("text2seg", "unknown")),
        query=query.name,
        image=image,
        recorded_points=points,
        rebuilt_points=shift(again.points, view) if again else None,
        points_identical=again is not None and len(again.points) == len(points) and distance == 0,
        points_distance=float(distance),
        recorded_chosen=chosen,
        rebuilt_chosen=again.chosen if again else None,
        recorded=recorded,
        rebuilt=rebuilt,
        differing_pixels=int(np.count_nonzero(recorded != rebuilt)),
        iou=iou(recorded, rebuilt),
    )


def _as_written(mask: NDArray[np.bool_], annotation: Json, dataset: Json) -> NDArray[np.bool_]:
    """Return a mask after it was written and read in the form of the annotation: polygons may have few corners."""
    tolerance = dataset["info"].get("polygon_tolerance")
    if not isinstance(annotation["segmentation"], list) or tolerance is None:
        return mask
    check_tolerance(tolerance)
    return polygon.decode(simplify.encode(mask, tolerance), (mask.shape[0], mask.shape[1]))


def image_of(annotation: Json, dataset: Json, file: Path | None, images: str | os.PathLike[str] | None) -> Image:
    """Load the image of an annotation. Raises `ImageError` if it is missing or has another size than in the dataset."""
    entry = next(each for each in dataset["images"] if each["id"] == annotation["image_id"])
    path = ImageFinder(file, images, dataset["info"]).find(entry["file_name"])
    image = load_image(path, image_id=entry["id"], file_name=entry["file_name"])
    height, width = image.hw
    if (entry.get("height"), entry.get("width")) != image.hw:
        theirs = f"{entry.get('width')} x {entry.get('height')}"
        raise ImageError(f"{path} is {width} x {height} pixels, in the dataset {theirs}: not the same image")
    return image


def rebuilt_mask(
    sam: AnySam,
    session: Session,
    points: PointPrompts,
    chosen: int,
    again: Segment | None,
    settings: Settings,
    annotation_id: int,
) -> NDArray[np.bool_]:
    """Return SAM's mask bool[H, W] of the session's image for the recorded points and candidate.

    A rough mask for SAM and the result of overlap resolution are not recorded: they are taken from `again`, the
    segment as it is found now.

    Raises:
        Text2SegError: there is no such candidate, or `again` is needed and missing.
    """
    masks = settings.masks
    if masks.prompt == "box-mask":
        if again is None:
            raise _lost(annotation_id, "SAM was given the map as a rough mask")
        points = replace(points, masks=again.points.masks)
    embedding = session.embedding or sam.embed([session.image])[0]
    (candidates,) = sam.decode([(embedding, points)])
    if chosen >= len(candidates):
        raise Text2SegError(f"annotation {annotation_id} is of candidate {chosen}, SAM has {len(candidates)} only")
    if not masks.resolve_overlaps:
        return sam.mask(embedding, candidates, chosen)
    if settings.tiles.tile:
        raise _lost(annotation_id, "its overlaps with segments of other tiles were resolved")
    if again is None or again.chosen != chosen:
        raise _lost(annotation_id, "its overlaps with other queries were resolved")
    return again.mask


def _lost(annotation_id: int, what: str) -> Text2SegError:
    return Text2SegError(
        f"annotation {annotation_id} cannot be reproduced: {what}, which is not recorded and was not found again"
    )


def _found_again(
    session: Session, query: Query, dataset: Json, settings: Settings, recorded: PointPrompts
) -> Segment | None:
    """Return the segment of the query that is found now; of several, the one with the closest points."""
    queries: tuple[Query, ...] = (query,)
    # A label set, or overlap resolution, depends on all queries of the dataset.
    if settings.maps.redundancy == "label-set" or settings.masks.resolve_overlaps:
        names = dict.fromkeys(each["name"] for each in dataset["categories"])
        others = recorded_queries(dataset) or tuple(map(parse_query, names))
        queries += tuple(each for each in others if each.name != query.name)
    found = [each for each in session.segment(queries, settings).segments if each.query == query.name]
    return min(found, key=lambda segment: _distance(segment.points, recorded), default=None)


def _distance(one: PointPrompts, other: PointPrompts) -> float:
    """Return the largest distance between two prompts, over positive points, negative points and corners of boxes."""
    if len(one.boxes_xyxy) != len(other.boxes_xyxy):
        return np.inf
    corners = one.boxes_xyxy.astype(np.float64) - other.boxes_xyxy
    distance = float(np.linalg.norm(corners.reshape(-1, 2), axis=1).max(initial=0))
    for label in (0, 1):
        a, b = one.xy[one.labels == label], other.xy[other.labels == label]
        if not len(a) and not len(b):
            continue
        if not len(a) or not len(b):
            return np.inf
        apart = np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2)
        distance = max(distance, float(apart.min(0).max()), float(apart.min(1).max()))
    return distance


# ---- the models that made an annotation: found by name or hash, loaded, and compared with the record

OTHER_GRAPHS = "find those that made it, or label anew"
LONGEST_NAME = 120
"""Limit of letters of a recorded name in a message."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def load_recorded(
    origin: Json,
    *,
    clip: str | None = None,
    sam: str | None = None,
    device: str = "auto",
    compile: bool = False,
    graphs: str | os.PathLike[str] | None = None,
) -> Text2Seg:
    """Load the models that a provenance names and check their hashes. Arguments and errors as for `replay`."""
    precision = precision_of(origin, graphs)
    if compiled_of(origin) != compile:
        ways = (
            "an uncompiled SAM; leave out --compile" if compile else "a compiled SAM; add --compile to compile it here"
        )
        raise SettingsError(f"the annotation was made by {ways}")
    clip_name, sam_name = _checkpoint(origin, "clip", clip), _checkpoint(origin, "sam", sam)
    return Text2Seg.load(
        clip=clip_name,
        sam=sam_name,
        device=device,
        precision=precision,
        compile=compile,
        graphs=graphs,
    )


def _checkpoint(origin: Json, kind: Literal["clip", "sam"], given: str | None) -> str:
    """Return the name to load after checking its hash; a published hash is checked before a download.

    The dataset may be anyone's, so a path is opened, and a file downloaded, only if the caller names it (`given`).
    """
    if "automatic" in origin:
        raise Text2SegError("the mask was made by --everything, without CLIP; only masks of queries can be replayed")
    mark = origin.get(kind)
    name, wanted = (mark.get("name"), mark.get("sha256")) if isinstance(mark, Mapping) else (None, None)
    if not isinstance(name, str) or not name or not isinstance(wanted, str) or not _SHA256.fullmatch(wanted):
        raise Text2SegError(f"the annotation does not record which {kind.upper()} made it, so it cannot be reproduced")
    if given and name == weights.BUNDLED:
        raise CheckpointError(f"the annotation was made with the bundled demo model; leave out --{kind}")
    if given:
        chosen: str | None = given
    elif kind == "clip" and is_openclip(name):
        chosen = name if is_published(name) else None
    else:
        chosen = weights.recorded(name, kind, wanted)
    if chosen is None:
        file = "openclip:… FILE or FOLDER" if is_openclip(name) else "FILE"
        raise CheckpointError(
            f"the annotation was made by the {kind.upper()} {name[:LONGEST_NAME]!r}, which is neither known by name "
            f"nor, by its hash, in {weights.folder()}. A path in a dataset is not opened; "
            f"name the weights with --{kind} {file}"
        )
    published = weights.find(chosen, kind).sha256
    found = published or ""
    if not published or wanted.startswith(published):
        if not given and not is_here(chosen, kind):
            raise CheckpointError(
                f"the annotation was made by the {kind.upper()} {chosen[:LONGEST_NAME]}, which is not on this machine; "
                f"a dataset does not start a download: add --{kind} {chosen[:LONGEST_NAME]}, or first run "
                f"text2seg checkpoints download {chosen[:LONGEST_NAME]}"
            )
        found = weights.sha256_of(fetch(chosen, kind))
    if found != wanted:
        raise CheckpointError(_other_weights(kind, given or name[:LONGEST_NAME], wanted, found, origin))
    return chosen


def check_models(models: Text2Seg, origin: Json) -> None:
    """Raise `CheckpointError` or `SettingsError` unless the models, precision and compilation are the recorded ones."""
    here = models.provenance()
    for kind in ("clip", "sam"):
        wanted, found = origin.get(kind), here.get(kind)
        wanted_hash = wanted.get("sha256") if isinstance(wanted, Mapping) else None
        found_hash = found.get("sha256") if isinstance(found, Mapping) else None
        if not wanted_hash or wanted_hash != found_hash:
            name = wanted.get("name") if isinstance(wanted, Mapping) else None
            raise CheckpointError(_other_weights(kind, str(name), str(wanted_hash), str(found_hash), origin))
    if here.get("graphs") != origin.get("graphs"):
        raise CheckpointError(f"the annotation and the models are from different ONNX graphs; {OTHER_GRAPHS}")
    if here["precision"] != origin.get("precision"):
        raise SettingsError(
            f"the annotation was made in {origin.get('precision')}, the models run in {here['precision']}; "
            "choose the recorded device or precision"
        )
    if here["compiled"] != compiled_of(origin):
        made, run = ("compiled", "uncompiled") if compiled_of(origin) else ("uncompiled", "compiled")
        raise SettingsError(f"the annotation was made by a {made} SAM, this one is {run}; load it as recorded")


def _other_weights(kind: str, name: str, wanted: str, found: str, origin: Json) -> str:
    version = origin.get("text2seg")
    way_out = (
        f"install the text2seg that made it ({version})"
        if name == weights.BUNDLED
        else f"name the recorded weights with --{kind} FILE"
    )
    return (
        f"the {kind.upper()} {name!r} here is not the one that made the annotation: its sha256 is {found}, "
        f"recorded is {wanted}; {way_out}"
    )


def precision_of(origin: Json, graphs: str | os.PathLike[str] | None) -> PrecisionName:
    """Return the precision to load the models in.

    Raises:
        SettingsError: precision or runtime are unknown, or `graphs` is missing or not needed.
        CheckpointError: `graphs` has other graphs than the recorded ones.
    """
    runtime = origin.get("runtime", "torch")
    if runtime not in ("torch", "onnx"):
        raise SettingsError(f"the annotation records an unknown runtime: {short(runtime)}; known are torch and onnx")
    if runtime == "onnx":
        if graphs is None:
            raise SettingsError("the annotation was made with ONNX graphs; name their folder with --graphs FOLDER")
        if dict(read_manifest(Path(graphs)).files) != origin.get("graphs"):
            raise CheckpointError(
                f"the annotation was made with other ONNX graphs than those in {graphs}; {OTHER_GRAPHS}"
            )
        return "auto"  # fixed in the graphs, whose hashes are compared
    if graphs is not None:
        raise SettingsError("the annotation was not made with ONNX graphs; leave out --graphs")
    precision = origin.get("precision")
    if precision not in get_args(PrecisionName):
        raise SettingsError(f"the annotation records an unknown precision: {short(precision)}")
    return cast(PrecisionName, precision)

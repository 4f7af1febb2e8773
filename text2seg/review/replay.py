"""Replay: a mask of a dataset made again from what its annotation records, and whether it is the same."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from text2seg import weights
from text2seg.coco.lookup import provenance_of
from text2seg.coco.reader import check_dataset, check_references, read_dataset
from text2seg.coco.results import mask_of
from text2seg.config import Settings, TileSettings
from text2seg.errors import CheckpointError, SettingsError, Text2SegError
from text2seg.grids import iou
from text2seg.loading import fetch, is_here
from text2seg.pipeline import Session, Text2Seg
from text2seg.queries import Query, parse_query
from text2seg.records import Image, PointPrompts, Segment
from text2seg.review.provenance import (
    OTHER_GRAPHS,
    annotation_with,
    chosen_of,
    compiled_of,
    image_of,
    ontology_queries,
    points_of,
    precision_of,
    query_of,
    settings_of,
    view_of,
)
from text2seg.sam.base import AnySam
from text2seg.tiling import place, shift
from text2seg.weights.registry import is_openclip, is_published


def rebuilt_mask(
    sam: AnySam,
    session: Session,
    points: PointPrompts,
    chosen: int,
    again: Segment | None,
    settings: Settings,
    annotation_id: int,
) -> NDArray[np.bool_]:
    """SAM's mask bool[H, W] of the session's image, for the recorded points and candidate.

    A rough mask for SAM, the region of the map as a segment, and what competing segments left of one another are not
    recorded: they are as they come out now, `again`.

    Raises:
        Text2SegError: there is no such candidate, or the thing is not found again and that is needed.
    """
    masks = settings.masks
    if masks.prompt == "box-mask":
        if again is None:
            raise _lost(annotation_id, "SAM was given the map as a rough mask")
        points = replace(points, masks=again.points.masks)
    embedding = session.embedding or sam.embed([session.image])[0]
    (candidates,) = sam.decode([(embedding, points)])
    if chosen > len(candidates) or (chosen == len(candidates) and not masks.fallback):
        raise Text2SegError(f"annotation {annotation_id} is of candidate {chosen}, SAM has {len(candidates)} only")
    if chosen < len(candidates) and not masks.compete:
        return sam.mask(embedding, candidates, chosen)
    if masks.compete and settings.tiles.tile:
        raise _lost(annotation_id, "it competed with what was seen in all tiles")
    if again is None or again.chosen != chosen:
        what = "it competed with other queries" if masks.compete else "it is the region of the map itself"
        raise _lost(annotation_id, what)
    return again.mask


def _lost(annotation_id: int, what: str) -> Text2SegError:
    return Text2SegError(
        f"annotation {annotation_id} cannot be made again: {what}, which is not recorded and does not come out again"
    )


Json = Mapping[str, Any]

LONGEST_NAME = 120
"""So many letters of a recorded name stand in a message."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """A recorded annotation and what the same models make of the same image now.

    `made_by` is the version of text2seg that recorded it. `rebuilt_points` and `rebuilt_chosen` are `None` where the
    thing was not found again. `points_distance` is how far, in pixels, the recorded and the rebuilt points are apart
    where that is most: the Hausdorff distance, positive and negative points each by themselves, infinite where one side
    has none. `rebuilt` is SAM's mask, bool[H, W] like `recorded`, for the *recorded* points and candidate, so that a
    difference tells of SAM alone.
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
        """Points, choice of the candidate and mask are all the same."""
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
    """Redo one annotation: CLIP to points, and SAM from the recorded points to the mask.

    Args:
        dataset: a COCO file that text2seg wrote, or what is in it.
        images: where the images lie; by default as for `text2seg.coco.lookup.ImageFinder`.
        clip, sam: where the recorded weights lie now, a name or a file. Default: the known checkpoint of the recorded
            name, or what has the recorded hash among known ones and in the folder of checkpoints. A path that the
            dataset records is never opened.
        device: auto, cpu, cuda, … Which one was used is not recorded; another one may differ in the last digits.
        compile: let torch compile SAM's encoder, for an annotation that was made so; a dataset alone switches that on
            for nobody.
        graphs: the folder of the ONNX graphs, for an annotation that was made by some; where they lie is not recorded.
        models: in place of loading them, when many annotations are replayed; must be the recorded ones.

    Raises:
        Text2SegError: there is no such annotation, or it does not record what it takes.
        CheckpointError: the weights or graphs here are not those that made it, or weights that the dataset names are
            not on this machine: only those that `clip` or `sam` name are downloaded.
        ImageError: the image is missing or of another size.
        SettingsError, OntologyError, QueryError: what is recorded does not fit this version of text2seg; a
            `SettingsError` too where it takes `graphs` and there are none, or the other way round.
    """
    file = Path(dataset) if isinstance(dataset, str | os.PathLike) else None
    content = check_dataset(dataset, "the dataset") if isinstance(dataset, Mapping) else read_dataset(dataset)
    check_references(content)
    annotation = annotation_with(content, annotation_id)
    points = points_of(annotation)
    query = query_of(annotation, content)
    origin = provenance_of(annotation, content)
    settings = settings_of(annotation_id, origin)
    image = image_of(annotation, content, file, images)
    recorded = mask_of(annotation, image.hw, content.name)
    models = models or load_recorded(origin, clip=clip, sam=sam, device=device, compile=compile, graphs=graphs)
    _check_models(models, origin)
    view = view_of(annotation, image.hw)
    session = models.open(image).view(view)
    prompts = shift(points, view, back=True)  # in the view's own pixels, but for rounding
    again = _found_again(session, query, content, replace(settings, tiles=TileSettings()), prompts)
    distance = _distance(points, shift(again.points, view)) if again else np.inf
    if view and again and distance == 0:
        prompts = again.points
    chosen = chosen_of(annotation)
    own_mask = rebuilt_mask(models.sam, session, prompts, chosen, again, settings, annotation_id)
    rebuilt = place(own_mask, view, image.hw)
    return Replayed(
        annotation_id,
        str(origin.get("text2seg", "unknown")),
        query.name,
        image,
        points,
        shift(again.points, view) if again else None,
        again is not None and len(again.points) == len(points) and distance == 0,
        float(distance),
        chosen,
        again.chosen if again else None,
        recorded,
        rebuilt,
        int(np.count_nonzero(recorded != rebuilt)),
        iou(recorded, rebuilt),
    )


def load_recorded(
    origin: Json,
    *,
    clip: str | None = None,
    sam: str | None = None,
    device: str = "auto",
    compile: bool = False,
    graphs: str | os.PathLike[str] | None = None,
) -> Text2Seg:
    """The models that a provenance names, once their hashes are right. Arguments and errors as for `replay`."""
    precision = precision_of(origin, graphs)
    if compiled_of(origin) != compile:
        ways = (
            "an uncompiled SAM; leave out --compile" if compile else "a compiled SAM; say --compile to compile it here"
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
    """The name to load, after a look at the hash of what it stands for: before a download where one is published.

    A path is opened, and a file downloaded, only where it is `given`, by whoever asks; the dataset may be anyone's.
    """
    mark = origin.get(kind)
    name, wanted = (mark.get("name"), mark.get("sha256")) if isinstance(mark, Mapping) else (None, None)
    if not isinstance(name, str) or not name or not isinstance(wanted, str) or not _SHA256.fullmatch(wanted):
        raise Text2SegError(f"the annotation does not record which {kind.upper()} made it, so it cannot be made again")
    if given and name == "demo":
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
            f"say where the weights lie with --{kind} {file}"
        )
    published = weights.find(chosen, kind).sha256
    found = published or ""
    if not published or wanted.startswith(published):
        if not given and not is_here(chosen, kind):
            raise CheckpointError(
                f"the annotation was made by the {kind.upper()} {chosen[:LONGEST_NAME]}, which is not on this machine; "
                f"a dataset does not start a download: say --{kind} {chosen[:LONGEST_NAME]}, or first run "
                f"text2seg checkpoints download {chosen[:LONGEST_NAME]}"
            )
        found = weights.sha256_of(fetch(chosen, kind))
    if found != wanted:
        raise CheckpointError(_other_weights(kind, given or name[:LONGEST_NAME], wanted, found, origin))
    return chosen


def _check_models(models: Text2Seg, origin: Json) -> None:
    """Models that were handed in must be the recorded ones, in the recorded precision, compiled or not as recorded."""
    here = models.provenance()
    for kind in ("clip", "sam"):
        wanted, found = origin.get(kind), here.get(kind)
        wanted_hash = wanted.get("sha256") if isinstance(wanted, Mapping) else None
        found_hash = found.get("sha256") if isinstance(found, Mapping) else None
        if not wanted_hash or wanted_hash != found_hash:
            name = wanted.get("name") if isinstance(wanted, Mapping) else None
            raise CheckpointError(_other_weights(kind, str(name), str(wanted_hash), str(found_hash), origin))
    if here.get("graphs") != origin.get("graphs"):
        raise CheckpointError(f"the annotation and the models are not of the same ONNX graphs; {OTHER_GRAPHS}")
    if here["precision"] != origin.get("precision"):
        raise SettingsError(
            f"the annotation was made in {origin.get('precision')}, the models run in {here['precision']}; "
            "choose the device or precision to fit"
        )
    if here["compiled"] != compiled_of(origin):
        made, run = ("compiled", "uncompiled") if compiled_of(origin) else ("uncompiled", "compiled")
        raise SettingsError(f"the annotation was made by a {made} SAM, this one is {run}; load it to fit")


def _other_weights(kind: str, name: str, wanted: str, found: str, origin: Json) -> str:
    version = origin.get("text2seg")
    way_out = (
        f"install the text2seg that made it ({version})"
        if name == "demo"
        else f"say where the recorded weights lie with --{kind} FILE"
    )
    return (
        f"the {kind.upper()} {name!r} here is not the one that made the annotation: its sha256 is {found}, "
        f"recorded is {wanted}; {way_out}"
    )


def _found_again(
    session: Session, query: Query, dataset: Json, settings: Settings, recorded: PointPrompts
) -> Segment | None:
    """What is found of the query now; of several segments the one whose points come closest."""
    queries: tuple[Query, ...] = (query,)
    # All that was asked for together belongs to the set, or competed.
    if settings.maps.redundancy == "label-set" or settings.masks.compete:
        names = dict.fromkeys(each["name"] for each in dataset["categories"])
        others = ontology_queries(dataset) or tuple(map(parse_query, names))
        queries += tuple(each for each in others if each.name != query.name)
    found = [each for each in session.segment(queries, settings).segments if each.query == query.name]
    return min(found, key=lambda segment: _distance(segment.points, recorded), default=None)


def _distance(one: PointPrompts, other: PointPrompts) -> float:
    """How far apart two sets are where it is most: positives, negatives, the corners of boxes each by themselves."""
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

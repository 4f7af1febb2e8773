"""Predictions for Label Studio: its labelling configuration as queries, our segments as its regions.

Formats: https://labelstud.io/guide/ml_create and https://labelstud.io/tags/brushlabels. The run-length encoding of
brushes is that of the package rle-pack of thi.ng/umbrella, applied to the RGBA values of all pixels.
"""

from __future__ import annotations

import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg._version import __version__
from text2seg.coco.dataset import segment_score
from text2seg.coco.simplify import encode as polygons_of
from text2seg.config import POLYGON_TOLERANCE
from text2seg.errors import SettingsError
from text2seg.io.names import shown
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query, parse_queries
from text2seg.records import Image, PointPrompts, Segment
from text2seg.session import Session

Json = dict[str, Any]

# ---- the labelling configuration


@dataclass(frozen=True, slots=True)
class Labels:
    """A tag that labels regions of the image: its name, and the wordings of each label."""

    name: str
    wordings: Mapping[str, tuple[str, ...]]

    def of(self, text: str) -> str | None:
        """Return the label that a text names, by its value or a wording; None if there is none."""
        wanted = text.strip().casefold()
        for label, wordings in self.wordings.items():
            if wanted in {label.casefold(), "|".join(wordings).casefold(), *(each.casefold() for each in wordings)}:
                return label
        return None

    @property
    def queries(self) -> tuple[Query, ...]:
        """A query for each label, with its name."""
        return tuple(Query(label, (wordings,)) for label, wordings in self.wordings.items())


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """The parts of a project's labelling configuration that matter here.

    `image` is the name of the Image tag, `key` the key of its file in a task's data. Masks are written as brushes if
    there is a BrushLabels tag, else as polygons.
    """

    image: str
    key: str
    labels: Labels
    kind: str

    @classmethod
    def parse(cls, text: str) -> LabelConfig:
        """Read a configuration.

        Raises:
            SettingsError: it is not XML, or it has no image, or no BrushLabels or PolygonLabels with labels.
        """
        try:
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            raise SettingsError(f"the labelling configuration is not XML: {error}") from error
        images = [tag for tag in root.iter("Image") if tag.get("name")]
        if not images:
            raise SettingsError('the labelling configuration has no <Image name="…" value="$…"/>')
        image = images[0].get("name", "")
        for kind in ("BrushLabels", "PolygonLabels"):
            for tag in root.iter(kind):
                wordings = dict(map(_wordings, tag.iter("Label")))
                if tag.get("toName") == image and wordings:
                    labels = Labels(tag.get("name", ""), wordings)
                    return cls(image, images[0].get("value", "").lstrip("$"), labels, kind.lower())
        raise SettingsError(
            f'the labelling configuration needs <BrushLabels toName="{image}"> or <PolygonLabels toName="{image}"> '
            "with at least one <Label>, for the masks"
        )


def _wordings(label: ElementTree.Element) -> tuple[str, tuple[str, ...]]:
    """Return the name of a label in results, and its wordings: those of `predicted_values`, else its value."""
    value = label.get("value", "").strip()
    given = tuple(word.strip() for word in label.get("predicted_values", "").split(",") if word.strip())
    if not value:
        raise SettingsError("a <Label> of the labelling configuration has no value")
    return label.get("alias") or value, given or (value,)


# ---- what a person asked for

MOST_PERCENT = 1e6
"""Largest position in a request, in percent of the image's side. Larger ones are not of an image."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person drew or typed with a smart tool: points and a box with their label, or texts.

    Both are missing if there is nothing to answer, such as after a single negative point.
    """

    points: PointPrompts | None = None
    label: str | None = None
    texts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, context: object, hw: tuple[int, int]) -> Asked | None:
        """Read the context of a request for an image of `hw` (rows, columns); None if it has no regions.

        Raises:
            SettingsError: it has not the form that Label Studio sends, or a position is not a number.
        """
        height, width = hw
        points: list[tuple[float, float]] = []
        signs: list[int] = []
        boxes: list[tuple[float, float, float, float]] = []
        texts: list[str] = []
        label = None
        regions = object_of(context, "the context of a request").get("result") or []
        if not isinstance(regions, list):
            raise SettingsError(f"the result of a context must be a list of regions, got {_kind_of(regions)}")
        for each in regions:
            region = object_of(each, "a region of a context")
            value, kind = object_of(region.get("value"), "the value of a region"), str(region.get("type", ""))
            named = value.get(kind) or value.get("labels") or ()
            label = str(named[0]) if isinstance(named, list) and named and kind != "textarea" else label
            if kind.startswith("keypoint"):
                points.append((_number(value, "x") / 100 * width, _number(value, "y") / 100 * height))
                signs.append(int(bool(region.get("is_positive", True))))
            elif kind.startswith("rectangle"):
                x, y, w, h = (_number(value, name) / 100 for name in ("x", "y", "width", "height"))
                # Cut off at the edges of the image, as in the app: percent are rounded.
                left, top, right, bottom = (min(max(each, 0.0), 1.0) for each in (x, y, x + w, y + h))
                boxes.append((left * width, top * height, right * width, bottom * height))
            elif kind == "textarea":
                written = value.get("text") or ()
                texts += map(str, written if isinstance(written, list | tuple) else [written])
        if 1 in signs or boxes:
            return cls(_points(points, signs, boxes[-1:]), label)
        return cls(label=label, texts=tuple(text for text in texts if text.strip())) if regions else None


def object_of(value: object, what: str) -> Json:
    """Return a JSON object of a request; null is an empty one. Raises `SettingsError` that says what is none."""
    if value is not None and not isinstance(value, dict):
        raise SettingsError(f"{what} must be an object, got {_kind_of(value)}")
    return value or {}


def _kind_of(value: object) -> str:
    kinds: dict[type, str] = {str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), repr(value))


def _number(value: Mapping[str, Any], name: str) -> float:
    number = value.get(name)
    if not isinstance(number, int | float) or not abs(number) <= MOST_PERCENT:  # NaN is not
        raise SettingsError(f"{name} of a region must be a number of percent, got {shown(repr(number))}")
    return float(number)


def _points(points: Sequence[Any], signs: Sequence[int], boxes: Sequence[Any]) -> PointPrompts:
    return PointPrompts(
        xy=np.array(points, np.float32).reshape(-1, 2),
        labels=np.array(signs, np.int8),
        similarity=np.ones(len(signs), np.float32),
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
    )


# ---- predictions


def model_version(models: Text2Seg) -> str:
    """Return what Label Studio shows as the version of the model: that of text2seg, the weights, and their card."""
    card = models.card.provenance()
    return f"text2seg {__version__}, {models.names}" + (f", card {card['name']} {card['sha256'][:8]}" if card else "")


def predict(
    session: Session,
    config: LabelConfig,
    *,
    version: str,
    asked: Asked | None = None,
    tolerance: float = POLYGON_TOLERANCE,
) -> Json:
    """Return the prediction of one task: what the labels name, or what a person asked for.

    Queries with words that the models do not know are left out, if there are others. A text that names no label gets
    regions without a label, unless the project has one label only.

    Args:
        session: the image of the task.
        version: see `model_version`.
        asked: prompts of smart tools; without points and texts the result is empty. Default: look for all labels.
        tolerance: of polygons, in pixels; see `coco.simplify`.

    Raises:
        QueryError: the models know no query.
    """
    if asked is not None and asked.points is not None:
        regions = _clicked(session, config, asked.points, asked.label, tolerance)
    elif asked is not None and not asked.texts:
        regions = []
    else:
        queries = _queries_of_texts(asked.texts, config.labels) if asked else config.labels.queries
        regions = _named(session, config, queries, tolerance)
    scores = [region["score"] for region in regions]
    return {"result": regions, "score": float(np.mean(scores)) if scores else 0.0, "model_version": version}


def _queries_of_texts(texts: Iterable[str], labels: Labels) -> tuple[Query, ...]:
    """Return the queries that a person typed. One that names a label has its name and wordings."""
    of_label = {query.name: query for query in labels.queries}
    queries = [of_label.get(labels.of(query.name) or "", query) for query in parse_queries(list(texts))]
    return tuple({query.name: query for query in queries}.values())


def _named(session: Session, config: LabelConfig, queries: tuple[Query, ...], tolerance: float) -> list[Json]:
    known, _ = session.known_queries(queries)
    result = session.segment(known or queries)  # if there is none, the error says why
    names = tuple(config.labels.wordings)
    found: list[Json] = []
    for segment in result.segments:
        label = segment.query if segment.query in names else names[0] if len(names) == 1 else None
        found += _regions(segment, session.image, config, label, segment_score(segment, result), tolerance)
    return found


def _clicked(
    session: Session, config: LabelConfig, points: PointPrompts, label: str | None, tolerance: float
) -> list[Json]:
    label = label or next(iter(config.labels.wordings))
    known = {query.name: query for query in config.labels.queries}
    segment = session.segment_points(known.get(label, Query(label, ((label,),))), points)
    return list(_regions(segment, session.image, config, label, segment.sam_score, tolerance))


def _regions(
    segment: Segment, image: Image, config: LabelConfig, label: str | None, score: float, tolerance: float
) -> Iterator[Json]:
    """Yield the regions of one segment: one brush, or its polygons. Positions are percent of the image's sides."""
    if not segment.area:
        return
    height, width = image.hw
    common = {
        "from_name": config.labels.name,
        "to_name": config.image,
        "type": config.kind,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "origin": "prediction",
        "readonly": False,
        "score": float(score),
    }
    labels = {config.kind: [label] if label else []}
    if config.kind == "brushlabels":
        yield common | {"id": _new_id(), "value": {"format": "rle", "rle": brush_of(segment.mask), **labels}}
        return
    for polygon in polygons_of(segment.mask, tolerance):
        points = [[100 * x / width, 100 * y / height] for x, y in zip(polygon[::2], polygon[1::2], strict=True)]
        yield common | {"id": _new_id(), "value": {"points": points, "closed": True, **labels}}


def _new_id() -> str:
    return uuid.uuid4().hex[:10]


# ---- brushes

WORD_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)
"""Sizes in bits of the four fields for the length of a run."""
CHANNELS = 4


def brush_of(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask bool[H, W] as the bytes of Label Studio's brush.

    The brush is an RGBA image of the mask, row by row, with 255 in all channels inside and 0 outside. The bytes hold
    bits: the number of values (32), the size of a value less 1 (5), the sizes of four length fields less 1 (4 each);
    then for each run a 1, the number of the length field (2), the length less 1, and the value.
    """
    flat = np.ascontiguousarray(mask).ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1]) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(np.append(starts, flat.size)) * CHANNELS
    pieces = [f"{flat.size * CHANNELS:032b}{WORD_BITS - 1:05b}", *(f"{bits - 1:04b}" for bits in LENGTH_BITS)]
    longest = 1 << LENGTH_BITS[-1]
    for length, is_inside in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        value = "1" * WORD_BITS if is_inside else "0" * WORD_BITS
        for part in (*[longest] * (length // longest), *[length % longest] * bool(length % longest)):
            number, bits = next((n, bits) for n, bits in enumerate(LENGTH_BITS) if part <= 1 << bits)
            pieces.append(f"1{number:02b}{part - 1:0{bits}b}{value}")
    text = "".join(pieces)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))

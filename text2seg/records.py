"""Frozen records that pass between the stages. Arrays are numpy and read-only.

Names tell the frame: `_hw` is (rows, columns), `_xy`, `_xyxy` and `_xywh` are pixels of the original image. Every
record checks dtypes and shapes when it is made, and raises `ValueError` with the expected and the given ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from text2seg.errors import QueryError, Text2SegError
from text2seg.grids import tight_box

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from text2seg.config import Encoding, SaveKind

UNNAMED = "object"
"""Query of the segments that were found without words."""

Shape = tuple[int | str, ...]
Box = tuple[int, int, int, int]

_log = logging.getLogger(__name__)


def _checked(name: str, array: NDArray, dtype: DTypeLike, shape: Shape) -> NDArray:
    """Return a read-only, contiguous view of an array after checking dtype and shape; a letter stands for any size."""
    wanted = np.dtype(dtype)
    got = np.asarray(array)
    fits = got.ndim == len(shape) and all(isinstance(w, str) or g == w for g, w in zip(got.shape, shape, strict=True))
    if got.dtype != wanted or not fits:
        sizes = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name} must be {wanted}[{sizes}], got {got.dtype}{list(got.shape)}")
    got = np.ascontiguousarray(got)
    view = got.view()
    view.flags.writeable = False
    return view


def _freeze(record: object, **arrays: NDArray) -> None:
    for name, array in arrays.items():
        object.__setattr__(record, name, array)


def _size(hw: tuple[int, int]) -> str:
    """Width and height, in this order as in all messages."""
    return f"{hw[1]} x {hw[0]}"


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _few(texts: Iterable[str]) -> str:
    """Return the first few texts, for a short repr, and the number of the others."""
    cut = [_cut(text) for text in texts]
    shown = cut if len(cut) <= 5 else [*cut[:4], f"and {len(cut) - 4} more"]
    return ", ".join(shown) or "none"


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An image in RGB with EXIF orientation applied: `pixels` uint8[H, W, 3]."""

    pixels: NDArray[np.uint8]
    file_name: str = ""
    image_id: int = 1

    def __post_init__(self) -> None:
        _freeze(self, pixels=_checked("pixels", self.pixels, np.uint8, ("H", "W", 3)))
        if 0 in self.pixels.shape:
            raise ValueError(f"pixels must not be empty, got {list(self.pixels.shape)}")

    @property
    def hw(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def __repr__(self) -> str:
        return f"Image({self.file_name!r}, {_size(self.hw)} pixels)"


def calibration_note(calibrated: bool) -> str:
    """Return what follows the word "presence" or a number of it: nothing, or that it is not calibrated."""
    return "" if calibrated else ", not calibrated"


@dataclass(frozen=True, slots=True, eq=False)
class SimilarityMaps:
    """CLIP's score for each query and patch.

    `scores` float32[Q, gh, gw] are not normalised. The grid covers the whole image and need not be square. `presence`
    float32[Q], in [0, 1], is how sure CLIP is that the query is in the image at all; a number that means nothing by
    itself unless it is `calibrated`.
    """

    queries: tuple[str, ...]
    scores: NDArray[np.float32]
    presence: NDArray[np.float32]
    image_hw: tuple[int, int]
    calibrated: bool = True

    def __post_init__(self) -> None:
        count = len(self.queries)
        _freeze(
            self,
            scores=_checked("scores", self.scores, np.float32, (count, "gh", "gw")),
            presence=_checked("presence", self.presence, np.float32, (count,)),
        )

    @classmethod
    def flat(
        cls, queries: Sequence[str], image_hw: tuple[int, int], grid_hw: tuple[int, int] = (1, 1)
    ) -> SimilarityMaps:
        """Return maps of names that were not searched for: zero everywhere, with a presence of 1."""
        count = len(queries)
        scores = np.zeros((count, *grid_hw), np.float32)
        return cls(tuple(queries), scores, np.ones(count, np.float32), image_hw)

    @property
    def grid_hw(self) -> tuple[int, int]:
        return self.scores.shape[1], self.scores.shape[2]

    def presence_of(self, query: str) -> str:
        """Return the presence of a query for people, such as "presence 0.93" or "presence 0.12, not calibrated"."""
        return f"presence {self.presence[self.queries.index(query)]:.2f}{calibration_note(self.calibrated)}"

    def __repr__(self) -> str:
        return f"SimilarityMaps({_few(map(repr, self.queries))}; grid {_size(self.grid_hw)})"


@dataclass(frozen=True, slots=True, eq=False)
class PointPrompts:
    """Points for SAM, and optionally a box and a rough mask.

    `xy` float32[N, 2] is in pixels of the original image; `labels` int8[N] is 1 for positive and 0 for negative
    points; `similarity` float32[N], in [0, 1], is the min-max map at the point. N may be 0.

    `boxes_xyxy` float32[B, 4] is left, top, right, bottom, with B 0 or 1; with a box SAM gives one mask instead of
    several candidates. `masks` float32[M, gh, gw], with M 0 or 1, is a rough mask on a grid that covers the image: a
    map in [0, 1], or logits divided by `sam.base.MASK_PROMPT_SCALE`.
    """

    xy: NDArray[np.float32]
    labels: NDArray[np.int8]
    similarity: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    masks: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1, 1), np.float32))

    def __post_init__(self) -> None:
        count = len(self.labels)
        _freeze(
            self,
            xy=_checked("xy", self.xy, np.float32, (count, 2)),
            labels=_checked("labels", self.labels, np.int8, (count,)),
            similarity=_checked("similarity", self.similarity, np.float32, (count,)),
            boxes_xyxy=_checked("boxes_xyxy", self.boxes_xyxy, np.float32, ("B", 4)),
            masks=_checked("masks", self.masks, np.float32, ("M", "gh", "gw")),
        )
        for name, most in (("boxes_xyxy", self.boxes_xyxy), ("masks", self.masks)):
            if len(most) > 1:
                raise ValueError(f"{name} must hold one at most, got {len(most)}")
        if count and not np.isin(self.labels, (0, 1)).all():
            raise ValueError(f"labels must be 0 or 1, got {sorted(set(self.labels.tolist()))}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        positive = int((self.labels == 1).sum())
        more = ", a box" * len(self.boxes_xyxy) + ", a mask" * len(self.masks)
        return f"PointPrompts({positive} positive, {len(self) - positive} negative{more})"


@dataclass(frozen=True, slots=True, eq=False)
class SamPrompt:
    """A prompt for one object: its points, and the min-max map of the query, `scores` float32[gh, gw] in [0, 1].

    `region` bool[gh, gw] marks the cells of the object; no cell is marked if the region is unknown. `presence`, in [0,
    1], is how sure CLIP is of this object.
    """

    points: PointPrompts
    scores: NDArray[np.float32]
    region: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    presence: float = 1.0

    def __post_init__(self) -> None:
        _freeze(self, scores=_checked("scores", self.scores, np.float32, ("gh", "gw")))
        region = self.region if self.region.size else np.zeros(self.scores.shape, np.bool_)
        _freeze(self, region=_checked("region", region, np.bool_, self.scores.shape))

    def __repr__(self) -> str:
        return f"SamPrompt({self.points!r}, region of {int(self.region.sum())} cells, presence {self.presence:.2f})"


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """SAM's candidate masks for one prompt.

    `logits` float32[K, h, w] are at SAM's low resolution: a square with the image in its top left corner. `scores`
    float32[K] is the IoU that SAM predicts for each candidate.
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        count = len(self.scores)
        _freeze(
            self,
            logits=_checked("logits", self.logits, np.float32, (count, "h", "w")),
            scores=_checked("scores", self.scores, np.float32, (count,)),
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"Candidates({len(self)}, SAM {_few(f'{score:.2f}' for score in self.scores)})"


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One chosen mask, bool[H, W], with its query, its scores and how it was made.

    `sam_score` is SAM's predicted IoU of the chosen candidate. `map_score`, in [-1, 1], is the mean of the min-max map
    inside the mask minus the mean outside. `presence`, in [0, 1], is that of this object. `region_presence`, in [0, 1],
    is the presence of the query in the mask alone; None if it is not known.

    `view_xywh` is the tile that the segment was found in; None means the whole image. Scores, presence, candidates and
    rough mask are in the frame of the tile. Mask and points are always in the frame of the whole image.
    """

    query: str
    mask: NDArray[np.bool_]
    sam_score: float
    map_score: float
    presence: float
    points: PointPrompts
    candidates: Candidates
    chosen: int
    view_xywh: Box | None = None
    region_presence: float | None = None
    box_xywh: Box = field(init=False)
    """The tight box around the mask; all zero for an empty mask."""
    area: int = field(init=False)
    """Number of pixels in the mask."""

    def __post_init__(self) -> None:
        mask = _checked("mask", self.mask, np.bool_, ("H", "W"))
        left, top, width, height = box = tight_box(mask) or (0, 0, 0, 0)
        area = int(np.count_nonzero(mask[top : top + height, left : left + width]))
        for name, value in (("mask", mask), ("box_xywh", box), ("area", area)):
            object.__setattr__(self, name, value)
        if not 0 <= self.chosen < len(self.candidates):
            raise ValueError(f"chosen must be one of {len(self.candidates)} candidates, got {self.chosen}")

    @property
    def mean_presence(self) -> float:
        """The mean of `presence` and `region_presence`; `presence` alone if the other is not known."""
        return self.presence if self.region_presence is None else (self.presence + self.region_presence) / 2

    def __repr__(self) -> str:
        return (
            f"Segment({_cut(self.query)!r}, {self.area:,} pixels, box_xywh {self.box_xywh}, SAM {self.sam_score:.2f}, "
            f"presence {self.presence:.2f})"
        )

    def _repr_png_(self) -> bytes:
        """The mask, for notebooks."""
        from text2seg.render.saving import mask_png

        return mask_png(self)


def told_apart(value: float, other: float) -> tuple[str, str]:
    """Return two numbers with two decimals, or with as many as they need to look different.

    >>> told_apart(0.9996, 1.0)
    ('0.9996', '1.0000')
    """
    texts = [(f"{value:.{digits}f}", f"{other:.{digits}f}") for digits in (2, 3, 4, 6)]
    return next((pair for pair in texts if pair[0] != pair[1]), texts[0])


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The result of segmenting one image.

    `maps` has one map for each query, in the order of the queries. A query without a segment was not found.
    `thresholds` are the presences below which the queries count as absent; empty if they are unknown. `cut` are the
    queries that were longer than CLIP reads.

    A notebook shows it as the image with its masks and a table. `save`, `plot`, `to_coco` and `to_supervision` are
    implemented in `results.py`.
    """

    image: Image
    segments: tuple[Segment, ...]
    maps: SimilarityMaps
    thresholds: tuple[float, ...] = ()
    cut: tuple[str, ...] = ()

    def of(self, query: str) -> tuple[Segment, ...]:
        """Return the segments of one query."""
        return tuple(segment for segment in self.segments if segment.query == query)

    def verdict(self, query: str) -> str:
        """Describe the result of a query for people: "2 found, best 0.93", "0.93" or "not found (0.12 < 0.50)".

        Raises:
            QueryError: this was not searched for.
        """
        return f"{self._found(query)}{'; too long, its end was not read' if query in self.cut else ''}"

    def _found(self, query: str) -> str:
        scores = [segment.sam_score for segment in self.of(query)]
        if scores:
            return f"{len(scores)} found, best {max(scores):.2f}" if len(scores) > 1 else f"{scores[0]:.2f}"
        if query not in self.maps.queries:
            raise QueryError(f"{query!r} was not searched for; the queries are {_few(map(repr, self.maps.queries))}")
        place = self.maps.queries.index(query)
        presence = float(self.maps.presence[place])
        threshold = self.thresholds[place] if self.thresholds else 0.0
        if not threshold:
            return "not found"
        note = calibration_note(self.maps.calibrated)
        if presence < threshold:
            value, least = told_apart(presence, threshold)
            return f"not found ({value} < {least}{note})"
        return f"not found (presence {presence:.2f}{note}, no sure mask)"

    def __repr__(self) -> str:
        found = _few(f"{_cut(query)} {self.verdict(query)}" for query in self.maps.queries)
        return f"Segmentation({self.image!r}: {found})"

    def _repr_html_(self) -> str:
        from text2seg import results

        return results.html(self)

    def plot(self, axes: Any = None) -> Any:
        """Draw the image with its masks and a legend on matplotlib's axes, by default new ones, and return the axes.

        The legend is below the axes: in a figure of your own, `layout="constrained"` makes room for it.
        """
        from text2seg import results

        return results.plot(self, axes)

    def save(
        self,
        folder: str | Path,
        kinds: str | Iterable[SaveKind] = ("overlay", "why"),
        *,
        provenance: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write image files and a COCO file, all named after the image, and return their paths.

        If the folder has this result already, files of other kinds are added. Either all files are written or none.

        Args:
            folder: is made if it is missing.
            kinds: overlay, why, masks, cutouts, as for `segment --save`, where commas separate them.
            provenance: what made the result, as `Text2Seg.provenance` returns it; goes into the COCO file.
            overwrite: replace the whole earlier result of this image, or of another one with the same name
                (`a/one.jpg` and `b/one.jpg`): files of it that are not written again are deleted, unless somebody
                changed them; changed ones that are written again are replaced. Files of others never are.

        Raises:
            OutputError: the image has no file name, a file cannot be written, or the folder has another result of this
                image, or one of another image with the same name.
            SettingsError: a kind is unknown.
        """
        from text2seg import results

        return results.save(self, folder, kinds, provenance=provenance, overwrite=overwrite)

    def to_coco(self, *, provenance: Mapping[str, Any] | None = None, encoding: Encoding = "rle") -> dict[str, Any]:
        """Return a COCO dataset of this image; arguments and errors as for `coco.dataset.build_dataset`."""
        from text2seg import results

        return results.to_coco(self, provenance=provenance, encoding=encoding)

    def to_supervision(self) -> Any:
        """Return the segments as `supervision.Detections`, in their order: `xyxy`, `mask`, `confidence` (the score of
        the COCO file), `class_id` (the place of the query in `maps.queries`) and `data["class_name"]`.

        Raises:
            SettingsError: the package supervision is not installed.
        """
        from text2seg import results

        return results.to_supervision(self)


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be processed: the stage that failed and the reason in one line."""

    file_name: str
    stage: str
    message: str

    @classmethod
    def from_error(cls, file_name: str, stage: str, error: BaseException, path: object) -> Failure:
        """Make the message from an error. It names the file as `file_name`, also where the error names its `path`."""
        if isinstance(error, Text2SegError | OSError):
            message = str(error).replace(str(path), file_name)
        else:
            _log.info("%s", path, exc_info=error)
            message = f"not enough memory, or a fault of the machine or of text2seg ({type(error).__name__}: {error})"
        message = " ".join(message.split())
        return cls(file_name, stage, message if file_name in message else f"{file_name}: {message}")

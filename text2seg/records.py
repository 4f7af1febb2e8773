"""The frozen records that pass between the stages. Arrays are numpy and read-only.

Frames: `_hw` is (rows, columns) of the original image, `_xy` and `_xywh` are pixels of it. A record checks its
shapes when it is built and raises `ValueError`, saying what it wanted and what it got.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray

Shape = tuple[int | str, ...]
Box = tuple[int, int, int, int]


def _checked(name: str, array: NDArray, dtype: DTypeLike, shape: Shape) -> NDArray:
    """A read-only, contiguous view of the array, once dtype and shape are right; letters stand for any size."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One image, as people see it: `pixels` uint8[H, W, 3], RGB, EXIF orientation applied."""

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


@dataclass(frozen=True, slots=True, eq=False)
class SimilarityMaps:
    """CLIP's score per patch and query.

    `scores` float32[Q, gh, gw], not normalised, on a grid that need not be square and covers the whole image;
    `presence` float32[Q], how sure we are that the thing is in the image at all, in [0, 1].
    """

    queries: tuple[str, ...]
    scores: NDArray[np.float32]
    presence: NDArray[np.float32]
    image_hw: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.queries)
        _freeze(
            self,
            scores=_checked("scores", self.scores, np.float32, (count, "gh", "gw")),
            presence=_checked("presence", self.presence, np.float32, (count,)),
        )

    @property
    def grid_hw(self) -> tuple[int, int]:
        return self.scores.shape[1], self.scores.shape[2]


@dataclass(frozen=True, slots=True, eq=False)
class PointPrompts:
    """Points for SAM: `xy` float32[N, 2] in the original image, `labels` int8[N] (1 positive, 0 negative),
    `similarity` float32[N], the min-max map at the point, in [0, 1]. N may be 0.

    With them may come a box and a rough mask. `boxes_xyxy` float32[B, 4], B 0 or 1: left, top, right, bottom; with a
    box SAM gives its one mask, not several candidates. `masks` float32[M, gh, gw], M 0 or 1: how likely the thing is
    there, in [0, 1], on a grid that covers the image.
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


@dataclass(frozen=True, slots=True, eq=False)
class SamPrompt:
    """One thing that SAM is asked for: its points, and the query's min-max map, `scores` float32[gh, gw] in [0, 1].

    `region` bool[gh, gw] are the cells of the map where the thing stands; none where nothing is known of it. `presence`
    is how sure we are that it is there, in [0, 1].
    """

    points: PointPrompts
    scores: NDArray[np.float32]
    region: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0), np.bool_))
    presence: float = 1.0

    def __post_init__(self) -> None:
        _freeze(self, scores=_checked("scores", self.scores, np.float32, ("gh", "gw")))
        region = self.region if self.region.size else np.zeros(self.scores.shape, np.bool_)
        _freeze(self, region=_checked("region", region, np.bool_, self.scores.shape))


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """SAM's masks for one set of points: `logits` float32[K, h, w] at SAM's low resolution (square, the image in
    its top left corner), `scores` float32[K], the IoU that SAM predicts for each."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One chosen mask, bool[H, W], with its query, scores and how it came about.

    `sam_score` is SAM's predicted IoU of the chosen candidate; `map_score` is the mean of the min-max map inside
    the mask minus outside, in [-1, 1]; `presence` as in `SimilarityMaps`, but of this one.

    `view_xywh` is the tile of the image that the segment was seen in, none where it was seen in all of it. Both scores,
    `presence`, the frame of the candidates and that of a rough mask are the tile's; mask and points are always those of
    the whole image.
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

    def __post_init__(self) -> None:
        _freeze(self, mask=_checked("mask", self.mask, np.bool_, ("H", "W")))
        if not 0 <= self.chosen < len(self.candidates):
            raise ValueError(f"chosen must be one of {len(self.candidates)} candidates, got {self.chosen}")

    @property
    def area(self) -> int:
        """Pixels in the mask."""
        return int(np.count_nonzero(self.mask))

    @property
    def box_xywh(self) -> tuple[int, int, int, int]:
        """The tight box around the mask; all zero where the mask is empty."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        if not len(rows):
            return 0, 0, 0, 0
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """All that one call found in one image. `maps` has one map per query, in the order they were asked for;
    a query without a segment was not found. `thresholds` are the presences below which the queries count as absent;
    none where nothing is known of them. `cut` are the queries of which CLIP could not read the end."""

    image: Image
    segments: tuple[Segment, ...]
    maps: SimilarityMaps
    thresholds: tuple[float, ...] = ()
    cut: tuple[str, ...] = ()

    def of(self, query: str) -> tuple[Segment, ...]:
        """The segments of one query."""
        return tuple(segment for segment in self.segments if segment.query == query)

    def verdict(self, query: str) -> str:
        """What became of a query, for people: "2 x, best 0.93", "0.93" or "not found (0.12 < 0.50)", and whether the
        query is longer than CLIP reads."""
        return f"{self._found(query)}{'; too long, its end was not read' if query in self.cut else ''}"

    def _found(self, query: str) -> str:
        scores = [segment.sam_score for segment in self.of(query)]
        if scores:
            return f"{len(scores)} x, best {max(scores):.2f}" if len(scores) > 1 else f"{scores[0]:.2f}"
        place = self.maps.queries.index(query)
        presence = float(self.maps.presence[place])
        if self.thresholds and presence < self.thresholds[place]:
            return f"not found ({presence:.2f} < {self.thresholds[place]:.2f})"
        return "not found"


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be done: where it stopped and why, in one line."""

    file_name: str
    stage: str
    message: str

"""Tracking: the things that the queries name, followed through the frames of a video under numbers of their own.

A SAM 2 follows by its memory what was found in the first frame that shows a query. With any other SAM every frame is
segmented, and the segments are matched with those of the frames before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.regions import patch_features
from text2seg.coco.dataset import segment_score
from text2seg.config import Settings, TrackerName
from text2seg.errors import ImageError, SettingsError
from text2seg.grids import iou_of_areas, tight_box
from text2seg.io.frames import Frames
from text2seg.queries import Query
from text2seg.records import Image
from text2seg.sam.base import AnySam
from text2seg.sam.memory import VideoMemory
from text2seg.sam.sam2 import Sam2
from text2seg.session import Session

FEWEST_SHARED = 0.1
"""IoU from which a segment may be the thing of a track, whatever else."""
MOST_GROWTH = 2.0
"""Without that IoU, the area may change by this factor at most."""
FEATURE_WEIGHT = 0.5
"""Weight of the cosine of CLIP's features beside the IoU."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackedObject:
    """One thing in one frame: its number in the video from 1, its query, its mask bool[H, W], not empty, and a score in
    [0, 1]."""

    track_id: int
    query: str
    mask: NDArray[np.bool_] = field(repr=False)
    score: float

    def __repr__(self) -> str:
        what = f"{self.track_id}, {self.query!r}, {int(self.mask.sum()):,} pixels, box_xywh {self.box_xywh}"
        return f"TrackedObject({what}, score {self.score:.2f})"

    @property
    def box_xywh(self) -> tuple[int, int, int, int]:
        """The tight box around the mask."""
        return tight_box(self.mask) or (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class TrackedFrame:
    """One frame with its things. `index` counts the frames of the video from 0, also those that `every` skips."""

    index: int
    image: Image
    objects: tuple[TrackedObject, ...]


# ---- trackers


class Tracker(ABC):
    """Gives the things in the frames of one video their numbers; the frames come one by one in their order."""

    def __init__(self, queries: Sequence[Query], settings: Settings) -> None:
        self._queries, self._settings = tuple(queries), settings
        self._tracks = 0

    @abstractmethod
    def next(self, session: Session) -> tuple[TrackedObject, ...]:
        """Return the things in the next frame, in the order of their numbers."""

    def _new_track(self) -> int:
        self._tracks += 1
        return self._tracks


class MemoryTracker(Tracker):
    """Segments frames until each query was found once, and follows those segments by SAM 2's memory.

    The score of a thing is that of its segment in its first frame, times SAM 2's probability that it is visible.
    """

    def __init__(self, queries: Sequence[Query], settings: Settings, memory: VideoMemory) -> None:
        super().__init__(queries, settings)
        self._memory, self._waiting = memory, self._queries
        self._starts: dict[int, tuple[str, float]] = {}

    def next(self, session: Session) -> tuple[TrackedObject, ...]:
        new: dict[int, NDArray[np.bool_]] = {}
        if self._waiting:
            found = session.segment(self._waiting, self._settings)
            for segment in found.segments:
                if segment.area:
                    number = self._new_track()
                    new[number] = segment.mask
                    self._starts[number] = segment.query, segment_score(segment, found)
            seen = {self._starts[number][0] for number in new}
            self._waiting = tuple(query for query in self._waiting if query.name not in seen)
        objects = []
        for number, followed in self._memory.follow(session.image, new).items():
            query, score = self._starts[number]
            mask = new.get(number, followed.mask)  # in the first frame, the segment itself
            if mask.any():
                objects.append(TrackedObject(number, query, mask, score * followed.score))
        return tuple(objects)


@dataclass(slots=True)
class _Track:
    """A thing as it was last seen: its mask in its tight box, CLIP's feature float32[C] and its motion in pixels for
    each frame. `area` and `length`, that of the box, are means in which the last frames count most: what begins to hide
    has not become small."""

    number: int
    query: str
    box: tuple[int, int, int, int]
    part: NDArray[np.bool_]
    feature: NDArray[np.float32]
    seen: int
    motion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    area: float = field(init=False)
    length: float = field(init=False)

    def __post_init__(self) -> None:
        self.area, self.length = float(np.count_nonzero(self.part)), float(max(self.box[2:]))

    def update(self, other: _Track) -> None:
        """Take over what was seen of the thing in a later frame."""
        passed = other.seen - self.seen
        moved = (_centre(other.box) - _centre(self.box)) / passed
        self.motion = moved if not self.motion.any() else (self.motion + moved) / 2
        feature = self.feature + other.feature
        self.feature = feature / max(float(np.linalg.norm(feature)), 1e-9)
        self.area, self.length = (self.area + other.area) / 2, (self.length + other.length) / 2
        self.box, self.part, self.seen = other.box, other.part, other.seen

    def is_part_of(self, other: _Track) -> bool:
        """Return whether half of the mask or more lies in the mask of a thing of the same query, in the same frame."""
        shared = _shared(self.box, self.part, other.box, other.part)
        return self.query == other.query and 2 * shared >= np.count_nonzero(self.part)

    def affinity(self, other: _Track) -> float:
        """Return how well a segment of a later frame fits, above 0, or 0 if it cannot be this thing.

        The mask is moved on by the motion so far. The affinity is its IoU with the segment and half the cosine of
        CLIP's features. Below `FEWEST_SHARED`, the segment must be about as large, and no farther away than it is long.
        """
        if self.query != other.query:
            return 0.0
        passed = other.seen - self.seen
        shift = np.rint(self.motion * passed).astype(int)
        moved = (self.box[0] + int(shift[0]), self.box[1] + int(shift[1]), *self.box[2:])
        areas = np.count_nonzero(self.part), np.count_nonzero(other.part)
        shared = iou_of_areas(_shared(moved, self.part, other.box, other.part), *areas)
        if shared < FEWEST_SHARED:
            distance = float(np.linalg.norm(_centre(moved) - _centre(other.box)))
            sizes = self.area, other.area
            if max(sizes) > MOST_GROWTH * min(sizes) or distance > self.length * passed:
                return 0.0
        return max(shared + FEATURE_WEIGHT * float(self.feature @ other.feature), 1e-6)


class MatchingTracker(Tracker):
    """Segments every frame and matches the segments with the tracks of the same query.

    A track that finds no segment waits for `gap` frames and then ends; a segment that no track takes begins one, unless
    half of it or more lies in the segment of a track of the same query: then it is a part of that thing, and left out.
    The pairs are those of the highest total affinity. The score of a thing is that of its segment.
    """

    def __init__(self, queries: Sequence[Query], settings: Settings, gap: int) -> None:
        super().__init__(queries, settings)
        self._gap, self._open, self._frame = gap, list[_Track](), -1

    def next(self, session: Session) -> tuple[TrackedObject, ...]:
        self._frame += 1
        found = session.segment(self._queries, self._settings)
        segments = [segment for segment in found.segments if segment.area]
        tokens = list(session.tokens.values())[-1]
        features = patch_features(tokens, (segment.mask for segment in segments)).cpu().numpy()
        self._open = [track for track in self._open if self._frame - track.seen <= self._gap + 1]
        seen = []
        for segment, feature in zip(segments, features, strict=True):
            x, y, width, height = segment.box_xywh
            part = segment.mask[y : y + height, x : x + width].copy()
            seen.append(_Track(0, segment.query, segment.box_xywh, part, feature, self._frame))
        taken = {place: number for number, place in matched(self._open, seen)}
        followed = [seen[place] for place in taken]
        objects = []
        for place, (segment, sight) in enumerate(zip(segments, seen, strict=True)):
            if place in taken:
                track = self._open[taken[place]]
                track.update(sight)
            elif any(sight.is_part_of(other) for other in followed):
                continue
            else:
                track = replace(sight, number=self._new_track())
                self._open.append(track)
            objects.append(TrackedObject(track.number, segment.query, segment.mask, segment_score(segment, found)))
        return tuple(sorted(objects, key=lambda each: each.track_id))


def tracker_for(
    sam: AnySam, queries: Sequence[Query], settings: Settings, tracker: TrackerName = "auto", gap: int = 5
) -> Tracker:
    """Return the tracker of a new video.

    Raises:
        SettingsError: `tracker` is "memory" and the SAM has none.
        CheckpointError: the tensors of the memory do not fit.
    """
    if tracker == "matching" or (tracker == "auto" and not has_memory(sam)):
        return MatchingTracker(queries, settings, gap)
    if not isinstance(sam, Sam2) or not has_memory(sam):
        raise SettingsError(
            f"this {sam.family} remembers no frames; take the tracker matching, or a SAM 2 such as sam2.1_hiera_tiny"
        )
    return MemoryTracker(queries, settings, VideoMemory(sam))


def has_memory(sam: AnySam) -> bool:
    """Return whether a SAM remembers frames: a SAM 2 whose checkpoint has the tensors for it."""
    return isinstance(sam, Sam2) and bool(sam.memory_weights)


def follow(frames: Frames, tracker: Tracker, opened: Callable[[Image], Session]) -> Iterator[TrackedFrame]:
    """Yield the frames with their things, one at a time. Raises `ImageError` if none can be read, or one has
    another size."""
    index = None
    for index, image in frames:
        yield TrackedFrame(index, image, tracker.next(opened(image)))
    if index is None:
        raise ImageError(f"{frames.name}: there are no frames")


def matched(tracks: Sequence[_Track], seen: Sequence[_Track]) -> list[tuple[int, int]]:
    """Return the pairs of a track and a segment, by their places, with the highest total affinity."""
    import networkx  # torch needs it too; imported here to keep the start-up fast

    graph = networkx.Graph()
    for n, track in enumerate(tracks):
        for m, other in enumerate(seen):
            if affinity := track.affinity(other):
                graph.add_edge(n, len(tracks) + m, weight=affinity)
    pairs = (sorted(pair) for pair in networkx.max_weight_matching(graph))
    return sorted((n, m - len(tracks)) for n, m in pairs)


def _centre(box: tuple[int, ...]) -> NDArray[np.float64]:
    return np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])


def _shared(
    one: tuple[int, ...], part: NDArray[np.bool_], other: tuple[int, ...], other_part: NDArray[np.bool_]
) -> int:
    """Return the number of pixels that two masks share, each given by its box xywh and its part in this box."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[0] + one[2], other[0] + other[2]), min(one[1] + one[3], other[1] + other[3])
    if right <= left or bottom <= top:
        return 0
    first = part[top - one[1] : bottom - one[1], left - one[0] : right - one[0]]
    second = other_part[top - other[1] : bottom - other[1], left - other[0] : right - other[0]]
    return int(np.count_nonzero(first & second))

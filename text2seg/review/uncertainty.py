"""How doubtful an annotation is, from 0 to 1, and why.

Up to four parts, each from 0 (no doubt) to 1; one is left out where the dataset does not say what it takes:

- presence: 1 where the presence is at its threshold, falling in a straight line to 0 at presence 0 and 1;
- candidates: SAM's candidates disagree. For each that was not chosen, how near its score comes to the chosen one's
  (1 where equal, 0 from `SCORE_GAP` on) times 1 - IoU of the two masks; the largest counts. It takes the candidates'
  masks (`--keep-candidates`): scores alone say nothing, they are nearly equal as a rule, often of nearly equal masks;
- map: the mask leaves out what the map lights up: 1 at a map score of 0 or less, 0 from `GOOD_MAP_SCORE` on;
- score: 1 - score, which is SAM's guess of its IoU, or whatever the file brings.

Together they are 1 - (1 - presence)(1 - candidates)(1 - map)(1 - score): one strong doubt is enough, several add up.
docs/measurements/jobs.md says how well this finds wrong masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from text2seg.coco import rle
from text2seg.coco.reader import attributes_of, score_of
from text2seg.coco.results import rle_of
from text2seg.coco.rle import is_number
from text2seg.errors import Text2SegError

SCORE_GAP = 0.2
GOOD_MAP_SCORE = 0.6
NEARLY = 0.8
"""A thing that was not found is worth a look where its presence is at least this part of the threshold."""

PARTS = ("presence", "candidates", "map", "score")


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """The parts that are known, by name, and the words that say what each is made of."""

    parts: Mapping[str, float]
    words: Mapping[str, str]

    @property
    def value(self) -> float | None:
        """All parts together in [0, 1]; `None` where none is known."""
        return 1 - prod(1 - part for part in self.parts.values()) if self.parts else None

    @property
    def reason(self) -> str | None:
        """The name of the largest part, of equal ones the first; `None` where none is known."""
        return max(self.parts, key=lambda name: self.parts[name]) if self.parts else None


def uncertainty_of(
    annotation: Mapping[str, Any], *, hw: tuple[int, int] | None = None, threshold: float | None = None
) -> Uncertainty:
    """How doubtful an annotation is. What it does not have, or has in another form than text2seg writes, counts as
    not known.

    Args:
        hw: its image's size, without which its candidates cannot be compared.
        threshold: the presence below which its category counts as absent; none, or 0, if there was no such test.
    """
    known = attributes_of(annotation)
    parts: dict[str, float] = {}
    words: dict[str, str] = {}
    presence, map_score = number_in(known, "presence"), number_in(known, "map_score")
    if presence is not None and threshold:
        parts["presence"] = nearness(presence, threshold)
        words["presence"] = f"presence {presence:.2f}, counts from {threshold:.2f} on"
    if (overlap := _disagreement(annotation, known, hw)) is not None:
        parts["candidates"], other = overlap
        words["candidates"] = f"another candidate scores nearly as well and overlaps by {other:.2f} only"
    if map_score is not None:
        parts["map"] = _clipped(1 - map_score / GOOD_MAP_SCORE)
        words["map"] = f"map score {map_score:.2f}: how far the mask covers what the map lights up"
    sam_score = number_in(known, "sam_score")  # the annotation's score has presence in it, which is a part of its own
    if (score := score_of(annotation) if sam_score is None else sam_score) is not None:
        parts["score"] = _clipped(1 - score)
        words["score"] = f"score {score:.2f}"
    return Uncertainty(parts, words)


def nearness(presence: float, threshold: float) -> float:
    """1 where a presence is at its threshold in (0, 1], falling to 0 at 0 and at 1."""
    room = threshold if presence < threshold else 1 - threshold
    return _clipped(1 - abs(presence - threshold) / room) if room > 0 else 1.0


def number_in(values: Mapping[str, Any], key: str) -> float | None:
    """A number under a key, else `None`."""
    value = values.get(key)
    return float(value) if is_number(value) else None


def _disagreement(
    annotation: Mapping[str, Any], known: Mapping[str, Any], hw: tuple[int, int] | None
) -> tuple[float, float] | None:
    """The part that candidates play, and the IoU of the one that says so with the chosen one."""
    scores, chosen, masks = (known.get(key) for key in ("candidate_scores", "chosen_candidate", "candidates"))
    if hw is None or not isinstance(scores, Sequence) or not isinstance(masks, Sequence) or not masks:
        return None
    if not isinstance(chosen, int) or not 0 <= chosen < len(scores) or len(masks) != len(scores) - 1:
        return None
    if not all(map(is_number, scores)):
        return None
    others = [score for place, score in enumerate(scores) if place != chosen]
    try:
        mine = rle_of(annotation, hw)
        overlaps = [rle.iou(mine, rle_of({"segmentation": mask}, hw)) for mask in masks]
        doubts = [
            _clipped(1 - max(scores[chosen] - score, 0) / SCORE_GAP) * (1 - overlap)
            for score, overlap in zip(others, overlaps, strict=True)
        ]
    except Text2SegError:  # a part that cannot be had; the masks themselves are told of
        return None
    return max(zip(doubts, overlaps, strict=True), key=lambda pair: pair[0])


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)

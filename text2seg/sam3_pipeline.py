"""SAM 3 as a pipeline, with the same queries, records and files as `Text2Seg`, so that both can be compared.

SAM 3 answers words with masks: it needs no similarity maps and no points, and it offers one candidate per mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from text2seg import weights
from text2seg.config import Settings
from text2seg.errors import SettingsError
from text2seg.grids import map_score
from text2seg.queries import Query, parse_queries
from text2seg.records import Candidates, PointPrompts, Segment, Segmentation, SimilarityMaps
from text2seg.runtime import PrecisionName, choose_device
from text2seg.sam.candidates import suppress
from text2seg.sam.sam3 import WEIGHTS, Found, Sam3
from text2seg.session import Pipeline, Queries, Session

SCORE_THRESHOLD = 0.5
"""Score below which SAM 3 counts a mask as not found, as in its published post-processing."""

NO_POINTS = PointPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))


class Sam3Pipeline(Pipeline):
    """The pipeline of SAM 3 alone, for labelling folders.

    A segment's `sam_score` is SAM 3's score, and `presence` is the lowest score that counts as found. The maps are the
    logits of SAM 3's semantic head. Settings of maps and points have no effect.
    """

    def __init__(
        self, sam3: Sam3, *, settings: Settings | None = None, provenance: dict[str, object] | None = None
    ) -> None:
        super().__init__(settings=settings, provenance=provenance)
        self.sam3 = sam3

    @classmethod
    def open_folder(
        cls, folder: Path, *, device: str = "auto", precision: PrecisionName = "auto", settings: Settings | None = None
    ) -> Sam3Pipeline:
        """Load SAM 3 from a folder that `transformers` wrote; arguments and errors as for `Sam3.open`."""
        sam3 = Sam3.open(folder, device=choose_device(device), precision=precision)
        named = {"name": str(folder), "sha256": weights.sha256_of(folder / WEIGHTS)}
        return cls(sam3, settings=settings, provenance={"sam3": named})

    @property
    def device(self) -> torch.device:
        return self.sam3.device

    def describe_models(self) -> dict[str, object]:
        return {"precision": self.sam3.precision.name, "compiled": self.sam3.compiled}

    def default_presence(self, settings: Settings) -> float:
        return SCORE_THRESHOLD

    def check(self, queries: Queries, settings: Settings | None = None) -> tuple[Query, ...]:
        if self.settings_or_own(settings).tiles.tile:
            raise SettingsError("SAM 3 looks at whole images; leave --tile out")
        return parse_queries(queries)

    def segment_sessions(
        self, sessions: Sequence[Session], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        """Segment the images of several sessions.

        SAM 3 looks for every wording; of masks that show the same thing the best is kept. The parts of `a+b` give
        separate segments of one query. Negatives are ignored.
        """
        settings = self.settings_or_own(settings)
        parsed = self.check(queries, settings)
        return tuple(self._segment(session, parsed, settings) for session in sessions)

    def _segment(self, session: Session, queries: tuple[Query, ...], settings: Settings) -> Segmentation:
        wordings = [[wording for part in query.parts for wording in part] for query in queries]
        texts = list(dict.fromkeys(wording for of_query in wordings for wording in of_query))
        session.say_stage(f"SAM 3, {len(texts)} texts")
        answers = dict(zip(texts, self.sam3.find(session.image, texts), strict=True))
        found = [[answers[wording] for wording in of_query] for of_query in wordings]
        maps = SimilarityMaps(
            tuple(query.name for query in queries),
            np.stack([np.max([each.everywhere for each in of_query], axis=0) for of_query in found]),
            np.array([max(each.presence for each in of_query) for of_query in found], np.float32),
            session.image.hw,
        )
        thresholds = tuple(self.presence_threshold(query, settings) for query in queries)
        segments = [
            segment
            for row, query in enumerate(queries)
            for segment in self._segments(maps, row, found[row], thresholds[row], settings.masks.overlap)
            if segment.area >= max(query.min_area, 1)
        ]
        return Segmentation(session.image, tuple(segments), maps, thresholds)

    def _segments(
        self, maps: SimilarityMaps, row: int, found: Sequence[Found], min_score: float, overlap: float
    ) -> list[Segment]:
        """Return the segments of one query, the best first, without repeats."""
        offered = [
            (logits, score, each.presence)
            for each in found
            for logits, score in zip(each.logits, each.scores, strict=True)
            if score >= min_score
        ]
        if not offered:
            return []
        low, scores = np.stack([logits > 0 for logits, _, _ in offered]), np.array([score for _, score, _ in offered])
        segments = []
        for logits, score, presence in (offered[index] for index in suppress(low, scores, overlap)):
            mask = self.sam3.mask(logits, maps.image_hw)
            segments.append(
                Segment(
                    query=maps.queries[row],
                    mask=mask,
                    sam_score=float(score),
                    map_score=map_score(maps.scores[row], mask),
                    presence=presence,
                    points=NO_POINTS,
                    candidates=Candidates(logits[None], np.array([score], np.float32)),
                    chosen=0,
                )
            )
        return segments

    def segment_points(
        self, session: Session, query: str | Query, points: PointPrompts, settings: Settings | None = None
    ) -> Segment:
        """Raise `SettingsError`: SAM 3 takes words only."""
        raise SettingsError("SAM 3 takes words only, no points; load CLIP and SAM instead")

    def candidate_mask(self, session: Session, segment: Segment, index: int) -> NDArray[np.bool_]:
        if not 0 <= index < len(segment.candidates):
            raise ValueError(f"index must be one of {len(segment.candidates)} candidates, got {index}")
        return self.sam3.mask(segment.candidates.logits[index], session.image.hw)

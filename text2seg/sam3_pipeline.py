"""SAM 3 in the place of the whole pipeline, with the same queries, records and files, so that both can be compared.

It answers words itself: there are no maps of CLIP's, no points and no candidates to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from text2seg import weights
from text2seg._version import __version__
from text2seg.config import Settings
from text2seg.errors import SettingsError
from text2seg.grids import map_score
from text2seg.pipeline import Queries, Session, Text2Seg
from text2seg.queries import Query, parse_queries
from text2seg.records import Candidates, PointPrompts, Segment, Segmentation, SimilarityMaps
from text2seg.runtime import PrecisionName, choose_device
from text2seg.sam.nms import suppress
from text2seg.sam.sam3 import WEIGHTS, Found, Sam3

LEAST_SCORE = 0.5
"""From which score on a mask counts as found, where nothing else is asked for."""

NO_POINTS = PointPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))


class Sam3Pipeline(Text2Seg):
    """`Text2Seg` without CLIP, as far as a folder is labelled with it: sessions in, segmentations out.

    A segment's `sam_score` is SAM 3's score, its map the logits of SAM 3's semantic head. Settings of maps and points
    mean nothing here; `presence` is the least score.
    """

    def __init__(self, sam3: Sam3, *, settings: Settings | None = None, provenance: dict[str, object] | None = None):
        self.sam3, self.things, self.input_size = sam3, None, None
        self.sam: Any = sam3  # jobs ask it for its device
        self.settings = settings or Settings()
        self._provenance = provenance or {}

    @classmethod
    def open_folder(
        cls, folder: Path, *, device: str = "auto", precision: PrecisionName = "auto", settings: Settings | None = None
    ) -> Sam3Pipeline:
        """From a folder that `transformers` wrote; arguments and errors as for `Sam3.open`."""
        sam3 = Sam3.open(folder, device=choose_device(device), precision=precision)
        named = {"name": str(folder), "sha256": weights.sha256_of(folder / WEIGHTS)}
        return cls(sam3, settings=settings, provenance={"sam3": named})

    def provenance(self, settings: Settings | None = None) -> dict[str, object]:
        """As `Text2Seg.provenance`."""
        return {
            "text2seg": __version__,
            **self._provenance,
            "precision": self.sam3.precision.name,
            "compiled": False,
            "settings": asdict(settings or self.settings),
        }

    def check(self, queries: Queries, settings: Settings | None = None) -> tuple[Query, ...]:
        """As `Text2Seg.check`. Raises `SettingsError` where tiles are asked for."""
        if (settings or self.settings).tiles.tile:
            raise SettingsError("SAM 3 looks at whole images; leave --tile out")
        return parse_queries(queries)

    def segment_sessions(
        self, sessions: Sequence[Session], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        """As `Text2Seg.segment_sessions`. Every wording is asked for; of masks that show the same thing the best stays.
        The parts of `a+b` are things of one category here, not one segment; negatives are not asked for."""
        settings = settings or self.settings
        parsed = self.check(queries, settings)
        return tuple(self._segment(session, parsed, settings) for session in sessions)

    def _segment(self, session: Session, queries: tuple[Query, ...], settings: Settings) -> Segmentation:
        texts = list(dict.fromkeys(wording for query in queries for part in query.parts for wording in part))
        answers = dict(zip(texts, self.sam3.find(session.image, texts), strict=True))
        least = tuple(
            next((asked for asked in (query.presence, settings.presence.presence) if asked is not None), LEAST_SCORE)
            for query in queries
        )
        per_query = [[answers[wording] for part in query.parts for wording in part] for query in queries]
        maps = SimilarityMaps(
            tuple(query.name for query in queries),
            np.stack([np.max([found.everywhere for found in own], axis=0) for own in per_query]),
            np.array([max(found.presence for found in own) for own in per_query], np.float32),
            session.image.hw,
        )
        segments = [
            segment
            for row, (query, own) in enumerate(zip(queries, per_query, strict=True))
            for segment in self._segments(maps, row, own, least[row], settings.masks.overlap)
            if segment.area >= max(query.min_area, 1)
        ]
        return Segmentation(session.image, tuple(segments), maps, least)

    def _segments(
        self, maps: SimilarityMaps, row: int, answers: Sequence[Found], least: float, overlap: float
    ) -> list[Segment]:
        offered = [
            (logits, score, found.presence)
            for found in answers
            for logits, score in zip(found.logits, found.scores, strict=True)
            if score >= least
        ]
        if not offered:
            return []
        low, scores = np.stack([logits > 0 for logits, _, _ in offered]), np.array([score for _, score, _ in offered])
        segments = []
        for logits, score, presence in (offered[place] for place in suppress(low, scores, overlap)):
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

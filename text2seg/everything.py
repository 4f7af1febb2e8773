"""Everything in an image as a pipeline: SAM alone, without words, with the same records and files as `Text2Seg`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from text2seg.config import AutomaticSettings, ModelSettings, Settings
from text2seg.errors import QueryError, SettingsError
from text2seg.grids import place
from text2seg.loading import load_sam
from text2seg.queries import Query, parse_queries
from text2seg.records import Box, PointPrompts, Segment, Segmentation
from text2seg.sam.automatic import automatic_masks
from text2seg.sam.base import AnySam, SamEmbedding
from text2seg.session import Pipeline, Queries, Session


class SamPipeline(Pipeline):
    """What pipelines of SAM alone share."""

    def __init__(
        self, sam: AnySam, *, settings: Settings | None = None, provenance: dict[str, object] | None = None
    ) -> None:
        super().__init__(settings=settings, provenance=provenance)
        self.sam = sam

    @property
    def names(self) -> str:
        """The name of the model for people, such as "SAM vit_b"."""
        sam = self._provenance.get("sam")
        return f"SAM {sam.get('name', 'custom') if isinstance(sam, dict) else 'custom'}"

    @property
    def device(self) -> torch.device:
        return self.sam.device

    def describe_models(self) -> dict[str, object]:
        return {"runtime": "torch", "precision": self.sam.precision.name, "compiled": self.sam.compiled}

    def provenance(self, settings: Settings | None = None) -> dict[str, object]:
        described = super().provenance(settings)
        del described["presence"]  # there are no words that could be absent
        return described

    def default_presence(self, settings: Settings) -> float:
        return 0.0

    def segment_points(
        self, session: Session, query: str | Query, points: PointPrompts, settings: Settings | None = None
    ) -> Segment:
        """Raise `SettingsError`: these pipelines take no points of a person."""
        raise SettingsError("SAM alone takes no points of a person; load CLIP and SAM instead")

    def candidate_mask(self, session: Session, segment: Segment, index: int) -> NDArray[np.bool_]:
        mask = self.sam.mask(self._embed(session, segment.view_xywh), segment.candidates, index)
        return place(mask, segment.view_xywh, session.image.hw)

    def _embed(self, session: Session, box: Box | None) -> SamEmbedding:
        view = session.view(box)
        if view.embedding is None:
            (view.embedding,) = self.sam.embed([view.image])
        return view.embedding


class Everything(SamPipeline):
    """The pipeline of SAM alone. All segments belong to one query, whose only use is to name their category.

    Settings of maps, points and presence have no effect; `automatic` has its own.
    """

    def __init__(
        self,
        sam: AnySam,
        *,
        automatic: AutomaticSettings | None = None,
        settings: Settings | None = None,
        provenance: dict[str, object] | None = None,
    ) -> None:
        super().__init__(sam, settings=settings, provenance=provenance)
        self.automatic = automatic or AutomaticSettings()

    @classmethod
    def load(
        cls, model: ModelSettings, automatic: AutomaticSettings | None = None, *, settings: Settings | None = None
    ) -> Everything:
        """Load the SAM of a pair; its CLIP is not needed. Raises as `Text2Seg.load`."""
        if model.runtime != "torch":
            raise SettingsError("everything runs with torch only; leave --runtime out")
        sam, provenance = load_sam(
            model.model, sam=model.sam, device=model.device, precision=model.precision, compile_sam=model.compile
        )
        return cls(sam, automatic=automatic, settings=settings, provenance=provenance)

    def describe_models(self) -> dict[str, object]:
        return super().describe_models() | {"automatic": asdict(self.automatic)}

    def check(self, queries: Queries, settings: Settings | None = None) -> tuple[Query, ...]:
        if self.settings_or_own(settings).tiles.tile:
            raise SettingsError("everything searches crops instead of tiles; use --crop-layers and leave --tile out")
        parsed = parse_queries(queries)
        if len(parsed) > 1:
            raise QueryError(f"everything has one category, got {len(parsed)}: {', '.join(q.name for q in parsed)}")
        return parsed

    def segment_sessions(
        self, sessions: Sequence[Session], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        (query,) = self.check(queries, settings)
        return tuple(self._segment(session, query.name) for session in sessions)

    def _segment(self, session: Session, name: str) -> Segmentation:
        return automatic_masks(
            self.sam, lambda box: self._embed(session, box), session.image, self.automatic, name, session.say_stage
        )

"""The regions of an image, everything that SAM cuts out, and what CLIP says of them.

Attention within regions lets CLIP's patches attend to those of their own region only. Region classification says which
query each region shows, or that it shows none. The same evidence rates the segments that points have given.

One set of masks serves any number of queries. A region competes for a query with the distractors and the empty text, so
that it may be nothing. Of regions of one query that overlap, such as a thing and its parts, the best one stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from text2seg.clip.encoders import RULES
from text2seg.clip.maps import on_grid
from text2seg.clip.model import Clip, ImageTokens
from text2seg.clip.regions import (
    attention_weights,
    has_values,
    owners_of_patches,
    patch_features,
    soft_masks,
    value_features,
    vit_of,
)
from text2seg.config import AutomaticSettings, MaskSettings, RegionFeatures, Settings
from text2seg.grids import map_score, minmax
from text2seg.model_card import ModelCard, RegionClassification
from text2seg.queries import Query
from text2seg.records import Image, Segment, SimilarityMaps
from text2seg.sam.automatic import OVERLAP_GRID, Region, automatic_regions, candidates_of, coarse, owners
from text2seg.sam.base import AnySam, SamEmbedding
from text2seg.sam.candidates import least_quality, separation, suppress_by_intersection

GRID = AutomaticSettings(points_per_side=16, predicted_iou=0.5, stability=0.5, suppression="masks", box_overlap=0.8)
"""How SAM cuts out everything: fewer points than for masks without words, and lower bounds, because CLIP tells things
from the rest."""
LEAST_SHARE = 0.7
"""Share of a query's lowest presence that the mean presence of a segment needs; see `Segment.mean_presence`. Measured
in docs/measurements/experiments.md, "Region classification"."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class FoundRegions:
    """The regions of one image, before any words: `features`, unit float32 [R, C], `shares` float32 [R, gh, gw], how
    much of each cell of CLIP's grid each region covers, and `intersections` [R, R], in cells of a finer grid."""

    regions: tuple[Region, ...]
    features: Tensor
    shares: Floats
    intersections: Floats

    @property
    def host_nbytes(self) -> int:
        """Bytes of all but `features`, which are on the device of CLIP, and but the masks."""
        return self.shares.nbytes + self.intersections.nbytes


class Opened(Protocol):
    """An image with the regions found for it; `session.Session`."""

    image: Image
    automatic: tuple[Region, ...] | None
    regions: dict[object, FoundRegions]


def automatic_of(sam: AnySam, embedding: SamEmbedding, session: Opened) -> tuple[Region, ...]:
    """Return everything that SAM cuts out of an image, found now or before; the words do not matter."""
    if session.automatic is None:
        session.automatic = tuple(automatic_regions(sam, lambda _: embedding, session.image.hw, GRID))
    return session.automatic


def weights_within_regions(
    sam: AnySam, embedding: SamEmbedding, session: Opened, grid_hw: tuple[int, int], architecture: str
) -> Tensor:
    """Return the weights of attention within the regions of an image for this attention rule, float32 [P, P]; see
    `clip.regions.attention_weights`."""
    regions = automatic_of(sam, embedding, session)
    owner = owners_of_patches(owners(regions, session.image.hw), grid_hw)
    return attention_weights(owner, sam.grid_features(embedding, grid_hw), RULES[architecture].sharpness)


@dataclass(frozen=True, slots=True)
class RegionClassifier:
    """Region classification with one pair of models."""

    clip: Clip
    sam: AnySam
    fitted: RegionClassification
    settings: MaskSettings

    @classmethod
    def of(cls, clip: Clip, sam: AnySam, card: ModelCard, settings: Settings) -> RegionClassifier:
        """Return the classifier for these settings, calibrated if the card is for them."""
        if found := cls.calibrated(clip, sam, card, settings):
            return found
        features = settings.maps.region_features
        if features == "auto":
            features = "values" if has_values(clip) else "patches"
        return cls(clip, sam, RegionClassification(features=features), settings.masks)

    @classmethod
    def calibrated(cls, clip: Clip, sam: AnySam, card: ModelCard, settings: Settings) -> RegionClassifier | None:
        """Return the calibrated classifier for these settings; None if the card is not for them."""
        maps = settings.maps
        fitted = card.regions_for(maps.architecture, maps.input_size, maps.region_features)
        return cls(clip, sam, fitted, settings.masks) if fitted else None

    def check(self) -> None:
        """Raise `SettingsError` if this CLIP has no such features."""
        if self.fitted.features == "values":
            vit_of(self.clip)

    def found(self, embedding: SamEmbedding, session: Opened, tokens: ImageTokens) -> FoundRegions:
        """Return the regions of an image, found now or before."""
        key = (tokens, self.fitted.features, self.fitted.something)
        if key not in session.regions:
            session.regions[key] = self._find(embedding, session, tokens)
        return session.regions[key]

    def _find(self, embedding: SamEmbedding, session: Opened, tokens: ImageTokens) -> FoundRegions:
        image = session.image
        least = self.fitted.something
        where = self.clip.something(tokens) >= least if least else None
        regions = (
            automatic_of(self.sam, embedding, session)
            if where is None
            else tuple(automatic_regions(self.sam, lambda _: embedding, image.hw, GRID, where=where))
        )
        step = ceil(max(image.hw) / OVERLAP_GRID)
        size = ceil(image.hw[0] / step) * ceil(image.hw[1] / step)
        flat = np.zeros((len(regions), size), np.float32)
        for row, region in zip(flat, regions, strict=True):
            row[:] = coarse(region, step, image.hw).ravel()
        features = region_features(self.clip, image, tokens, regions, self.fitted.features)
        shares = soft_masks((region.in_image(image.hw) for region in regions), tokens.grid_hw).numpy()
        return FoundRegions(regions, features, shares, flat @ flat.T)

    def classify(
        self,
        embedding: SamEmbedding,
        session: Opened,
        tokens: ImageTokens,
        maps: SimilarityMaps,
        queries: Sequence[Query],
        thresholds: Sequence[float],
    ) -> tuple[list[Segment], SimilarityMaps]:
        """Give the regions of one image to queries; a region may go to several, or to none.

        Args:
            maps: the maps of the queries.
            thresholds: the lowest presence of each query.

        Returns:
            The segments in the order of the queries, the best of each first, and the maps with the presence of the
            regions.
        """
        found = self.found(embedding, session, tokens)
        evidence = self.clip.evidence(found.features, queries)
        presence = self.fitted.presence_of(evidence)
        highest = presence.max(0, initial=0.0).astype(np.float32)
        rows = np.flatnonzero(highest >= thresholds) if found.regions else np.zeros(0, np.int64)
        stretched = minmax(on_grid(maps.scores[rows], tokens.grid_hw)) if len(rows) else maps.scores[rows]
        chosen = []
        for row, scores in zip(rows.tolist(), stretched, strict=True):
            qualities = quality(found, scores, evidence[:, row], self.fitted)
            threshold = thresholds[row]
            shown = presence[:, row] >= threshold if threshold else evidence[:, row] >= min(0, evidence[:, row].max())
            chosen += [(row, number) for number in self._best(found, np.flatnonzero(shown), qualities)]
        maps = replace(maps, presence=highest)
        segments = self._segments(embedding, found, maps, chosen, presence)
        min_area = {query.name: query.min_area for query in queries}
        return [segment for segment in segments if segment.area >= min_area[segment.query]], maps

    def with_region_presence(
        self,
        session: Opened,
        tokens: ImageTokens,
        segments: Sequence[Segment],
        queries: Sequence[Query],
        thresholds: Sequence[float],
    ) -> list[Segment]:
        """Return the segments of an image with the presence of their query in their own masks, without those whose mean
        presence is too low.

        This needs a calibrated card whose features this CLIP has, and a lowest presence of at least one query, in
        `thresholds`.
        """
        row_of = {query.name: row for row, query in enumerate(queries)}
        rows = [row_of[segment.query] for segment in segments]
        is_possible = self.fitted.features == "patches" or has_values(self.clip)
        if not is_possible or not any(thresholds[row] for row in rows):
            return list(segments)
        masks = (segment.mask for segment in segments)
        features = mask_features(self.clip, session.image, tokens, masks, self.fitted.features)
        shown = self.fitted.presence_of(self.clip.evidence(features, queries)[np.arange(len(rows)), rows])
        judged = [
            replace(segment, region_presence=float(presence)) for segment, presence in zip(segments, shown, strict=True)
        ]
        return [
            segment
            for segment, row in zip(judged, rows, strict=True)
            if segment.mean_presence >= LEAST_SHARE * thresholds[row]
        ]

    def _best(self, found: FoundRegions, candidates: NDArray[np.intp], qualities: Floats) -> list[int]:
        """Return the regions that become segments of one query, the best first.

        A region that repeats a better one, is a part of it or holds it is dropped, and so is one of low quality beside
        the best.
        """
        of_query, shared = qualities[candidates], found.intersections[np.ix_(candidates, candidates)]
        kept = suppress_by_intersection(shared, of_query, self.settings.overlap)
        least = least_quality(float(of_query.max()), self.settings, self.fitted.choice)
        return [int(candidates[place]) for place in kept if place == kept[0] or of_query[place] >= least]

    def _segments(
        self,
        embedding: SamEmbedding,
        found: FoundRegions,
        maps: SimilarityMaps,
        chosen: Sequence[tuple[int, int]],
        presence: Floats,
    ) -> list[Segment]:
        numbers = sorted({number for _, number in chosen})
        regions = [found.regions[number] for number in numbers]
        answers = dict(zip(numbers, candidates_of(self.sam, lambda _: embedding, regions, GRID), strict=True))
        masks = {number: found.regions[number].in_image(maps.image_hw) for number in numbers}
        return [
            Segment(
                query=maps.queries[row],
                mask=masks[number],
                sam_score=found.regions[number].predicted_iou,
                map_score=map_score(maps.scores[row], masks[number]),
                presence=float(presence[number, row]),
                points=found.regions[number].point,
                candidates=answers[number],
                chosen=found.regions[number].chosen,
            )
            for row, number in chosen
        ]


def region_features(
    clip: Clip, image: Image, tokens: ImageTokens, regions: Sequence[Region], kind: RegionFeatures
) -> Tensor:
    """Return the feature of each region, unit float32 [R, C]. One mask of the size of the image is made at a time."""
    masks = (region.in_image(image.hw) for region in regions)
    return mask_features(clip, image, tokens, masks, kind if regions else "patches")


def mask_features(
    clip: Clip, image: Image, tokens: ImageTokens, masks: Iterable[NDArray[np.bool_]], kind: RegionFeatures
) -> Tensor:
    """Return the feature of each mask bool[H, W], unit float32 [R, C]. Values need at least one mask."""
    return value_features(clip, image, masks) if kind == "values" else patch_features(tokens, masks)


def quality(found: FoundRegions, scores: Floats, evidence: Floats, fitted: RegionClassification) -> Floats:
    """Return the quality of each region for one query, float32 [R].

    Args:
        scores: the query's min-max map [gh, gw].
        evidence: float32 [R], how much each region shows the query.
        fitted: weights of SAM's score, the map's separation and the evidence; the quality is then the expected IoU.
            Without them it is the product of the three, as probabilities.
    """
    predicted = np.array([region.predicted_iou for region in found.regions], np.float32)
    apart = separation(found.shares, scores)
    if choice := fitted.choice:
        expected = choice.sam * predicted + choice.separation * apart + choice.evidence * evidence + choice.constant
        return expected.astype(np.float32)
    return (predicted * apart.clip(min=0) / (1 + np.exp(-evidence))).astype(np.float32)

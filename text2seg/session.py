"""Interface of pipelines from images and words to segments, and the session on one image that keeps its features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray

from text2seg._version import __version__
from text2seg.clip.model import ImageTokens
from text2seg.config import Settings
from text2seg.io.images import ImageSource as Source
from text2seg.io.images import check_images, load_image
from text2seg.model_card import CALIBRATE
from text2seg.queries import Query
from text2seg.records import (
    Box,
    Image,
    PointPrompts,
    Segment,
    Segmentation,
)
from text2seg.regions import FoundRegions
from text2seg.sam.automatic import Region
from text2seg.sam.base import SamEmbedding
from text2seg.settings_fields import of_type
from text2seg.tiling import KEPT_VIEWS, crop

NOT_CALIBRATED = (
    f"presence is not calibrated for these weights and settings, so nothing counts as absent; {CALIBRATE} calibrates it"
)

ImageSource = Source | Image
Queries = str | Iterable[str | Query]


class Pipeline(ABC):
    """Interface of pipelines from images and words to segments. Safe to share between threads."""

    def __init__(self, *, settings: Settings | None = None, provenance: dict[str, object] | None = None) -> None:
        """
        Args:
            settings: The settings of calls that pass none.
            provenance: Names and hashes of the models, written beside results.
        """
        self.settings = settings or Settings()
        self._provenance = provenance or {}

    def segment(self, image: ImageSource, queries: Queries, settings: Settings | None = None) -> Segmentation:
        """Segment everything in one image that the queries name.

        Args:
            image: A path, a PIL image, an RGB array uint8 [H, W, 3] or an `Image`.
            queries: One text or several, as people type names (see `queries.names_in`). `a+b` gives one segment for
                both together. A query that the models cannot look for is an error; `known_queries` splits these off.
            settings: Settings used instead of the pipeline's.

        Returns:
            Segments in the order of the queries. A query without a segment was not found.

        Raises:
            ImageError: The image cannot be read.
            QueryError, SettingsError: See `check`.
        """
        return self.segment_sessions([self.open(image)], queries, settings)[0]

    def segment_many(
        self, images: Sequence[ImageSource], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        """Segment a batch of images together. Their ids are 1, 2, …; an `Image` keeps its own id.

        Raises `ImageError` if it is not a list of images, or as `segment`.
        """
        check_images(images)
        sessions = [self.open(image, image_id=number) for number, image in enumerate(images, start=1)]
        return self.segment_sessions(sessions, queries, settings)

    def open(self, image: ImageSource, *, image_id: int = 1) -> Session:
        """Open a session on one image, to segment it several times.

        `image_id` is its number in a COCO file; an `Image` keeps its own. Raises `ImageError` if it cannot be read.
        """
        return Session(self, image if isinstance(image, Image) else load_image(image, image_id=image_id))

    def settings_or_own(self, settings: Settings | None) -> Settings:
        """Return the settings of a call, or those of the pipeline. Raises `SettingsError` if they are no `Settings`."""
        return self.settings if settings is None else of_type(settings, Settings, "settings")

    def presence_threshold(self, query: Query, settings: Settings) -> float:
        """Return the presence below which a query counts as absent."""
        return settings.presence.threshold(query.presence, self.default_presence(settings)) or 0.0

    def provenance(self, settings: Settings | None = None) -> dict[str, object]:
        """Describe what made a result (version, models with hashes, precision, settings) as plain JSON values."""
        return {
            "text2seg": __version__,
            **self.describe_models(),
            **self._provenance,
            "presence": self._describe_presence(self.settings_or_own(settings)),
            "settings": asdict(self.settings_or_own(settings)),
        }

    def _describe_presence(self, settings: Settings) -> dict[str, object]:
        default = self.default_presence(settings)
        described: dict[str, object] = {
            "calibrated": default is not None,
            "threshold": settings.presence.threshold(None, default) or 0.0,
        }
        return described if default is not None else {**described, "note": NOT_CALIBRATED}

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device that computes the masks."""

    @abstractmethod
    def describe_models(self) -> dict[str, object]:
        """Describe how the models run (precision, compiled or not), as plain JSON values."""

    @abstractmethod
    def default_presence(self, settings: Settings) -> float | None:
        """Return the presence threshold if neither query nor settings give one; None if presence is not calibrated for
        these settings."""

    @abstractmethod
    def check(self, queries: Queries, settings: Settings | None = None) -> tuple[Query, ...]:
        """Parse the queries and check them and the settings, before any image is read.

        Raises:
            QueryError: The queries cannot be read, or the models cannot look for them.
            SettingsError: The models cannot work with these settings.
        """

    def known_queries(
        self, queries: Queries, settings: Settings | None = None
    ) -> tuple[tuple[Query, ...], dict[str, str]]:
        """Parse and check queries like `check`, but split off those that the models cannot look for.

        Returns:
            The queries to segment, and for the name of each other query a short sentence that says which words are
            unknown, or that the method takes no query of several parts. The app segments the former and shows the
            latter.
        """
        return self.check(queries, settings), {}

    @abstractmethod
    def segment_sessions(
        self, sessions: Sequence[Session], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        """Segment the images of several sessions together; see `segment`."""

    @abstractmethod
    def segment_points(
        self, session: Session, query: str | Query, points: PointPrompts, settings: Settings | None = None
    ) -> Segment:
        """Segment with points that a person set; see `Session.segment_points`."""

    @abstractmethod
    def candidate_mask(self, session: Session, segment: Segment, index: int) -> NDArray[np.bool_]:
        """Return one candidate of a segment as a mask; see `Session.candidate_mask`."""


def _silent(stage: str) -> None:
    """Say nothing."""


class Session:
    """One image with the features computed for it, so that further calls are fast.

    It keeps CLIP's tokens for each input size, SAM's embedding, the regions if they are needed, and the same for the
    first `KEPT_VIEWS` tiles; further tiles are encoded each time, so that memory is bounded. Calls with other words or
    settings compute only missing features. `Pipeline.open` makes sessions.
    """

    def __init__(self, models: Pipeline, image: Image) -> None:
        self.image = image
        self.tokens: dict[tuple[tuple[int, int], str], ImageTokens] = {}
        """By CLIP's input size (rows, columns) and the name of the attention rule."""
        self.embedding: SamEmbedding | None = None
        self.automatic: tuple[Region, ...] | None = None
        """Everything that SAM cuts out of the image, for attention within regions; None if not needed yet."""
        self.regions: dict[object, FoundRegions] = {}
        """Those of region classification, by what they were found with."""
        self.say_stage: Callable[[str], None] = _silent
        """Called with what is done to the image, such as "tile 9 of 40", when that begins."""
        self._models = models
        self._views: dict[Box, Session] = {}

    def __repr__(self) -> str:
        return f"Session({self.image!r}, {self.nbytes / 1e6:.1f} MB)"

    @property
    def nbytes(self) -> int:
        """Bytes of the image and of all features kept for it and its tiles."""
        return sum(self.nbytes_by_device().values())

    def nbytes_by_device(self) -> Counter[str]:
        """Return the bytes of `nbytes` by the type of their device: the image is on "cpu", features are on the device
        of the models."""
        found = list(self.regions.values())
        tensors = [tokens.features for tokens in list(self.tokens.values())] + [each.features for each in found]
        if self.embedding is not None:
            tensors.extend(self.embedding.tensors)
        regions = {
            id(each): each for of_one in (self.automatic or (), *(each.regions for each in found)) for each in of_one
        }
        masks = sum(region.mask.nbytes for region in regions.values())  # of regions that are shared, once
        sizes = Counter({"cpu": self.image.pixels.nbytes + masks + sum(each.host_nbytes for each in found)})
        for tensor in tensors:
            sizes[tensor.device.type] += tensor.nbytes
        for view in list(self._views.values()):
            sizes.update(view.nbytes_by_device())
        return sizes

    def view(self, xywh: Box | None) -> Session:
        """Return a session on a part of the image; None is the whole image."""
        if xywh is None:
            return self
        session = self._views.get(xywh) or Session(self._models, crop(self.image, xywh))
        if len(self._views) < KEPT_VIEWS:
            self._views[xywh] = session
        return session

    def known_queries(self, queries: Queries) -> tuple[tuple[Query, ...], dict[str, str]]:
        """Split off the queries that the models cannot look for; see `Pipeline.known_queries`."""
        return self._models.known_queries(queries)

    def segment(self, queries: Queries, settings: Settings | None = None) -> Segmentation:
        """Segment this image; see `Pipeline.segment`."""
        return self._models.segment_sessions([self], queries, settings)[0]

    def segment_points(self, query: str | Query, points: PointPrompts, settings: Settings | None = None) -> Segment:
        """Segment with points that a person set.

        Args:
            query: The name of the segment. Its map scores the mask.
            points: At least one point or a box, in pixels of the image.

        Raises:
            QueryError: As for `segment`.
            SettingsError: There are neither points nor a box, or one is outside the image.
        """
        return self._models.segment_points(self, query, points, settings)

    def candidate_mask(self, segment: Segment, index: int) -> NDArray[np.bool_]:
        """Return one candidate of a segment of this image as a mask bool[H, W]; `ValueError` if there is none."""
        return self._models.candidate_mask(self, segment, index)

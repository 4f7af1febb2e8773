"""The order of the stages: words and an image to similarity maps, maps to prompts, prompts to masks.

`Text2Seg` is the pipeline of CLIP and SAM. No other module knows the order of the stages.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from text2seg.clip.encoders import RULES
from text2seg.clip.maps import QueryMap, label_set, texts_of
from text2seg.clip.model import Clip, ImageTokens, query_maps
from text2seg.config import AutomaticSettings, MapSettings, OnnxProvider, Settings, TileSettings, TrackerName
from text2seg.errors import QueryError, SettingsError
from text2seg.grids import minmax, place
from text2seg.io.frames import FrameSource, open_frames
from text2seg.loading import load_pair, presence_model
from text2seg.model_card import NO_CARD, ModelCard, is_photograph
from text2seg.prompts import check_prompts, query_prompts
from text2seg.queries import Query, parse_queries, split_unions, unions_error
from text2seg.records import (
    UNNAMED,
    Box,
    Candidates,
    Image,
    PointPrompts,
    SamPrompt,
    Segment,
    Segmentation,
    SimilarityMaps,
)
from text2seg.regions import RegionClassifier, automatic_of, weights_within_regions
from text2seg.runtime import PrecisionName
from text2seg.sam.automatic import Region, automatic_masks, automatic_regions, owners
from text2seg.sam.base import AnySam, SamEmbedding
from text2seg.sam.candidates import by_sam, cut, segment_of, without_overlaps
from text2seg.session import ImageSource, Pipeline, Queries, Session
from text2seg.settings_fields import of_type
from text2seg.tiling import VIEWS_PER_CALL, merge_views, tiles_of, view_of
from text2seg.tracking import TrackedFrame, follow, tracker_for
from text2seg.vocabulary import ClosedVocabulary
from text2seg.weights import download_hint

_log = logging.getLogger(__name__)


class Text2Seg(Pipeline):
    """The pipeline of CLIP and SAM."""

    def __init__(
        self,
        clip: Clip,
        sam: AnySam,
        *,
        settings: Settings | None = None,
        input_size: int | None = None,
        card: ModelCard = NO_CARD,
        provenance: dict[str, object] | None = None,
    ) -> None:
        """
        Args:
            settings: The settings of calls that pass none.
            input_size: CLIP's input size if the settings give none. Default: the size CLIP was trained on.
            card: What is known about the models: their vocabulary, calibration and bounds.
            provenance: Names and hashes of the models, written beside results.
        """
        super().__init__(settings=settings, provenance=provenance)
        self.clip, self.sam = clip, sam
        self.input_size, self.card = input_size, card
        self._has_warned = threading.Event()  # of all copies of these models
        self._half_known: set[str] = set()  # sentences that were logged, of all copies

    @classmethod
    def load(
        cls,
        model: str = "auto",
        *,
        clip: str | os.PathLike[str] | None = None,
        sam: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: PrecisionName = "auto",
        compile: bool = False,
        graphs: str | os.PathLike[str] | None = None,
        onnx_provider: OnnxProvider = "auto",
        card: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
    ) -> Text2Seg:
        """Load a pair of models by name and download missing weights.

        Args:
            model: auto, demo, light, base, large or huge; see `ModelSettings`.
            clip, sam: A name or a file that replaces one model of the pair.
            device: auto, cpu, cuda, cuda:1, mps, …
            precision: auto, bf16, fp16 or fp32.
            compile: Let torch compile SAM's encoder: slow to start, faster for many images.
            graphs: A folder that `text2seg export onnx` wrote for the same pair; ONNX Runtime then runs the models.
            onnx_provider: With graphs, the execution provider of ONNX Runtime: auto, cpu, cuda, tensorrt or
                tensorrt-fp16.
            card: A model card for these weights. Default: the one found by their hashes, if there is one.
            settings: The settings of calls that pass none.

        Raises:
            CheckpointError: Weights or graphs are unknown, missing, damaged or of the wrong kind, or the card is for
                other weights.
            SettingsError: This machine lacks the device, precision, compiler or runtime.
        """
        if settings is not None:
            of_type(settings, Settings, "settings")
        pair = load_pair(
            of_type(model, str, "model"),
            clip=_name_or_file(clip, "clip"),
            sam=_name_or_file(sam, "sam"),
            device=device,
            precision=precision,
            compile_sam=compile,
            graphs=graphs,
            onnx_provider=onnx_provider,
            card=card,
        )
        return cls(
            pair.clip,
            pair.sam,
            settings=settings,
            input_size=pair.card.input_size,
            card=pair.card,
            provenance=pair.provenance,
        )

    def everything(self, image: ImageSource, settings: AutomaticSettings | None = None) -> Segmentation:
        """Segment everything in one image, without words; see `sam.automatic`. The query of all segments is "object".

        Raises:
            ImageError: The image cannot be read.
        """
        session = self.open(image)
        chosen = of_type(settings or AutomaticSettings(), AutomaticSettings, "settings")
        return automatic_masks(self.sam, self._embedder(session), session.image, chosen)

    def automatic_regions(self, session: Session, settings: AutomaticSettings | None = None) -> list[Region]:
        """Return everything in the image of a session as regions, which need less memory than `everything`."""
        return automatic_regions(self.sam, self._embedder(session), session.image.hw, settings or AutomaticSettings())

    def track(
        self,
        frames: FrameSource,
        queries: Queries,
        settings: Settings | None = None,
        *,
        every: int = 1,
        tracker: TrackerName = "auto",
        gap: int = 5,
    ) -> Iterator[TrackedFrame]:
        """Follow everything that the queries name through the frames of a video.

        Args:
            frames: A video file, a folder of frames, or images in their order, which may come from a generator.
            queries: As for `segment`.
            settings: Settings used instead of the pipeline's. A query counts as present by its presence threshold.
            every: Read only the first of as many frames.
            tracker, gap: See `TrackSettings`.

        Returns:
            The frames, computed one by one while they are iterated over; earlier ones are not kept.

        Raises:
            ImageError: The video cannot be read or has no frames, or, during the iteration, no frame can be read or one
                has another size.
            QueryError, SettingsError, CheckpointError: See `check` and `tracking.tracker_for`.
        """
        settings = self.settings_or_own(settings)
        parsed = self.check(queries, settings)
        opened = open_frames(frames, every)
        return follow(opened, tracker_for(self.sam, parsed, settings, tracker, gap), self.open)

    def segment_prompt(self, session: Session, points: PointPrompts) -> Segment:
        """Segment with points or a box alone, without words. The query of the segment is "object".

        Raises `SettingsError` if there are neither, or one is outside the image.
        """
        check_prompts(points, session.image.hw)
        (candidates,) = self.sam.decode([(self._embed([session], [0])[0], points)])
        maps = SimilarityMaps.flat((UNNAMED,), session.image.hw)
        prompt = SamPrompt(points, maps.scores[0])
        best = int(by_sam(candidates).argmax())
        return segment_of(self.sam, self._embed([session], [0])[0], maps, 0, prompt, candidates, best)

    def _embedder(self, session: Session) -> Callable[[Box | None], SamEmbedding]:
        return lambda box: self._embed([session.view(box)], [0])[0]

    @property
    def names(self) -> str:
        """The names of both models for people, such as "CLIP ViT-B/16 with SAM vit_b"."""
        parts = (self._provenance.get(kind) for kind in ("clip", "sam"))
        clip, sam = (part.get("name", "custom") if isinstance(part, dict) else "custom" for part in parts)
        return f"CLIP {clip} with SAM {sam}"

    def with_card(self, card: ModelCard) -> Text2Seg:
        """Return these models, their weights shared, with another card."""
        other = copy.copy(self)
        other.clip = copy.copy(self.clip)
        other.clip.presence = presence_model(card)
        other.card, other.input_size = card, card.input_size
        return other

    @property
    def closed_vocabulary(self) -> ClosedVocabulary | None:
        """The only words the models know; other queries are refused. None: any word."""
        return self.card.closed_vocabulary

    @property
    def device(self) -> torch.device:
        return self._last.device

    def describe_models(self) -> dict[str, object]:
        compiled = getattr(self.sam, "compiled", False)
        models = {"runtime": "torch", "precision": self._last.precision.name, "compiled": compiled}
        return models | {"card": self.card.provenance()}

    @property
    def _last(self) -> Clip | AnySam:
        """The SAM, or the CLIP if the explanation tools use it alone."""
        return self.sam or self.clip

    def __repr__(self) -> str:
        return f"Text2Seg({self.names}, {self.device})"

    def default_presence(self, settings: Settings) -> float | None:
        maps, method = settings.maps, settings.points.method
        return self.card.default_presence(maps.architecture, maps.input_size, method, maps.region_features)

    def check(self, queries: Queries, settings: Settings | None = None) -> tuple[Query, ...]:
        parsed = parse_queries(queries)
        if not all(isinstance(each, Query) for each in queries):  # others were checked before
            self._warn_of_half_known(parsed)
        known, unknown = self.known_queries(parsed, settings)
        if self.closed_vocabulary and (strange := self.closed_vocabulary.split(parsed)[1]):
            raise self.closed_vocabulary.error(strange.values())
        if unknown:
            raise unions_error(unknown.values())
        return known

    def _warn_of_half_known(self, queries: Sequence[Query]) -> None:
        """Log once which words of a query the models do not know."""
        sentences = map(self.closed_vocabulary.half_known, queries) if self.closed_vocabulary else ()
        for sentence in sentences:
            if sentence and sentence not in self._half_known:
                self._half_known.add(sentence)
                _log.warning("%s", sentence)

    def known_queries(
        self, queries: Queries, settings: Settings | None = None
    ) -> tuple[tuple[Query, ...], dict[str, str]]:
        settings = self.settings_or_own(settings)
        maps = settings.maps
        self.clip.check(maps.architecture, regions=self.sam is not None)
        self.clip.input_hw(maps.input_size or self.input_size)
        known, unknown = parse_queries(queries), dict[str, str]()
        if self.closed_vocabulary:
            known, unknown = self.closed_vocabulary.split(known)
        if settings.points.method == "regions":
            RegionClassifier.of(self.clip, self.sam, self.card, settings).check()
            known, unions = split_unions(known)
            unknown |= unions
        if known and maps.redundancy == "label-set":
            label_set(texts_of(known), maps.labels)
        return known, unknown

    def segment_sessions(
        self, sessions: Sequence[Session], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        settings = self.settings_or_own(settings)
        parsed = self.check(queries, settings)
        self.warn_of_photographs(session.image for session in sessions)
        if settings.tiles.tile:
            return tuple(self._segment_tiles(session, parsed, settings) for session in sessions)
        return self._segment_batch(sessions, parsed, settings)

    def is_unfamiliar(self, image: Image) -> bool:
        """Return whether the image looks like a photograph, and the models know drawings only."""
        return self.card.drawings_only and is_photograph(image)

    def warn_of_photographs(self, images: Iterable[Image]) -> None:
        """Log a warning for the first image that looks like a photograph, if the models know drawings only."""
        if self._has_warned.is_set():
            return
        strange = next((each for each in images if self.is_unfamiliar(each)), None)
        if strange is not None:
            self._has_warned.set()
            _log.warning(
                "%s looks like a photograph; further ones are not named. The %s model knows drawings only, so its "
                "masks and scores mean nothing there; take real weights: %s",
                strange.file_name or "an image",
                self.card.name,
                download_hint(),
            )

    def _segment_tiles(self, session: Session, queries: tuple[Query, ...], settings: Settings) -> Segmentation:
        """Segment the whole image and then its tiles, a few at a time, and merge their segments."""
        tiles = tiles_of(session.image.hw, settings.tiles)
        one_view = replace(settings, tiles=TileSettings())
        if not tiles:
            return self._segment_batch([session], queries, one_view)[0]
        # Overlaps between queries are resolved once, when all views are merged.
        one_view = replace(one_view, masks=replace(settings.masks, resolve_overlaps=False))
        (whole,) = self._segment_batch([session], queries, one_view)
        views = [view_of(whole, None, session.image.hw, settings.masks, self.card.choice)]
        for start in range(0, len(tiles), VIEWS_PER_CALL):
            boxes = tiles[start : start + VIEWS_PER_CALL]
            session.say_stage(f"tile {start + 1} of {len(tiles)}")
            results = self._segment_batch([session.view(box) for box in boxes], queries, one_view)
            views += [
                view_of(result, box, session.image.hw, settings.masks, self.card.choice)
                for result, box in zip(results, boxes, strict=True)
            ]
        merged = merge_views(whole, views, settings.masks.overlap)
        if settings.masks.resolve_overlaps:
            merged = without_overlaps(merged, queries)
        return merged

    def _segment_batch(
        self, sessions: Sequence[Session], queries: tuple[Query, ...], settings: Settings
    ) -> tuple[Segmentation, ...]:
        """Segment a batch of images, each as a whole."""
        for session in sessions[:1]:
            session.say_stage("CLIP")
        # Where is it? One similarity map per image and query.
        tokens = self.encode(sessions, settings.maps)
        found = [query_maps(self.clip, each, queries, settings.maps) for each in tokens]
        thresholds = tuple(self.presence_threshold(query, settings) for query in queries)
        if settings.points.method == "regions":
            regions = RegionClassifier.of(self.clip, self.sam, self.card, settings)
            embeddings = self._embed(sessions, range(len(sessions)))
            segmented = [
                regions.classify(embeddings[n], session, each, maps, queries, thresholds)
                for n, (session, each, (maps, _)) in enumerate(zip(sessions, tokens, found, strict=True))
            ]
        else:
            segmented = self._answer_points(sessions, found, queries, thresholds, settings)
            calibrated_regions = RegionClassifier.calibrated(self.clip, self.sam, self.card, settings)
            if calibrated_regions and settings.points.method == "auto":
                segmented = [
                    (calibrated_regions.with_region_presence(session, each, segments, queries, thresholds), maps)
                    for session, each, (segments, maps) in zip(sessions, tokens, segmented, strict=True)
                ]
        cut_off = tuple(query.name for query in queries if self.clip.cuts(texts_of([query]), settings.maps))
        calibrated = self.default_presence(settings) is not None
        results = [
            Segmentation(session.image, tuple(segments), replace(maps, calibrated=calibrated), thresholds, cut_off)
            for session, (segments, maps) in zip(sessions, segmented, strict=True)
        ]
        if settings.masks.resolve_overlaps:
            return tuple(without_overlaps(result, queries) for result in results)
        return tuple(results)

    def _answer_points(
        self,
        sessions: Sequence[Session],
        found: Sequence[tuple[SimilarityMaps, list[QueryMap]]],
        queries: tuple[Query, ...],
        thresholds: tuple[float, ...],
        settings: Settings,
    ) -> list[tuple[list[Segment], SimilarityMaps]]:
        """Return the segments of each image that SAM answers to points on the maps, and the maps."""
        prompts = self._prompts(found, queries, thresholds, settings)
        if prompts:
            sessions[0].say_stage(f"SAM, {len(prompts)} prompts")
        # Cut it out: SAM embeds the images that have prompts and answers all prompts together.
        embeddings = self._embed(sessions, {n for n, _, _ in prompts})
        candidates = self.sam.decode([(embeddings[n], prompt.points) for n, _, prompt in prompts])
        answers: dict[tuple[int, int], list[tuple[SamPrompt, Candidates]]] = defaultdict(list)
        for (n, q, prompt), answer in zip(prompts, candidates, strict=True):
            answers[n, q].append((prompt, answer))
        # Choose one candidate per prompt; drop duplicates and small segments.
        segments: list[list[Segment]] = [[] for _ in sessions]
        for (n, q), of_query in answers.items():
            chosen = cut(self.sam, embeddings[n], found[n][0], q, of_query, settings.masks, self.card.choice)
            segments[n] += [segment for segment in chosen if segment.area >= queries[q].min_area]
        return [(of_image, maps) for of_image, (maps, _) in zip(segments, found, strict=True)]

    def _prompts(
        self,
        found: Sequence[tuple[SimilarityMaps, list[QueryMap]]],
        queries: tuple[Query, ...],
        thresholds: tuple[float, ...],
        settings: Settings,
    ) -> list[tuple[int, int, SamPrompt]]:
        """Point at it: return prompts for SAM, each with the numbers of its image and query."""
        return [
            (n, q, prompt)
            for n, (maps, query_map) in enumerate(found)
            for q, query in enumerate(queries)
            for prompt in query_prompts(
                query, query_map[q], maps.image_hw, settings, self.card, min_presence=thresholds[q]
            )
        ]

    def encode(self, sessions: Sequence[Session], settings: MapSettings) -> list[ImageTokens]:
        """Return the CLIP tokens of every session; missing ones are computed in one batch.

        Raises:
            SettingsError: CLIP cannot follow the attention rule, or it needs regions and there is no SAM.
        """
        size, rule = settings.input_size or self.input_size, settings.architecture
        self.clip.check(rule, regions=self.sam is not None)
        input_hw = self.clip.input_hw(size)
        missing = [session for session in sessions if (input_hw, rule) not in session.tokens]
        images = [session.image for session in missing]
        if RULES[rule].regions:
            grid_hw = (input_hw[0] // self.clip.stride, input_hw[1] // self.clip.stride)
            embeddings = self._embed(missing, range(len(missing)))
            weights = [
                weights_within_regions(self.sam, embeddings[n], session, grid_hw, rule)
                for n, session in enumerate(missing)
            ]
            fresh = self.clip.encode_images(images, size=size, architecture=rule, weights=weights)
        else:
            fresh = self.clip.encode_images(images, size=size, architecture=rule)
        for session, tokens in zip(missing, fresh, strict=True):
            session.tokens[input_hw, rule] = tokens
        return [session.tokens[input_hw, rule] for session in sessions]

    def owners(self, session: Session) -> NDArray[np.int32]:
        """Return the number of the smallest thing that SAM cuts out around each pixel of the image, int32 [H, W]; -1
        outside all.

        Raises:
            SettingsError: there is no SAM.
        """
        if self.sam is None:
            raise SettingsError("regions are cut out by SAM, and CLIP was loaded alone; load a SAM too")
        return owners(automatic_of(self.sam, self._embed([session], [0])[0], session), session.image.hw)

    def _embed(self, sessions: Sequence[Session], numbers: Iterable[int]) -> dict[int, SamEmbedding]:
        """Return the SAM embeddings of the numbered sessions; missing ones are computed in one batch."""
        chosen = {n: sessions[n] for n in sorted(numbers)}
        missing = [session for session in chosen.values() if session.embedding is None]
        for session, embedding in zip(missing, self.sam.embed([s.image for s in missing]), strict=True):
            session.embedding = embedding
        return {n: session.embedding for n, session in chosen.items() if session.embedding is not None}

    def segment_points(
        self, session: Session, query: str | Query, points: PointPrompts, settings: Settings | None = None
    ) -> Segment:
        settings = self.settings_or_own(settings)
        parsed = self.check([query], settings)
        if len(parsed) > 1:
            names = ", ".join(each.name for each in parsed)
            raise QueryError(f"points belong to one query, got {len(parsed)}: {names}")
        check_prompts(points, session.image.hw)
        maps, _ = query_maps(self.clip, self.encode([session], settings.maps)[0], parsed, settings.maps)
        embedding = self._embed([session], [0])[0]
        (candidates,) = self.sam.decode([(embedding, points)])
        best = int(by_sam(candidates).argmax())
        prompt = SamPrompt(points, minmax(maps.scores)[0], presence=float(maps.presence[0]))
        return segment_of(self.sam, embedding, maps, 0, prompt, candidates, best)

    def candidate_mask(self, session: Session, segment: Segment, index: int) -> NDArray[np.bool_]:
        embedding = self._embed([session.view(segment.view_xywh)], [0])[0]
        mask = self.sam.mask(embedding, segment.candidates, index)
        return place(mask, segment.view_xywh, session.image.hw)


def _name_or_file(given: str | os.PathLike[str] | None, what: str) -> str | None:
    if given is not None and not isinstance(given, (str, os.PathLike)):
        raise SettingsError(f"{what} must be a name or a file, got {given!r}")
    return None if given is None else os.fspath(given)
